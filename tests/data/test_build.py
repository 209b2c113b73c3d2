import json
from collections import Counter

import pytest

from jaxalign.data.build import build_examples, write_pairs
from jaxalign.data.pairs import languages_of, read_pairs
from jaxalign.data.tasks import TASKS
from jaxalign.errors import InputError

ROWS = 12
LABELS = ["entailment", "neutral", "contradiction"]
WORDS = {"en": LABELS, "de": ["Konsequenz", "neutral", "Widerspruch"], "zh": ["蕴含", "中立", "矛盾"]}


@pytest.fixture
def data(tmp_path):
    """SNLI in three languages, 12 rows; the last row has no answer anywhere, rows 3 and 4 read the same in English."""
    for language, words in WORDS.items():
        rows = [
            {"premise": f"{language} p{row}", "hypothesis": f"{language} h{row}", "answer": words[row % 3]}
            for row in range(ROWS)
        ]
        if language == "en":
            rows[4] |= {"premise": rows[3]["premise"], "hypothesis": rows[3]["hypothesis"]}
        del rows[-1]["answer"]
        write(tmp_path, "snli", f"snli_{language}{ROWS}_train.json", rows)
    return tmp_path


def write(data, folder, name, rows):
    (data / folder).mkdir(exist_ok=True)
    (data / folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def test_one_source_in_file_order(data):
    pairs = build_examples(data, TASKS["snli"], ["de"])
    assert len(pairs) == ROWS
    assert pairs[0].prompt == (
        'Prämisse: de p0\nHypothese: de h0\nAntwort: "\nTranslate the input from German to English:\n'
    )
    assert [pair.response for pair in pairs[:3]] == [
        f'Premise: en p{row}\nHypothesis: en h{row}\nAnswer: "' for row in range(3)
    ]
    assert build_examples(data, TASKS["snli"], ["de"], rows=slice(2, 5), seed=7) == pairs[2:5]


def test_any_target_with_its_own_cues(data):
    pair = build_examples(data, TASKS["snli"], ["en"], "zh", instruction="before")[2]
    assert pair.prompt == (
        'Translate the following sentences from English to Chinese. Premise: en p2\nHypothesis: en h2\nAnswer: "'
    )
    assert pair.response == '前提: zh p2\n假设: zh h2\n答案: "'


def test_emotion_and_paws_follow_the_pattern(tmp_path):
    for language, word in (("en", "positive"), ("it", "positivo")):
        write(tmp_path, "ap_emotion", f"emotion_{language}1_train.json", [{"input": f"{language}.", "answer": word}])
        paws = [{"sentence1": f"{language} a", "sentence2": f"{language} b", "answer": "yes"}]
        write(tmp_path, "paws", f"paws_{language}1_train.json", paws)
    (emotion,) = build_examples(tmp_path, TASKS["emotion"], ["it"])
    assert emotion.prompt == 'it.\nEmozione: "\nTranslate the input from Italian to English:\n'
    assert emotion.response == 'en.\nEmotion: "'
    (paws,) = build_examples(tmp_path, TASKS["paws"], ["it"])
    assert paws.prompt == 'Frase 1: it a\nFrase 2: it b\nRisposta: "\nTranslate the input from Italian to English:\n'
    (answer,) = build_examples(tmp_path, TASKS["paws"], ["en"], control="answers")
    assert (answer.prompt, answer.response) == ('Sentence 1: en a\nSentence 2: en b\nAnswer: "', 'same"')


def test_a_mixture_is_the_shuffled_union(data):
    task = TASKS["snli"]
    mixture = build_examples(data, task, ["zh", "de"], rows=slice(0, 10), seed=1)
    union = [pair for source in ("zh", "de") for pair in build_examples(data, task, [source], rows=slice(0, 10))]
    assert mixture != union and Counter(mixture) == Counter(union)
    assert mixture == build_examples(data, task, ["zh", "de"], rows=slice(0, 10), seed=1)
    assert mixture != build_examples(data, task, ["zh", "de"], rows=slice(0, 10), seed=2)
    assert languages_of(mixture) == ["en", "zh", "de"]


def test_controls_without_translation(data):
    copied = build_examples(data, TASKS["snli"], ["en"], control="copy")
    assert copied[1].prompt == copied[1].response + "\nTranslate the input from English to English:\n"
    pairs = build_examples(data, TASKS["snli"], ["en"], control="answers")
    assert (
        languages_of(copied) == languages_of(pairs) == ["en"] and len(pairs) == ROWS - 1
    )  # of which one has no answer
    assert (pairs[2].prompt, pairs[2].response) == ('Premise: en p2\nHypothesis: en h2\nAnswer: "', 'contradiction"')


@pytest.mark.parametrize("seed", range(20))
def test_mispairing_moves_every_target(data, seed):
    task = TASKS["snli"]
    true = build_examples(data, task, ["de"])
    pairs = build_examples(data, task, ["de"], control="mispaired", seed=seed)
    assert [pair.prompt for pair in pairs] == [pair.prompt for pair in true]
    assert Counter(pair.response for pair in pairs) == Counter(pair.response for pair in true)
    # By text: rows 3 and 4 share theirs, and neither may get the other's.
    assert all(pair.response != own.response for pair, own in zip(pairs, true, strict=True))
    assert pairs == build_examples(data, task, ["de"], control="mispaired", seed=seed)
    assert pairs != build_examples(data, task, ["de"], control="mispaired", seed=seed + 1)


@pytest.mark.parametrize(
    "options",
    [{"sources": ["de"]}, {"sources": ["de"], "instruction": "before"}, {"sources": ["en"], "control": "answers"}],
)
def test_a_written_file_reads_back_equal(data, tmp_path, options):
    pairs = build_examples(data, TASKS["snli"], **options)
    write_pairs(tmp_path / "built.json", pairs)
    assert read_pairs([tmp_path / "built.json"]) == pairs
    keys = {"input", "answer"} | ({"source_language", "target_language"} if "control" in options else set())
    assert all(set(row) == keys for row in json.loads((tmp_path / "built.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["xx"]}, "unknown language 'xx'"),
        ({"sources": []}, "different languages are needed, found none"),
        ({"sources": ["de", "de"]}, "different languages are needed, found de,de"),
        ({"sources": ["de", "en"]}, "en is the target too"),
        ({"sources": ["de"], "control": "copy"}, "copy reads English alone"),
        ({"sources": ["en"], "target": "de", "control": "answers"}, "answers reads English alone"),
        ({"sources": ["de"], "rows": slice(0, 1), "control": "mispaired"}, "1 of 1 rows share one"),
        ({"sources": ["de"], "control": "shuffled"}, "'shuffled' is none of"),
        ({"sources": ["de"], "rows": slice(0, 13)}, "up to 13, but snli in de has 12 train rows"),
        ({"sources": ["sw"]}, r"no snli_sw[ROWS]_train.json"),
    ],
)
def test_wrong_settings_are_named(data, options, message):
    with pytest.raises(InputError) as error:
        build_examples(data, TASKS["snli"], **options)
    assert message in str(error.value)


def test_other_names_of_languages(data):
    assert build_examples(data, TASKS["snli"], ["deu_Latn"], "English") == build_examples(data, TASKS["snli"], ["de"])
    with pytest.raises(InputError, match=r"build.sources: unknown language 'tr'; known: en zh"):
        build_examples(data, TASKS["snli"], ["tr"])
    with pytest.raises(InputError, match="sources: different languages are needed, found zh,zh"):
        build_examples(data, TASKS["snli"], ["zh", "zh-CN"])
