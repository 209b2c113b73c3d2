import json

import pytest

from jaxalign.data import tasks
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import (
    TASKS,
    TaskData,
    TaskRow,
    correct_by_class,
    correct_by_reference,
    parse_rows,
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
    rows = TaskData(data).rows(TASKS["emotion"], "de")
    assert [(row.row, row.fields, row.answer, row.gold_class) for row in rows] == [
        (0, ("Ganz gut, wirklich.",), "positiv", "positive"),
        (1, ("Nie wieder.",), "negativ", "negative"),
    ]
    assert TaskData(data).rows(TASKS["emotion"], "en")[0].fields == ("Fine, really. ",)
    (second,) = TaskData(data).rows(TASKS["emotion"], "de", slice(1, 50))
    assert (second.task, second.language, second.row) == ("emotion", "de", 1)
    assert task_named("snli") is TASKS["snli"]
    with pytest.raises(InputError, match="no task 'pawz'; did you mean 'paws'"):
        task_named("pawz")


def test_each_file_is_read_once(data, monkeypatch):
    read, calls = tasks.read_task_file, []
    monkeypatch.setattr(tasks, "read_task_file", lambda file, *args: calls.append(file.name) or read(file, *args))
    files = TaskData(data)
    for _ in range(2):
        for language in ("de", "en", "German"):
            assert len(files.rows(TASKS["emotion"], language, slice(0, 1))) == 1
    assert sorted(calls) == ["emotion_de500_test.json", "emotion_en500_test.json"]


def test_exchanged_norwegian_words_are_corrected_by_the_english_row(tmp_path):
    pair = {"premise": "A", "hypothesis": "B"}
    write(tmp_path / "snli", "snli_en600_test.json", [pair | {"answer": "neutral"}, pair | {"answer": "contradiction"}])
    write(tmp_path / "snli", "snli_no600_test.json", [pair | {"answer": "motsigelse"}, pair | {"answer": "nøytral"}])
    rows = TaskData(tmp_path).rows(TASKS["snli"], "no")
    assert [(row.answer, row.gold_class) for row in rows] == [("motsigelse", "neutral"), ("nøytral", "contradiction")]


def test_train_files_may_say_yes_and_no_or_nothing(tmp_path):
    pair = {"sentence1": "A", "sentence2": "B"}
    rows = [pair | {"answer": "yes"}, pair | {"answer": "no"}, pair]
    write(tmp_path / "paws", "paws_en10k_train.json", rows)
    read = TaskData(tmp_path).rows(TASKS["paws"], "en", split="train")
    assert [(row.answer, row.gold_class) for row in read] == [("yes", "same"), ("no", "different"), ("", "")]
    write(tmp_path / "paws", "paws_en500_test.json", rows)
    with pytest.raises(InputError, match="row 0, field 'answer': 'yes' is no label word"):
        TaskData(tmp_path).rows(TASKS["paws"], "en")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "an array of rows is needed, found an empty one"),
        ("x", "an array is needed, found"),
        ([EMOTION_DE[0], "x"], 'row 1: an object is needed, found "x"'),
        ([EMOTION_DE[0], {"text": "x", "answer": "positiv"}], "row 1: no field 'input'; there are 'text', 'answer'"),
        ([EMOTION_DE[0], {"input": "x", "answer": "positive"}], "row 1, field 'answer': 'positive' is no label word"),
        (EMOTION_DE[:1], "emotion_en500_test.json has 2; row i must be the same item"),
    ],
)
def test_bad_files_are_named(data, rows, message):
    write(data / "ap_emotion", "emotion_de500_test.json", rows)
    with pytest.raises(InputError) as error:
        # Rows that were not chosen are checked too.
        TaskData(data).rows(TASKS["emotion"], "de", slice(0, 1))
    assert message in str(error.value)
    assert "emotion_de500_test.json" in str(error.value) and "\n" not in str(error.value)


def test_one_object_a_line_is_read_as_an_array_is(data):
    """As for files of pairs (LLaMA-Factory's and the hub's .json files are of both kinds)."""
    expected = TaskData(data).rows(TASKS["emotion"], "de")
    file = data / "ap_emotion" / "emotion_de500_test.json"
    text = "".join(json.dumps(row) + "\r\n" for row in EMOTION_DE)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert TaskData(data).rows(TASKS["emotion"], "de") == expected
    file.write_text(text + '{"input": "x", "answer": "positive"}\n{"input"', encoding="utf-8")
    with pytest.raises(InputError, match=r"row 2, field 'answer': 'positive' is no label word.*\(and 1 more"):
        TaskData(data).rows(TASKS["emotion"], "de")


def test_missing_and_doubled_files(data):
    with pytest.raises(InputError, match=r"no emotion_sw\[ROWS\]_test.json"):
        TaskData(data).rows(TASKS["emotion"], "sw")
    write(data / "ap_emotion", "emotion_de2_test.json", EMOTION_DE)
    with pytest.raises(InputError, match=r"emotion_de2_test.json and emotion_de500_test.json both match"):
        TaskData(data).rows(TASKS["emotion"], "de")
    (data / "ap_emotion" / "emotion_de2_test.json").unlink()
    (data / "ap_emotion" / "emotion_en500_test.json").unlink()
    with pytest.raises(InputError, match=r"emotion_de500_test.json: its classes come from the English file"):
        TaskData(data).rows(TASKS["emotion"], "de")


def test_row_ranges(data):
    assert parse_rows("0:50") == slice(0, 50)
    assert parse_rows("all") == slice(None)
    for bad in ("", "5", "5:5", "7:3", "-1:5", "0:5:2", "a:b", ":5"):
        with pytest.raises(InputError, match="START:STOP"):
            parse_rows(bad)
    with pytest.raises(InputError, match="no row in 7:9; the file has 2"):
        TaskData(data).rows(TASKS["emotion"], "de", slice(7, 9))


def test_files_of_other_names_of_a_language(data):
    """The rows have the study's code; two names of one language are two files of it."""
    for name in ("zh-CN", "zho_Hans"):
        rows = [row | {"answer": word} for row, word in zip(EMOTION_EN, ("积极", "消极"), strict=True)]
        file = data / "ap_emotion" / f"emotion_{name}2_test.json"
        write(file.parent, file.name, rows)
        for asked in ("zh", "zh-CN", "Chinese"):
            assert [row.language for row in TaskData(data).rows(TASKS["emotion"], asked)] == ["zh"] * 2
        if name == "zh-CN":
            file.unlink()
    write(data / "ap_emotion", "emotion_zh-CN2_test.json", EMOTION_EN)
    with pytest.raises(InputError, match=r"emotion_zh-CN2_test.json and emotion_zho_Hans2_test.json both match"):
        TaskData(data).rows(TASKS["emotion"], "zh")
    named = task_file_named(data / "snli_de12_test.json")
    assert named is not None and (named.task.name, named.language, named.split) == ("snli", "de", "test")
    for other in ("snli_de12_test.jsonl", "snli_tr12_test.json", "emotion_es-4195_test.json", "snli_de_test.json"):
        assert task_file_named(data / other) is None


WORDS = {"en": ("positive", "negative"), "de": ("positiv", "negativ")}
CLASSES = [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0]


def answered(folder, language, classes):
    rows = [{"input": f"{language} {row}", "answer": WORDS[language][each]} for row, each in enumerate(classes)]
    write(folder / "ap_emotion", f"emotion_{language}{len(rows)}_test.json", rows)


def read_german(folder, english, german):
    answered(folder, "en", english)
    answered(folder, "de", german)
    return TaskData(folder).rows(TASKS["emotion"], "de")


@pytest.mark.parametrize(
    ("german", "message"),
    [
        # A row is missing at the beginning, or in the middle; the words are exchanged.
        ([*CLASSES[1:], 0], r"12 of 20 answers contradict .*\(the first in row 1: 'negativ' beside 'positive'\)"),
        ([*CLASSES[:8], *CLASSES[9:], 1], "9 of 20 answers contradict"),
        ([1 - each for each in CLASSES], "20 of 20 answers contradict"),
    ],
)
def test_rows_of_other_items_are_refused(tmp_path, german, message):
    with pytest.raises(InputError, match=rf"emotion_de20_test.json: {message}") as error:
        read_german(tmp_path, CLASSES, german)
    assert "row i must be the same item in both" in str(error.value)


def test_rows_one_further_are_refused_in_a_file_sorted_by_class(tmp_path):
    """Where one answer alone contradicts the English row."""
    with pytest.raises(InputError, match="1 of 40 answers contradict"):
        read_german(tmp_path, [0] * 20 + [1] * 20, [0] * 19 + [1] * 21)


def test_a_few_wrong_labels_are_warned_of_once_with_their_number(tmp_path, capsys):
    german = [*CLASSES]
    for row in (4, 17):
        german[row] = 1 - german[row]
    for _ in range(2):
        rows = read_german(tmp_path, CLASSES, german)
    assert [row.gold_class for row in rows] == [WORDS["en"][each] for each in CLASSES]
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/ap_emotion/emotion_de20_test.json: 2 of 20 answers contradict the English rows (the "
        "first in row 4: 'positiv' beside 'negative'); corrected scoring goes by the English row\n"
    )


@pytest.mark.parametrize("words", [{}, TASKS["snli"].file_words["no"]])
def test_norwegian_words_may_be_the_scripts_or_the_released_files_but_not_some_of_each(tmp_path, capsys, words):
    snli = TASKS["snli"]
    own = {**snli.label_words["no"], **words}
    golds = [snli.classes[row % 3] for row in range(12)]
    for language, answers in (("en", golds), ("no", [own[gold] for gold in golds])):
        rows = [{"premise": "p", "hypothesis": f"h {row}", "answer": answer} for row, answer in enumerate(answers)]
        write(tmp_path / "snli", f"snli_{language}12_test.json", rows)
    assert [row.gold_class for row in TaskData(tmp_path).rows(snli, "no")] == golds
    assert capsys.readouterr().err == ""
    for row in rows[:6]:
        row["answer"] = {"nøytral": "motsigelse", "motsigelse": "nøytral"}.get(row["answer"], row["answer"])
    write(tmp_path / "snli", "snli_no12_test.json", rows)
    with pytest.raises(InputError, match="4 of 12 answers contradict"):
        TaskData(tmp_path).rows(snli, "no")
