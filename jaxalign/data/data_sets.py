"""Question pairs of prepared data sets: folders that TFDS or Hugging Face `datasets` wrote.

Of TFDS (ArrayRecord files, no TensorFlow), by features; rows of the split `train`:

    Translation (opus, wmt)                              the other language's text, and the target's
    translations (ted_multi_translate)                   each source language's text, and the target's, where both are
    id, question (xquad)                                 split `test` of DIR/de/3.0.0, joined by id with DIR/en/3.0.0

    others                                               whatever `pairs` reads of rows

Of Hugging Face, saved by `save_to_disk`, by columns: `translation`, a text per language, or whatever `pairs` reads.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.fields import Rows, numbered
from jaxalign.data.languages import LANGUAGES, code_of, language_of
from jaxalign.data.pairs import Rendering, makes_pairs, not_pairs, parallel_row
from jaxalign.errors import InputError
from jaxalign.files import read_json


class Directions(NamedTuple):
    """The languages, by code, whose texts become prompts, and the one whose texts are the responses."""

    sources: Sequence[str]
    target: str


def is_data_set(folder: Path) -> bool:
    """Whether a folder is a prepared data set of TFDS or Hugging Face."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_data_set(folder: Path, rendering: Rendering) -> Rows:
    """The rows of a data set, one for each pair; what is no such set, or broken, raises InputError."""
    info = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else None
    if isinstance(info, dict) and info and all(isinstance(entry, dict) for entry in info.values()):
        files = [f"{folder}/{entry['file_name']}" for entry in info.values() if "file_name" in entry]
        raise InputError(
            f"{folder}: its dataset_info.json lists data sets of LLaMA-Factory; name the files of pairs one by one "
            f"({', '.join(files) or 'it names none that lie here'}), which are read by the names of their own fields"
        )
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


def _read_tfds(folder: Path, rendering: Rendering) -> Rows:
    features = tfds_features(folder)
    names = set(features)
    if makes_pairs(names):
        return numbered(folder, tfds_rows(folder, "train"))
    if names >= {"id", "question"}:
        return _joined_by_id(folder, rendering)
    if "translations" in names:
        directions = _directions(features["translations"].languages, rendering, folder)
        talks = (row["translations"] for row in tfds_rows(folder, "train"))
        texts = (dict(zip(talk["language"], talk["translation"], strict=True)) for talk in talks)
        return _translated(folder, texts, directions)
    if type(features).__name__ == "Translation":
        directions = _directions(features, rendering, folder)
        # OPUS's lines have kept their ends.
        rows = ({name: text.removesuffix("\n") for name, text in row.items()} for row in tfds_rows(folder, "train"))
        return _translated(folder, rows, directions)
    raise not_pairs(names, f"{folder}: a data set")


def _joined_by_id(folder: Path, rendering: Rendering) -> Rows:
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

    def joined(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        if row["id"] not in targets:
            raise InputError(f"{where}, field 'id': {row['id']!r} is not in {target_folder}")
        return parallel_row(row["question"], targets[row["id"]]["question"], source, rendering.target)

    for index, row in enumerate(tfds_rows(folder, "test")):
        where = f"{folder}, row {index}"
        yield where, partial(joined, row, where)


# Hugging Face


def _read_hugging_face(folder: Path, rendering: Rendering) -> Rows:
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
    if makes_pairs(names - {"translation"}):
        return numbered(folder, rows)
    if "translation" in names:
        feature = rows.features["translation"]
        languages = getattr(feature, "languages", feature)
        if not isinstance(languages, dict | list | tuple):
            raise InputError(f"{folder}: the column 'translation' does not hold a text per language")
        directions = _directions(languages, rendering, folder)
        return _translated(folder, (row["translation"] for row in rows), directions)
    raise not_pairs(names, f"{folder}: a data set")


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


def _translated(folder: Path, rows: Iterable[Mapping[str, str]], directions: Directions) -> Rows:
    """A pair of every row for each source language that it has, if it has the target. rows: language -> text."""
    for index, row in enumerate(rows):
        # Where a row has a language under several names, the study's own is the one meant, or else the first in order:
        # zh before zh-CN before zh-TW.
        names = sorted(row, key=lambda name: (name not in LANGUAGES, name), reverse=True)
        texts = {code_of(name): row[name] for name in names}
        for source in directions.sources:
            if source in texts and directions.target in texts:
                sides = texts[source], texts[directions.target]
                yield f"{folder}, row {index}", partial(parallel_row, *sides, source, directions.target)


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
