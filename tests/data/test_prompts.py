import json

import pytest

from jaxalign.data.prompts import (
    MENDED_CUES,
    Exemplar,
    differences,
    differences_table,
    few_shot_prefix,
    few_shot_prompt,
    label_words,
    question,
    read_exemplars,
    variants_of,
)
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
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("english", ("positive", "negative")),
        ("in_language", ("positiv", "negativ")),
        ("irrelevant", ("ox", "horse")),  # English in every language
    ],
)
def test_the_words_of_a_variant_in_a_german_prompt(exemplars, variant, words):
    assert few_shot_prompt(REVIEW, exemplars, variant) == (
        f'Ein Fest.\nEmotion: "{words[0]}"  \nEin Graus.\nEmotion: "{words[1]}"\nNie wieder. \nEmotion: "'
    )


def test_overrides_change_the_exemplar_and_not_the_query(exemplars):
    row = TaskRow("snli", "zh", 0, ("狗跑。", "猫睡。"), "矛盾", "contradiction")
    assert few_shot_prompt(row, exemplars, "english") == (
        '前提：有人骑车。\n假设: 没有人。\n答: "contradiction"\n前提: 狗跑。\n假设: 猫睡。\n答案: "'
    )


def test_only_emotion_has_other_labels_than_english():
    assert variants_of(TASKS["emotion"]) == ("english", "in_language", "irrelevant")
    assert variants_of(TASKS["snli"]) == variants_of(TASKS["paws"]) == ("english",)
    for variant in ("in_language", "irrelevant"):
        with pytest.raises(InputError, match=f"snli has no {variant} labels; choose english"):
            label_words(TASKS["snli"], "zh", variant)


def test_mended_prompts_drop_the_slips_of_exemplars(exemplars):
    assert few_shot_prefix(TASKS["emotion"], "de", exemplars, "english", "mended") == (
        'Ein Fest.\nEmotion: "positive"\nEin Graus.\nEmotion: "negative"'
    )
    row = TaskRow("snli", "zh", 0, ("狗跑。", "猫睡。 "), "矛盾", "contradiction")
    assert few_shot_prompt(row, exemplars, "english", "mended") == (
        '前提: 有人骑车。\n假设: 没有人。\n答案: "contradiction"\n前提: 狗跑。\n假设: 猫睡。 \n答案: "'
    )


def test_mended_cues_are_said_in_every_item(tmp_path):
    shown = {"sentence1": "A", "sentence2": "B", "label": "same"}
    exemplars = read_exemplars(written(tmp_path, {"paws": {"ru": {"exemplars": [shown]}}}))
    row = TaskRow("paws", "ru", 0, ("C", "D"), "same", "same")
    assert few_shot_prompt(row, exemplars, "english", "mended") == (
        'Предложение 1: A\nПредложение 2: B\nОтвет: "same"\nПредложение 1: C\nПредложение 2: D\nОтвет: "'
    )
    # What the training questions say is the study's.
    assert question(TASKS["paws"], "ru", ("C", "D")) == 'Приговор 1: C\nПриговор 2: D\nОтветить: "'


def test_every_mended_cue_replaces_one_of_a_task():
    for (task, language, where), mended in MENDED_CUES.items():
        study = TASKS[task].cues[language][where]
        assert mended != study and mended.endswith(": ") and mended[0].isupper()
        # Numbered cues keep their number.
        assert [character for character in mended if character.isdigit()] == [c for c in study if c.isdigit()]


def test_differences_are_those_of_the_rendered_prompts(exemplars):
    assert [(item.where, item.study, item.mended) for item in differences(exemplars)] == [
        ("exemplar 1, after the answer", "  ", ""),
        ("exemplar 1, premise cue", "前提：", "前提: "),
        ("exemplar 1, answer cue", "答: ", "答案: "),
    ]
    assert differences_table(exemplars).startswith(
        "| task | language | where | study | mended |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| emotion | de | exemplar 1, after the answer | `␣␣` | nothing |\n"
        "| snli | zh | exemplar 1, premise cue | `前提：` | `前提:␣` |\n"
        "| snli | zh | exemplar 1, answer cue | `答:␣` | `答案:␣` |\n\n"
    )


def test_a_missing_cell_is_named(exemplars):
    with pytest.raises(InputError, match=r"exemplars.json: no exemplars for task 'emotion' in language 'sw'"):
        few_shot_prompt(TaskRow("emotion", "sw", 0, ("a",), "chanya", "positive"), exemplars, "english")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "an object is needed"),
        ({"emotoin": {}}, "no task 'emotoin'; did you mean 'emotion'"),
        ({"emotion": []}, "emotion: an object is needed"),
        ({"emotion": {"ge": {}}}, "emotion: unknown language 'ge'"),
        ({"emotion": {"de": {"exemplars": []}}}, "emotion, de, field 'exemplars': it is empty"),
        ({"emotion": {"de": {"exemplars": [3]}}}, "exemplar 0: an object is needed"),
        ({"emotion": {"de": {"exemplars": [{"input": "x", "label": "positive"}]}}}, "exemplar 0: no field 'text'"),
        (
            {"emotion": {"de": {"exemplars": [{"text": " \n\u200b", "label": "positive"}]}}},
            "exemplar 0, field 'text': no visible character in ' \\n\\u200b'; write the exemplar's own",
        ),
        (
            {"emotion": {"de": {"exemplars": [{"text": "x\ud800", "label": "positive"}]}}},
            "exemplar 0, field 'text': '\\ud800' is half a character",
        ),
        (
            {"emotion": {"de": {"exemplars": [{"text": "x", "label": "positive", "trailing": "\udc00"}]}}},
            "exemplar 0, field 'trailing': '\\udc00' is half a character",
        ),
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
            "field 'trailing': text is needed, found 3",
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


def test_marks_of_the_file_are_no_text(tmp_path):
    file = written(tmp_path, DOCUMENT)
    expected = read_exemplars(file).cells
    text = file.read_text(encoding="utf-8")
    file.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode("utf-8"))
    assert read_exemplars(file).cells == expected
    exemplar = {"text": "\ufeffx\r", "label": "positive", "trailing": " \r", "overrides": {"answer": "Gefühl: \r"}}
    file = written(tmp_path, {"emotion": {"de": {"exemplars": [exemplar]}}})
    assert read_exemplars(file).of("emotion", "de") == (Exemplar(("x",), "positive", {"answer": "Gefühl: "}, " "),)


def test_exemplars_of_other_names_of_a_language(tmp_path):
    german = DOCUMENT["emotion"]["de"]
    found = read_exemplars(written(tmp_path, {"emotion": {"deu_Latn": german}}))
    assert found.cells == {("emotion", "de"): read_exemplars(written(tmp_path, DOCUMENT)).of("emotion", "de")}
    with pytest.raises(InputError, match=r"exemplars.json, emotion: 'German' and an entry before it are one language"):
        read_exemplars(written(tmp_path, {"emotion": {"de": german, "German": german}}))
