"""PAWS-X as TFDS prepares it (`paws_x_wiki/LANGUAGE/VERSION/`, ArrayRecord), as rows of the task paws."""

from collections.abc import Mapping
from pathlib import Path

from jaxalign.data.data_sets import tfds_features, tfds_rows
from jaxalign.data.languages import code_of
from jaxalign.errors import InputError

WORDS = {"paraphrase": "same", "different_meaning": "different"}
"""PAWS-X' class -> the task's label word, which is the same in every language."""


def is_paws_x(data: Path) -> bool:
    """Whether a data folder holds PAWS-X in place of the study's paws/."""
    return (data / "paws_x_wiki").is_dir() and not (data / "paws").is_dir()


def paws_x_folder(data: Path, language: str) -> Path:
    """The one prepared data set of a language."""
    files = (data / "paws_x_wiki").glob("*/*/dataset_info.json")
    found = sorted(file.parent for file in files if code_of(file.parent.parent.name) == language)
    if len(found) != 1:
        names = " and ".join(str(folder.relative_to(data)) for folder in found) or "none"
        raise InputError(f"{data / 'paws_x_wiki' / language}: one prepared version is needed there, found {names}")
    return found[0]


def read_paws_x(folder: Path, split: str) -> list[Mapping[str, str]]:
    """Rows of sentence1, sentence2 and answer, as a file of the study's has them.

    TFDS orders rows by their ids, so row i is the same item in every language that has the same items.
    """
    names = tfds_features(folder)["label"].names
    return [{**row, "answer": WORDS[names[row["label"]]]} for row in tfds_rows(folder, split)]
