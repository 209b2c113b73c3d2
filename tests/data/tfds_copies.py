"""Small local copies of TFDS data sets: their own builders over raw files of a few rows, in ArrayRecord."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
import tensorflow_datasets.question_answering.xquad


def prepared(builder: Any, raw: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder that the builder makes. raw: split -> arguments of its own parser of raw files."""
    builder._split_generators = lambda dl_manager: {
        split: builder._generate_examples(**arguments) for split, arguments in raw.items()
    }
    builder.download_and_prepare()
    return Path(builder.data_path)


def builder_of(data: Path, name: str, **options: Any) -> Any:
    return tfds.builder_cls(name)(data_dir=data, file_format="array_record", **options)


def opus(data: Path, pairs: Sequence[tuple[str, str]], languages: tuple[str, str] = ("de", "en")) -> Path:
    """OPUS' medical texts; the pairs' languages are in alphabetical order."""
    cls: Any = tfds.builder_cls("opus")
    (config,) = [config for config in cls.BUILDER_CONFIGS if config.name == "medical"]
    config = type(config)(version=config.version, language_pair=languages, subsets=["EMEA"], name="-".join(languages))
    files = []
    for language, texts in zip(languages, zip(*pairs, strict=True), strict=True):
        files.append(data / f"raw.{language}")
        files[-1].write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    subset = {"name": "EMEA", "source_file": files[0], "target_file": files[1]}
    return prepared(builder_of(data, "opus", config=config), {"train": {"subsets": [subset]}})


def ted(data: Path, talks: Sequence[Mapping[str, str]]) -> Path:
    """TED talks; a talk lacks the languages that it does not name."""
    languages = sorted({name for talk in talks for name in talk})
    raw = data / "raw.tsv"
    with raw.open("w", encoding="utf-8") as file:
        file.write("\t".join(["talk_name", *languages]) + "\n")
        for talk in talks:
            file.write("\t".join(["t", *(talk.get(name, "__NULL__") for name in languages)]) + "\n")
    return prepared(builder_of(data, "ted_multi_translate"), {"train": {"data_file": raw}})


def xquad(data: Path, language: str, questions: Mapping[str, str], split: str = "test") -> Path:
    """XQuAD in one language. questions: id -> question."""
    raw = data / f"raw.{language}.json"
    asked = [{"id": key, "question": text, "answers": []} for key, text in questions.items()]
    raw.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": asked}]}]}), encoding="utf-8")
    return prepared(builder_of(data, "xquad", config=language), {split: {"filepath": raw}})


def paws_x(data: Path, language: str, rows: Sequence[tuple[str, str, int]]) -> Path:
    """PAWS-X' test rows in one language: two sentences, and whether they mean the same."""
    raw = data / f"raw.{language}.tsv"
    with raw.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "sentence1", "sentence2", "label"])
        writer.writerows([number, *row] for number, row in enumerate(rows, start=1))
    return prepared(builder_of(data, "paws_x_wiki", config=language), {"test": {"path": raw}})
