import json

import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import (
    TASKS,
    TaskRow,
    correct_by_class,
    correct_by_reference,
    parse_rows,
    read_task_rows,
    task_file_named,
    task_named,
)
from jaxalign.errors import InputError

ALL = slice(None)
EMOTION_EN = [{"input": "Fine, really. ", "answer": "positive"}, {"input": "Never again.", "answer": "negative"}]
EMOTION_DE = [{"input": "Ganz gut, wirklich.", "answer": "positiv"}, {"input": "Nie wieder.", "answer": "negativ"}]


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "ap_emotion", "emotion_en500_test.json", EMOTION_EN)
    write(tmp_path / "ap_emotion", "emotion_de500_test.json", EMOTION_DE)
    return tmp_path


def test_tables_are_complete():
    for task in TASKS.values():
        assert list(task.cues) == list(task.label_words) == list(LANGUAGES)
        for language in LANGUAGES:
            assert set(task.cues[language]) == {*task.fields, "answer"}
            assert tuple(task.label_words[language]) == task.classes
            assert task.cues[language]["answer"].endswith(": ")
            assert len(set(task.label_words[language].values())) == len(task.classes)
        assert tuple(task.label_words["en"].values()) == task.classes
    assert TASKS["snli"].file_words["no"] == {"neutral": "motsigelse", "contradiction": "nøytral"}
    assert set(TASKS["snli"].file_words) == {"ja", "no", "bn"}


def test_no_label_word_starts_another():
    """So "starts with the gold", as the in-language script asks, is "is the gold"; and no word is only a start."""
    for task in TASKS.values():
        for language in LANGUAGES:
            for words in (
                task.label_words[language],
                {**task.label_words[language], **task.file_words.get(language, {})},
            ):
                assert not any(a != b and a.startswith(b) for a in words.values() for b in words.values())


def test_the_two_rules_part_where_file_and_script_differ():
    snli = TASKS["snli"]
    # The Norwegian file says the contradiction word in neutral rows, the script's neutral word in contradictions.
    neutral = TaskRow("snli", "no", 0, ("A", "B"), "motsigelse", "neutral")
    assert correct_by_class(neutral, "neutral") and not correct_by_reference(snli, neutral, "neutral")
    assert correct_by_reference(snli, neutral, "contradiction") and not correct_by_class(neutral, "contradiction")
    sure = TaskRow("snli", "no", 1, ("A", "B"), "entailment", "entailment")
    assert correct_by_class(sure, "entailment") and correct_by_reference(snli, sure, "entailment")
    # Japanese neutral has a word in the file that the script never says.
    unknown = TaskRow("snli", "ja", 0, ("A", "B"), "中性", "neutral")
    assert not any(correct_by_reference(snli, unknown, name) for name in snli.classes)
    same = TaskRow("paws", "ja", 0, ("A", "B"), "same", "same")
    assert correct_by_reference(TASKS["paws"], same, "same") and not correct_by_reference(
        TASKS["paws"], same, "different"
    )


def test_rows_keep_text_and_take_their_class_from_english(data):
    rows = read_task_rows(data, TASKS["emotion"], "de", "test", ALL)
    assert [(row.row, row.fields, row.answer, row.gold_class) for row in rows] == [
        (0, ("Ganz gut, wirklich.",), "positiv", "positive"),
        (1, ("Nie wieder.",), "negativ", "negative"),
    ]
    assert read_task_rows(data, TASKS["emotion"], "en", "test", ALL)[0].fields == ("Fine, really. ",)
    (second,) = read_task_rows(data, TASKS["emotion"], "de", "test", slice(1, 50))
    assert (second.task, second.language, second.row) == ("emotion", "de", 1)


def test_exchanged_norwegian_words_are_corrected_by_the_english_row(tmp_path):
    pair = {"premise": "A", "hypothesis": "B"}
    write(tmp_path / "snli", "snli_en600_test.json", [pair | {"answer": "neutral"}, pair | {"answer": "contradiction"}])
    write(tmp_path / "snli", "snli_no600_test.json", [pair | {"answer": "motsigelse"}, pair | {"answer": "nøytral"}])
    rows = read_task_rows(tmp_path, TASKS["snli"], "no", "test", ALL)
    assert [(row.answer, row.gold_class) for row in rows] == [("motsigelse", "neutral"), ("nøytral", "contradiction")]


def test_train_files_may_say_yes_and_no_or_nothing(tmp_path):
    pair = {"sentence1": "A", "sentence2": "B"}
    rows = [pair | {"answer": "yes"}, pair | {"answer": "no"}, pair]
    write(tmp_path / "paws", "paws_en10k_train.json", rows)
    read = read_task_rows(tmp_path, TASKS["paws"], "en", "train", ALL)
    assert [(row.answer, row.gold_class) for row in read] == [("yes", "same"), ("no", "different"), ("", "")]
    write(tmp_path / "paws", "paws_en500_test.json", rows)
    with pytest.raises(InputError, match="row 0, field 'answer': 'yes' is no label word"):
        read_task_rows(tmp_path, TASKS["paws"], "en", "test", ALL)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "JSON array of rows is needed, found an empty array"),
        ({"input": "x"}, "JSON array of rows is needed, found an object"),
        ([EMOTION_DE[0], "x"], "row 1: an object is needed, found text"),
        ([EMOTION_DE[0], {"text": "x", "answer": "positiv"}], "row 1: no field 'input'; the row has 'text', 'answer'"),
        ([EMOTION_DE[0], {"input": 3, "answer": "positiv"}], "row 1, field 'input': text is needed, found a number"),
        ([EMOTION_DE[0], {"input": " \n", "answer": "positiv"}], "row 1, field 'input': empty"),
        ([EMOTION_DE[0], {"input": "x"}], "row 1: no field 'answer'"),
        ([EMOTION_DE[0], {"input": "x", "answer": "positive"}], "row 1, field 'answer': 'positive' is no label word"),
        (EMOTION_DE[:1], "emotion_en500_test.json has 2; row i must be the same item"),
    ],
)
def test_bad_files_are_named(data, rows, message):
    write(data / "ap_emotion", "emotion_de500_test.json", rows)
    with pytest.raises(InputError) as error:
        # Rows that were not chosen are checked too.
        read_task_rows(data, TASKS["emotion"], "de", "test", slice(0, 1))
    assert message in str(error.value)
    assert "emotion_de500_test.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_and_doubled_files(data):
    with pytest.raises(InputError, match=r"no emotion_sw\[ROWS\]_test.json"):
        read_task_rows(data, TASKS["emotion"], "sw", "test", ALL)
    write(data / "ap_emotion", "emotion_de2_test.json", EMOTION_DE)
    with pytest.raises(InputError, match=r"emotion_de2_test.json and emotion_de500_test.json both match"):
        read_task_rows(data, TASKS["emotion"], "de", "test", ALL)
    (data / "ap_emotion" / "emotion_de2_test.json").unlink()
    (data / "ap_emotion" / "emotion_en500_test.json").unlink()
    with pytest.raises(InputError, match=r"emotion_de500_test.json: its classes come from the English file"):
        read_task_rows(data, TASKS["emotion"], "de", "test", ALL)


def test_row_ranges(data):
    assert parse_rows("0:50") == slice(0, 50)
    assert parse_rows("all") == slice(None)
    for bad in ("", "5", "5:5", "7:3", "-1:5", "0:5:2", "a:b", ":5"):
        with pytest.raises(InputError, match="START:STOP"):
            parse_rows(bad)
    with pytest.raises(InputError, match="no row in 7:9; the file has 2"):
        read_task_rows(data, TASKS["emotion"], "de", "test", slice(7, 9))


def test_unknown_task_is_named():
    assert task_named("snli") is TASKS["snli"]
    with pytest.raises(InputError, match="no task 'pawz'; did you mean 'paws'"):
        task_named("pawz")


def test_files_of_other_names_of_a_language(data):
    """The rows have the study's code; two names of one language are two files of it."""
    for name in ("zh-CN", "zho_Hans"):
        rows = [row | {"answer": word} for row, word in zip(EMOTION_EN, ("积极", "消极"), strict=True)]
        file = data / "ap_emotion" / f"emotion_{name}2_test.json"
        write(file.parent, file.name, rows)
        for asked in ("zh", "zh-CN", "Chinese"):
            assert [row.language for row in read_task_rows(data, TASKS["emotion"], asked, "test", ALL)] == ["zh"] * 2
        if name == "zh-CN":
            file.unlink()
    write(data / "ap_emotion", "emotion_zh-CN2_test.json", EMOTION_EN)
    with pytest.raises(InputError, match=r"emotion_zh-CN2_test.json and emotion_zho_Hans2_test.json both match"):
        read_task_rows(data, TASKS["emotion"], "zh", "test", ALL)
    assert task_file_named(data / "emotion_es-4195_test.json") is None
    assert task_file_named(data / "emotion_tr500_test.json") is None
