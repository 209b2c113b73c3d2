import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.tasks import TaskData
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.probing.attribution import (
    SCRIPT_CLASSES,
    HeldOut,
    decide,
    languages_with_texts,
    parallel_texts,
    script_languages,
    script_of_bytes,
    token_counts,
    token_languages,
    token_scripts,
)
from jaxalign.probing.probe import TASK
from tests import tiny_world
from tests.data.tiny_tokenizers import byte_level, sentencepiece_style

NO_LETTERS = SCRIPT_CLASSES.index("no letters")


def test_a_token_is_of_the_language_that_outweighs_all_others_twice():
    counts = np.array(
        [
            # only en; both alike; more in de, which has twice the text; mostly en; once; never
            [40, 20, 20, 30, 0, 0],
            [0, 40, 150, 10, 1, 0],
        ]
    )
    found = decide(counts, np.full(6, NO_LETTERS), ["en", "de"])
    assert found.tolist() == [0, 2, 1, 0, 1, 2]


def test_once_in_one_of_many_languages_is_no_proof():
    languages = ["en", "de", "fr", "es", "it", "nl", "sv", "sl", "pl", "no", "ms", "is"]
    counts = np.zeros((12, 3), int)
    counts[:, 0] = 1000
    counts[1, 1:] = [1, 5]
    assert decide(counts, np.full(3, NO_LETTERS), languages).tolist() == [12, 12, 1]


def test_a_token_without_counts_is_of_the_only_language_of_its_script():
    languages = ["en", "zh", "ja", "ru", "bg", "th"]
    only = dict(zip(SCRIPT_CLASSES, script_languages(languages).tolist(), strict=True))
    assert (only["Latin"], only["Kana"], only["Thai"]) == (0, 2, 5)
    # Chinese and Japanese write in Han, Russian and Bulgarian in Cyrillic; nobody here in Devanagari.
    assert {only[name] for name in ("Han", "Cyrillic", "Devanagari", "no letters", "part of a character")} == {6}
    thai = np.array([SCRIPT_CLASSES.index("Thai")] * 2)
    # The third token gives every language some text.
    counts = np.array([[9, 0, 9], *[[0, 0, 9]] * 5])
    assert decide(counts, np.array([*thai, NO_LETTERS]), languages).tolist() == [0, 5, 6]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" Straße", "Latin"),
        ("цена", "Cyrillic"),
        ("积极", "Han"),
        ("ポジティブ", "Kana"),
        ("सकारात्मक", "Devanagari"),
        ("ইতিবাচক", "Bengali"),
        ("เชิงบวก", "Thai"),
        ("καλός", "other script"),
        ("好いね", "several scripts"),
        (" 12, ", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts_are_those_of_the_letters(text: str, script: str):
    assert script_of_bytes(text.encode()) == script


def test_half_a_character_has_no_script():
    assert script_of_bytes("บ".encode()[:2]) == "part of a character"


@pytest.mark.parametrize("style", [byte_level, sentencepiece_style])
def test_tokens_are_their_bytes(style):
    tokenizer = Tokenizer(style())
    text = "Größe บ, z 9"
    spelt = [tokenizer.token_bytes(token) for token in tokenizer.backend.convert_ids_to_tokens(tokenizer.ids(text))]
    # SentencePiece puts a space before every text.
    assert b"".join(spelt).removeprefix(b" ") == text.encode()


@pytest.mark.parametrize("typed_special", [True, False])
def test_control_tokens_and_ids_without_a_token_have_no_letters(typed_special):
    """Those among them that only by their name are, and without the model's row for one."""
    backend = byte_level(special=("<|mark|>",) if typed_special else ())
    backend.add_tokens(["<|mark|>"])
    tokenizer = Tokenizer(backend)
    size = len(tokenizer.vocabulary) + 3
    scripts = token_scripts(tokenizer, size)
    named = [SCRIPT_CLASSES[index] for index in scripts]
    assert named[tokenizer.vocabulary["a"]] == "Latin" and named[tokenizer.eos_id] == "no letters"
    assert named[-3:] == ["no letters"] * 3
    # The 128 bytes above ASCII are parts; 52 of those below are letters.
    assert named.count("part of a character") == 128 and named.count("Latin") == 52
    assert token_counts(tokenizer, ["a"], tokenizer.control_tokens["<|mark|>"]).sum() == 1


def test_counts_pass_over_special_tokens():
    tokenizer = Tokenizer(sentencepiece_style())
    counts = token_counts(tokenizer, ["aba", "b"], 400)
    assert counts[tokenizer.vocabulary["a"]] == counts[tokenizer.vocabulary["b"]] == 2
    assert counts[tokenizer.vocabulary["▁"]] == 2 and counts.sum() == 6  # and no BOS


def write_emotion(folder: Path, texts: dict[str, list[str]]) -> None:
    (folder / TASK.folder).mkdir()
    for language, lines in texts.items():
        word = TASK.label_words[language]["positive"]
        rows = [{"input": line, "answer": word} for line in lines]
        (folder / TASK.folder / f"emotion_{language}{len(lines)}_test.json").write_text(json.dumps(rows))


def test_map_of_texts_and_its_accuracy(tmp_path: Path):
    # "a" is English, "o" German, "e" both; the held-out last fifth says "o" once in English.
    write_emotion(tmp_path, {"en": ["aaaee"] * 8 + ["aaaao"] * 2, "de": ["oooee"] * 10})
    tokenizer = tiny_world.byte_tokenizer()
    found = token_languages(tokenizer, tiny_world.CONFIG.vocab_size, TaskData(tmp_path))
    assert found.languages == ["en", "de"]
    assert [found.language_of[tokenizer.vocabulary[letter]] for letter in "aoez"] == [0, 1, 2, 2]
    assert found.held_out == {"en": HeldOut(10, 10, 8), "de": HeldOut(10, 6, 6)}
    assert len(found.language_of) == len(found.script_of) == tiny_world.CONFIG.vocab_size


def test_texts_are_the_fields_of_every_task_there_is(tmp_path: Path):
    tiny_world.write_data(tmp_path)
    files = TaskData(tmp_path)
    assert languages_with_texts(files, TASK) == ["en", "zh", "de"]
    counted, held_out = parallel_texts(files, "de")
    assert held_out == ["de input 5", "de premise 5", "de hypothesis 5"]
    assert len(counted) == 5 + 10 and not set(counted) & set(held_out)
