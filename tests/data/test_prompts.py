import json

import pytest

from jaxalign.data.prompts import few_shot_prompt, label_words, question, read_exemplars
from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.errors import InputError

DOCUMENT = {
    "_format": "notes",
    "emotion": {
        "de": {
            "exemplars": [
                {"text": "Ein Fest.", "label": "positive", "trailing": "  "},
                {"text": "Ein Graus.", "label": "negative"},
            ],
            "keywords": {"text": "", "answer": "Emotion: "},
            "anything": "else",
        }
    },
    "snli": {
        "zh": {
            "exemplars": [
                {
                    "premise": "有人骑车。",
                    "hypothesis": "没有人。",
                    "label": "contradiction",
                    "overrides": {"premise": "前提：", "answer": "答: "},
                }
            ]
        }
    },
}
REVIEW = TaskRow("emotion", "de", 0, ("Nie wieder. ",), "negativ", "negative")


@pytest.fixture
def exemplars(tmp_path):
    return read_exemplars(written(tmp_path, DOCUMENT))


def written(folder, document):
    file = folder / "exemplars.json"
    file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return file


def test_english_labels_in_a_german_prompt(exemplars):
    assert few_shot_prompt(REVIEW, exemplars, "english") == (
        'Ein Fest.\nEmotion: "positive"  \nEin Graus.\nEmotion: "negative"\nNie wieder. \nEmotion: "'
    )


def test_in_language_labels(exemplars):
    assert few_shot_prompt(REVIEW, exemplars, "in_language") == (
        'Ein Fest.\nEmotion: "positiv"  \nEin Graus.\nEmotion: "negativ"\nNie wieder. \nEmotion: "'
    )
    assert label_words(TASKS["emotion"], "sw", "in_language") == {"positive": "chanya", "negative": "hasi"}


def test_overrides_change_the_exemplar_and_not_the_query(exemplars):
    row = TaskRow("snli", "zh", 0, ("狗跑。", "猫睡。"), "矛盾", "contradiction")
    assert few_shot_prompt(row, exemplars, "english") == (
        '前提：有人骑车。\n假设: 没有人。\n答: "contradiction"\n前提: 狗跑。\n假设: 猫睡。\n答案: "'
    )


def test_a_question_ends_with_its_open_quote():
    assert question(TASKS["paws"], "it", ("a", "b")) == 'Frase 1: a\nFrase 2: b\nRisposta: "'


def test_in_language_is_for_emotion_only(exemplars):
    row = TaskRow("snli", "zh", 0, ("a", "b"), "矛盾", "contradiction")
    with pytest.raises(InputError, match="emotion only, not for snli"):
        few_shot_prompt(row, exemplars, "in_language")


def test_a_missing_cell_is_named(exemplars):
    with pytest.raises(InputError, match=r"exemplars.json: no exemplars for task 'emotion' in language 'sw'"):
        few_shot_prompt(TaskRow("emotion", "sw", 0, ("a",), "chanya", "positive"), exemplars, "english")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "an object of tasks is needed"),
        ({"emotoin": {}}, "no task 'emotoin'; did you mean 'emotion'"),
        ({"emotion": []}, "emotion: an object of languages is needed"),
        ({"emotion": {"ge": {}}}, "emotion, ge: unknown language 'ge'"),
        ({"emotion": {"de": {"exemplars": []}}}, "emotion, de: an object with a non-empty array 'exemplars'"),
        ({"emotion": {"de": {"exemplars": [3]}}}, "exemplar 0: an object is needed"),
        ({"emotion": {"de": {"exemplars": [{"input": "x", "label": "positive"}]}}}, "exemplar 0, field 'text'"),
        (
            {"emotion": {"de": {"exemplars": [{"text": "x", "label": "positiv"}]}}},
            "'positiv' is none of positive, nega",
        ),
        (
            {"emotion": {"de": {"exemplars": [{"text": "x", "label": "positive", "overrides": {"input": "y"}}]}}},
            "field 'overrides': an object of answer, text is needed",
        ),
        (
            {"emotion": {"de": {"exemplars": [{"text": "x", "label": "positive", "trailing": 3}]}}},
            "overrides and trailing must be text",
        ),
        (
            {"emotion": {"de": DOCUMENT["emotion"]["de"] | {"keywords": {"text": "", "answer": "Gefühl: "}}}},
            "differ from the task's cues",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, document, message):
    with pytest.raises(InputError) as error:
        read_exemplars(written(tmp_path, document))
    assert message in str(error.value) and "\n" not in str(error.value)
