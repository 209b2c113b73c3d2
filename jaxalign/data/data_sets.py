"""Question pairs of prepared data sets: folders that TFDS or Hugging Face `datasets` wrote.

Of TFDS (ArrayRecord files, no TensorFlow), by features; rows of the split `train`:

    prompt, response, source_language, target_language   as they are (see question_translation)
    Translation (opus, wmt)                              the other language's text, and the target's
    translations (ted_multi_translate)                   each source language's text, and the target's, where both are
    id, question (xquad)                                 split `test` of DIR/de/3.0.0, joined by id with DIR/en/3.0.0

Of Hugging Face, saved by `save_to_disk`, by columns: those of the first line; source, target and their languages; the
study's input and answer; answered questions; or `translation`, which holds a text per language.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.fields import text_of
from jaxalign.data.languages import LANGUAGES, code_of, language_of
from jaxalign.data.pairs import (
    ANSWERED_FIELDS,
    PARALLEL_FIELDS,
    RENDERED_FIELDS,
    QuestionPair,
    Rendering,
    parallel_pair,
    rendered_pair,
    study_pair,
    with_instruction,
)
from jaxalign.errors import InputError, gather

Reads = Iterator[Callable[[], QuestionPair]]
"""A call per pair, which returns it or raises InputError: so all bad rows can be told of, not the first alone."""


class Directions(NamedTuple):
    """The languages, by code, whose texts become prompts, and the one whose texts are the responses."""

    sources: Sequence[str]
    target: str


def is_data_set(folder: Path) -> bool:
    """Whether a folder is a prepared data set of TFDS or Hugging Face."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_data_set(folder: Path, rendering: Rendering) -> Reads:
    """The pairs of a data set; what is no such set, or broken, raises InputError."""
    is_hugging_face = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    return (_read_hugging_face if is_hugging_face else _read_tfds)(folder, rendering)


# TFDS


def tfds_features(folder: Path) -> Mapping[str, Any]:
    """Name -> feature."""
    with _loading(folder):
        return _builder(folder).info.features


def tfds_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, texts decoded, sequences as lists."""
    with _loading(folder):
        builder = _builder(folder)
        if split not in builder.info.splits:
            raise InputError(f"{folder}: no split {split!r}; there are {', '.join(builder.info.splits) or 'none'}")
        for row in builder.as_data_source(split):
            yield _decoded(row)


def _builder(folder: Path) -> Any:
    # Slow to import, and only these folders need it.
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _decoded(value.tolist())
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _read_tfds(folder: Path, rendering: Rendering) -> Reads:
    features = tfds_features(folder)
    names = set(features)
    if names >= set(RENDERED_FIELDS):
        return _each(folder, tfds_rows(folder, "train"), rendered_pair)
    if names >= {"id", "question"}:
        return _joined_by_id(folder, rendering)
    if "translations" in names:
        directions = _directions(features["translations"].languages, rendering, folder)
        talks = (row["translations"] for row in tfds_rows(folder, "train"))
        texts = (dict(zip(talk["language"], talk["translation"], strict=True)) for talk in talks)
        return _translated(folder, texts, directions, rendering)
    if type(features).__name__ == "Translation":
        directions = _directions(features, rendering, folder)
        # OPUS's lines have kept their ends.
        rows = ({name: text.removesuffix("\n") for name, text in row.items()} for row in tfds_rows(folder, "train"))
        return _translated(folder, rows, directions, rendering)
    raise InputError(
        f"{folder}: a data set of {', '.join(sorted(names))}; pairs are read from {', '.join(RENDERED_FIELDS)}, from "
        "translations, or from id and question"
    )


def _joined_by_id(folder: Path, rendering: Rendering) -> Reads:
    """Each question of one language's data set with that of the target's, which lies beside it."""
    source = language_of(folder.parent.name, str(folder)).code
    root = folder.parent.parent
    named = [other.name for other in root.iterdir() if code_of(other.name) == rendering.target]
    target_folder = root / (named[0] if len(named) == 1 else rendering.target) / folder.name
    if source == rendering.target or not is_data_set(target_folder):
        raise InputError(
            f"{folder}: {target_folder} is needed beside it, in another language: the questions are joined by id; "
            "config.build.target names the language"
        )
    targets = {row["id"]: row for row in tfds_rows(target_folder, "test")}

    def pair_of(row: Mapping[str, Any], where: str) -> QuestionPair:
        if row["id"] not in targets:
            raise InputError(f"{where}, field 'id': {row['id']!r} is not in {target_folder}")
        texts = {source: row["question"], rendering.target: targets[row["id"]]["question"]}
        return _translation(texts, source, rendering.target, rendering, where)

    return _each(folder, tfds_rows(folder, "test"), pair_of)


# Hugging Face


def _read_hugging_face(folder: Path, rendering: Rendering) -> Reads:
    if find_spec("datasets") is None:
        raise InputError(f"{folder}: saved by Hugging Face datasets; pip install 'jaxalign[datasets]' to read it")
    # Slow to import, and only these folders need it.
    import datasets

    with _loading(folder):
        rows: Any = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise InputError(f"{folder}: no split 'train'; there are {', '.join(rows)}: name the folder of one")
        rows = rows["train"]
    names = set(rows.column_names)
    if names >= set(RENDERED_FIELDS):
        return _each(folder, rows, rendered_pair)
    if names >= set(PARALLEL_FIELDS):
        return _each(folder, rows, lambda row, where: parallel_pair(row, rendering.instruction, where))
    if any(names >= set(fields) for fields in (("input", "answer"), *ANSWERED_FIELDS)):
        return _each(folder, rows, study_pair)
    if "translation" in names:
        feature = rows.features["translation"]
        languages = getattr(feature, "languages", feature)
        if not isinstance(languages, dict | list | tuple):
            raise InputError(f"{folder}: the column 'translation' does not hold a text per language")
        directions = _directions(languages, rendering, folder)
        return _translated(folder, (row["translation"] for row in rows), directions, rendering)
    raise InputError(
        f"{folder}: a data set of {', '.join(sorted(names))}; pairs are read from {', '.join(RENDERED_FIELDS)}; from "
        f"{', '.join(PARALLEL_FIELDS)}; from input, answer; from question, answer; or from translation"
    )


# Both


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever a broken data set makes of the libraries, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{folder}: the data set does not load ({reason}); is it whole, and (TFDS) in ArrayRecord files?"
        ) from None


def _each(folder: Path, rows: Iterable[Any], pair_of: Callable[[Any, str], QuestionPair]) -> Reads:
    """One pair of every row."""
    for index, row in enumerate(rows):
        yield partial(pair_of, row, f"{folder}, row {index}")


def _translated(folder: Path, rows: Iterable[Mapping[str, str]], directions: Directions, rendering: Rendering) -> Reads:
    """A pair of every row for each source language that it has, if it has the target. rows: language -> text."""
    for index, row in enumerate(rows):
        # Where a row has a language under several names, the study's own is the one meant, or else the first in order:
        # zh before zh-CN before zh-TW.
        names = sorted(row, key=lambda name: (name not in LANGUAGES, name), reverse=True)
        texts = {code_of(name): row[name] for name in names}
        for source in directions.sources:
            if source in texts and directions.target in texts:
                where = f"{folder}, row {index}"
                yield partial(_translation, texts, source, directions.target, rendering, where)


def _translation(texts: Mapping[str, str], source: str, target: str, rendering: Rendering, where: str) -> QuestionPair:
    text, response = gather(partial(text_of, texts, code, where) for code in (source, target))
    return QuestionPair(with_instruction(text, source, target, rendering.instruction), response, source, target)


def _directions(names: Iterable[str], rendering: Rendering, folder: Path) -> Directions:
    """Into the target: from the other language of two, or from the chosen sources of more."""
    names = list(names)
    there = [code for code in LANGUAGES if code in map(code_of, names)]
    if rendering.target not in there:
        raise InputError(
            f"{folder}: no text in {rendering.target}; set config.build.target to one of {' '.join(there)}"
        )
    others = [code for code in there if code != rendering.target]
    sources = others if len(names) == 2 else rendering.sources
    if not sources or not set(sources) <= set(others):
        raise InputError(
            f"{folder}: no translation from {' '.join(sources) or 'a language of the study'} into {rendering.target}; "
            f"set config.build.sources to some of {' '.join(others)}"
        )
    return Directions(sources, rendering.target)
