"""Question pairs for TFDS: a configuration per task and source language of the mini set, or over files of pairs.

    QuestionTranslation(config="emotion_zh", data_dir=DIR).download_and_prepare()
    QuestionTranslation(config=QuestionTranslationConfig.of_files("mine", ["pairs.csv"]), data_dir=DIR)

`jaxalign train DIR/question_translation/emotion_zh/1.0.0` reads what either has written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxalign.data.build import build_examples
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.tasks import TASKS
from jaxalign.files import MINI


@dataclass(kw_only=True)
class QuestionTranslationConfig(tfds.core.BuilderConfig):
    """Either `task` and `source`, translated into English from the mini set, or `files` of question pairs."""

    task: str = ""
    source: str = ""
    files: tuple[str, ...] = ()

    @classmethod
    def of_files(cls, name: str, files: Sequence[str | Path]) -> "QuestionTranslationConfig":
        """Over files, or folders of files, in any format that `read_pairs` takes."""
        paths = tuple(str(file) for file in files)
        return cls(name=name, description=f"Question pairs of {', '.join(paths)}.", files=paths)

    def pairs(self) -> list[QuestionPair]:
        if self.files:
            return read_pairs([Path(file) for file in self.files])
        return build_examples(MINI, TASKS[self.task], [self.source], "en")


class QuestionTranslation(tfds.core.GeneratorBasedBuilder):
    """Built by download_and_prepare, as all of TFDS; read by as_data_source, or as a folder of pairs."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name and the plain list are TFDS's interface
        QuestionTranslationConfig(
            name=f"{task}_{source}",
            description=f"Questions of the mini set's {task} task, {LANGUAGES[source].name} to English.",
            task=task,
            source=source,
        )
        for task in TASKS
        for source in LANGUAGES
        if source != "en"
    ]

    def __init__(self, *, file_format: str = "array_record", **options: Any):
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        fields = ("prompt", "response", "source_language", "target_language")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Task questions in one language, to be translated into another (arXiv 2405.13816).",
            features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in fields}),
            supervised_keys=("prompt", "response"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        config = self.builder_config
        assert isinstance(config, QuestionTranslationConfig)
        for index, pair in enumerate(config.pairs()):
            yield index, asdict(pair)
