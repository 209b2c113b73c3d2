"""Pairs and test rows of data sets that TFDS's own builders and Hugging Face `datasets` wrote."""

import json
import shutil
import subprocess
import sys

import datasets
import pytest

from jaxalign.data import pairs
from jaxalign.data.pairs import Instruction, QuestionPair, Rendering, read_pairs, with_instruction
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.errors import InputError
from tests.data.tfds_copies import opus, paws_x, ted, xquad


def pair(text, response, source, target="en", instruction: Instruction = "after"):
    return QuestionPair(with_instruction(text, source, target, instruction), response, source, target)


def by_prompt(pairs):
    """TFDS shuffles rows by a hash of their keys."""
    return sorted(pairs, key=lambda each: each.prompt)


def message_of(folder, rendering=Rendering()):  # noqa: B008
    with pytest.raises(InputError) as error:
        read_pairs([folder], rendering)
    assert "\n" not in str(error.value)
    return str(error.value)


# TFDS


def test_opus(tmp_path):
    folder = opus(tmp_path, [("Zwei\u2028Zeilen.", "Two lines."), (" Wo? ", "Where?")])
    expected = [pair("Zwei\u2028Zeilen.", "Two lines.", "de"), pair(" Wo? ", "Where?", "de")]
    # The source is the other language of the two, whatever config.build.sources says of larger sets.
    assert by_prompt(read_pairs([folder])) == by_prompt(expected)
    back = read_pairs([folder], Rendering("before", ("zh",), "de"))
    assert by_prompt(back) == by_prompt(
        [pair("Two lines.", "Zwei\u2028Zeilen.", "en", "de", "before"), pair("Where?", " Wo? ", "en", "de", "before")]
    )
    assert "no text in fr; set config.build.target to one of en de" in message_of(folder, Rendering(target="fr"))


def test_ted_multi_translate(tmp_path):
    folder = ted(
        tmp_path,
        [
            {"en": "Yes.", "de": "Ja.", "zh-cn": "是。", "nb": "Ja!"},
            {"en": "No.", "zh": "不。", "zh-cn": "不是。"},
            {"de": "Nein.", "zh": "没有。"},
        ],
    )
    assert by_prompt(read_pairs([folder])) == by_prompt(
        [pair("是。", "Yes.", "zh"), pair("Ja.", "Yes.", "de"), pair("不。", "No.", "zh")]
    )
    assert read_pairs([folder], Rendering(sources=("no",), target="zh")) == [pair("Ja!", "是。", "no", "zh")]
    assert "no translation from sw into en; set config.build.sources" in message_of(folder, Rendering(sources=("sw",)))
    assert "no translation from en into en" in message_of(folder, Rendering(sources=("en",)))


def test_xquad_is_joined_by_id(tmp_path):
    folder = xquad(tmp_path, "de", {"a": "Wer?", "b": "Was?", "c": "Wo?"})
    assert f"{tmp_path}/xquad/en/3.0.0 is needed beside it" in message_of(folder)
    english = xquad(tmp_path, "en", {"c": "Where?", "b": "What?", "a": "Who?"})
    expected = [pair("Wer?", "Who?", "de"), pair("Was?", "What?", "de"), pair("Wo?", "Where?", "de")]
    assert by_prompt(read_pairs([folder])) == by_prompt(expected)
    assert "needed beside it, in another language" in message_of(english)
    shutil.rmtree(english)
    xquad(tmp_path, "en", {"c": "Where?", "a": "Who?"})
    assert "field 'id': 'b' is not in" in message_of(folder)
    other = xquad(tmp_path, "ar", {"a": "?"})
    assert "unknown language 'ar'" in message_of(other)


def test_paws_x_wiki_is_the_paws_task(tmp_path):
    paws_x(tmp_path, "de", [("Er geht.", "Er ist weg.", 0), ("Sie ruft an.", "Sie telefoniert.", 1), ("A", "B", 0)])
    paws_x(tmp_path, "en", [("He goes.", "He is gone.", 0), ("She calls.", "She phones.", 1), ("A", "B", 0)])
    rows = {language: TaskData(tmp_path).rows(TASKS["paws"], language) for language in ("de", "en")}
    (call,) = [row for row in rows["de"] if row.fields == ("Sie ruft an.", "Sie telefoniert.")]
    assert call.answer == call.gold_class == "same"
    assert rows["en"][call.row].fields == ("She calls.", "She phones.")
    assert sorted(row.gold_class for row in rows["de"]) == ["different", "different", "same"]
    with pytest.raises(InputError, match="paws_x_wiki/sw: one prepared version is needed there, found none"):
        TaskData(tmp_path).rows(TASKS["paws"], "sw")
    with pytest.raises(InputError, match="no split 'train'; there are test"):
        TaskData(tmp_path).rows(TASKS["paws"], "de", split="train")
    assert "a data set of label, sentence1, sentence2; pairs are read from" in message_of(
        tmp_path / "paws_x_wiki" / "de" / "1.0.0"
    )


def test_other_splits_and_broken_copies_are_named(tmp_path):
    folder = opus(tmp_path, [("a", "b")])
    (record,) = folder.glob("*.array_record*")
    record.write_bytes(b"no records")
    assert "the data set does not load (" in message_of(folder)
    record.unlink()
    assert "the data set does not load (" in message_of(folder)
    xquad(tmp_path, "en", {"a": "Who?"})
    assert "no split 'test'; there are translate-train" in message_of(
        xquad(tmp_path, "de", {"a": "Wer?"}, "translate-train")
    )


def test_tensorflow_is_not_loaded(tmp_path):
    folder = ted(tmp_path, [{"en": "Yes.", "de": "Ja."}])
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from jaxalign.data.pairs import read_pairs\n"
        f"assert len(read_pairs([Path({str(folder)!r})])) == 1\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_other_names_of_languages(tmp_path):
    """TED has Chinese under three names and French under two, FLORES' tags are long ones."""
    names = {"zh-tw": "你們好。", "zh-cn": "你们好。", "fr-ca": "Bon matin.", "en": "Hello."}
    folder = ted(tmp_path, [names, {**names, "zh": "你好。", "fr": "Bonjour."}, {"zh-tw": "你們好。", "en": "Hello."}])
    found = read_pairs([folder], Rendering(sources=("zh", "fr")))
    assert by_prompt(found) == by_prompt(
        [pair(text, "Hello.", "zh") for text in ("你们好。", "你好。", "你們好。")]
        + [pair(text, "Hello.", "fr") for text in ("Bon matin.", "Bonjour.")]
    )
    flores = saved(tmp_path / "flores", [{"translation": {"deu_Latn": "Wo?", "eng_Latn": "Where?"}}])
    assert read_pairs([flores]) == [pair("Wo?", "Where?", "de")]
    german, english = xquad(tmp_path, "de", {"a": "Wer?"}), xquad(tmp_path, "en", {"a": "Who?"})
    for folder, name in ((german, "deu_Latn"), (english, "English")):
        folder.parent.rename(folder.parent.with_name(name))
    assert read_pairs([tmp_path / "xquad" / "deu_Latn" / german.name]) == [pair("Wer?", "Who?", "de")]


# Hugging Face

LANGUAGES = {"source_language": "de", "target_language": "en"}
BARE = {"source": " Wo? ", "target": "Where?", **LANGUAGES}


def saved(folder, rows, **options):
    datasets.Dataset.from_list(rows, **options).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (BARE, pair(" Wo? ", "Where?", "de")),
        ({"input": with_instruction("Wo?", "de", "en", "after"), "answer": "Where?"}, pair("Wo?", "Where?", "de")),
        ({"question": "1+1?", "answer": "2"}, QuestionPair("1+1?", "2", "en", "en")),
        (
            {"prompt": "P", "response": "R", "source_language": "sw", "target_language": "zh"},
            QuestionPair("P", "R", "sw", "zh"),
        ),
        ({"translation": {"de": "Wo?", "en": "Where?"}}, pair("Wo?", "Where?", "de")),
        # Two texts with their languages come before a question and its answer (LLaMA-Factory 7577, 3247).
        ({**BARE, "question": "1+1?", "answer": "2", "translation": None}, pair(" Wo? ", "Where?", "de")),
        (
            {"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R\r"}], **LANGUAGES},
            QuestionPair("P", "R", "de", "en"),
        ),
    ],
)
def test_hugging_face_rows(tmp_path, row, expected):
    assert read_pairs([saved(tmp_path / "set", [row, row])]) == [expected, expected]


def test_hugging_face_translation_features_and_splits(tmp_path):
    features = datasets.Features({"translation": datasets.Translation(languages=["en", "fr"])})
    rows = datasets.Dataset.from_list([{"translation": {"en": "Where?", "fr": "Où ?"}}], features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "both")
    assert read_pairs([tmp_path / "both"]) == [pair("Où ?", "Where?", "fr")]
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "test")
    assert "no split 'train'; there are test" in message_of(tmp_path / "test")
    assert read_pairs([tmp_path / "test" / "test"]) == [pair("Où ?", "Where?", "fr")]


def test_hugging_face_rows_that_contradict_themselves_are_refused(tmp_path):
    rows = [{"question": "1+1?", "answer": "2", "language": language} for language in ("en", None, "de")]
    message = message_of(saved(tmp_path / "set", rows))
    assert (
        "set, row 2: question and answer are read as en into en, an English question and its answer, but language is de"
        in message
    )
    message = message_of(saved(tmp_path / "both", [{**BARE, "prompt": "P", "response": "R"}]))
    assert "row 0: the pair may be source and target, or prompt and response" in message


def test_llama_factory_s_folder_is_told_from_a_data_set(tmp_path):
    """Its dataset_info.json is a list of data sets, and the files have pairs."""
    described = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "input", "response": "answer"}},
        "hub": {"hf_hub_url": "org/set", "formatting": "sharegpt"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    rows = [{"input": with_instruction("Wo?", "de", "en", "after"), "answer": "Where?"}]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    message = message_of(tmp_path)
    assert "LLaMA-Factory" in message and "TFDS" not in message
    assert read_pairs([tmp_path / "mine.json"]) == [pair("Wo?", "Where?", "de")]


def test_bad_hugging_face_sets_are_named(tmp_path, monkeypatch):
    folder = saved(tmp_path / "set", [BARE, {**BARE, "target": None}])
    assert f"{folder}, row 1, field 'target': text is needed, found null" in message_of(folder)
    other = saved(tmp_path / "other", [{"text": "x"}])
    assert "a data set of text; pairs are read from" in message_of(other)
    next(folder.glob("*.arrow")).write_bytes(b"no arrow")
    assert "the data set does not load (" in message_of(folder)
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    assert "pip install 'jaxalign[datasets]'" in message_of(folder)
