"""Every error of files of data, found by the readers that tuning and evaluation use, and what to be warned of."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from jaxalign.data.description import normal
from jaxalign.data.languages import known_language
from jaxalign.data.pair_files import pair_files, read_pair_file
from jaxalign.data.pairs import Rendering
from jaxalign.data.paws_x import is_paws_x, paws_x_folder
from jaxalign.data.prompts import Exemplars, read_exemplars
from jaxalign.data.tasks import TASKS, TaskFile, TaskRow, read_objects, read_task_rows, task_file_named
from jaxalign.errors import InputError, messages_of
from jaxalign.log import warn

ALL_ROWS = slice(None)
Check = Callable[[], Any]


def errors_of(path: Path, rendering: Rendering) -> dict[str, list[str]]:
    """File -> its errors, none where it is good. What another file is to blame for is told once.

    path: a task's file (told by its name), a file or data set or folder of pairs, or a whole data folder.
    """
    try:
        checks = _data_folder_checks(path, rendering) if _is_data_folder(path) else _checks(path, rendering)
    except InputError as error:
        return {str(path): messages_of(error)}
    told: set[str] = set()
    errors = {}
    for file, check in checks.items():
        errors[str(file)] = [message for message in _errors(check) if message not in told]
        told.update(errors[str(file)])
    return errors


def _errors(check: Check) -> list[str]:
    try:
        check()
    except InputError as error:
        return messages_of(error)
    return []


def _is_data_folder(path: Path) -> bool:
    return any((path / folder).is_dir() for folder in (*(task.folder for task in TASKS.values()), "paws_x_wiki"))


def _checks(path: Path, rendering: Rendering) -> dict[Path, Check]:
    named = task_file_named(path)
    if named is not None:
        return {path: partial(_check_task_file, path, named)}
    return {file: partial(read_pair_file, file, rendering) for file in pair_files(path)}


def _data_folder_checks(data: Path, rendering: Rendering) -> dict[Path, Check]:
    """Of its task files, files of pairs beside them, PAWS-X and exemplars."""
    checks: dict[Path, Check] = {}
    for task in TASKS.values():
        for file in sorted((data / task.folder).glob("*.json")):
            checks |= _checks(file, rendering)
    if is_paws_x(data):
        for folder in sorted((data / "paws_x_wiki").iterdir()):
            if (language := known_language(folder.name)) is not None:
                checks[folder] = partial(_check_paws_x, data, language.code)
    if (data / "exemplars.json").is_file():
        checks[data / "exemplars.json"] = partial(_check_exemplars, data)
    return checks


def warn_of_exemplars(exemplars: Exemplars, cells: Iterable[Sequence[TaskRow]]) -> None:
    """Warnings of exemplars that show one class alone, and of test rows that are an exemplar of their own prompt.

    Both are counted over the cells, each the rows of one task in one language, compared as `normal` writes them.
    """
    one_class, shown, count = [], [], 0
    for rows in cells:
        name = f"{rows[0].task} {rows[0].language}"
        cell = exemplars.of(rows[0].task, rows[0].language)
        if len({exemplar.label for exemplar in cell}) == 1:
            one_class.append(f"{name} ({cell[0].label})")
        texts = {tuple(map(normal, exemplar.fields)) for exemplar in cell}
        found = [row.row for row in rows if tuple(map(normal, row.fields)) in texts]
        shown += [f"{name} row {row}" for row in found]
        count += len(rows)
    if one_class:
        warn(f"{exemplars.file}: all exemplars are of one class in {len(one_class)} cells, first {one_class[0]}")
    if shown:
        warn(
            f"{exemplars.file}: {len(shown)} of {count} test rows are an exemplar of their own prompt, which shows "
            f"their answer; first {', '.join(shown[:2])}"
        )


def _check_exemplars(data: Path) -> None:
    exemplars, cells = read_exemplars(data / "exemplars.json"), []
    for task, language in exemplars.cells:
        with suppress(InputError):  # of a task's file, which is told of by itself
            cells.append(read_task_rows(data, TASKS[task], language, "test", ALL_ROWS))
    warn_of_exemplars(exemplars, cells)


def _check_task_file(file: Path, named: TaskFile) -> None:
    """Its rows and, where it lies in a data folder, that they go with the English ones."""
    read_objects(file, *named)
    if file.resolve().parent.name == named.task.folder:
        read_task_rows(file.resolve().parent.parent, named.task, named.language, named.split, ALL_ROWS)


def _check_paws_x(data: Path, language: str) -> None:
    paws_x_folder(data, language)
    read_task_rows(data, TASKS["paws"], language, "test", ALL_ROWS)
