"""The TFDS data set: what is built is what is read, without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.data.build import build_examples
from jaxalign.data.pairs import read_pairs
from jaxalign.data.question_translation import QuestionTranslation, QuestionTranslationConfig
from jaxalign.data.tasks import TASKS
from jaxalign.errors import InputError
from jaxalign.files import MINI


def test_mini_configuration_round_trips(tmp_path):
    builder = QuestionTranslation(config="paws_sw", data_dir=tmp_path)
    builder.download_and_prepare()
    expected = build_examples(MINI, TASKS["paws"], ["sw"], "en")
    assert read_pairs([Path(builder.data_path)]) == expected
    assert builder.info.splits["train"].num_examples == len(expected) == 8


def test_files_of_pairs_round_trip(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text('source,target,source_language,target_language\n"Wo, bitte?","Where, please?",de,en\n')
    config = QuestionTranslationConfig.of_files("mine", [table])
    builder = QuestionTranslation(config=config, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    assert read_pairs([Path(builder.data_path)]) == read_pairs([table])


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither files of pairs"):
        read_pairs([tmp_path])


def test_tensorflow_is_not_loaded(tmp_path):
    script = (
        "import sys\n"
        "from jaxalign.data.question_translation import QuestionTranslation\n"
        f"builder = QuestionTranslation(config='emotion_zh', data_dir={str(tmp_path)!r})\n"
        "builder.download_and_prepare()\n"
        "assert len(builder.as_data_source('train')) == 48\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
