"""What describes a set of pairs, against brute force, the regex package's script property and the tuning's own cut."""

import pytest
import regex
import tokenizers
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from jaxalign.data.batches import fit_pairs
from jaxalign.data.build import build_examples
from jaxalign.data.check import (
    control_characters,
    describe_labels,
    describe_languages,
    doubles,
    rendered_lengths,
    rows_among,
    script_of,
    script_shares,
    summary,
)
from jaxalign.data.pairs import QuestionPair, with_instruction
from jaxalign.data.prompts import question
from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.files import MINI
from tests.data.tiny_tokenizers import render, sentencepiece_style

SCRIPTS = ("Latin", "Han", "Hiragana", "Katakana", "Cyrillic", "Devanagari", "Thai", "Bengali", "Greek", "Arabic")


def pair(text, response, source="de", target="en"):
    return QuestionPair(with_instruction(text, source, target, "after"), response, source, target)


def test_scripts_are_those_of_unicode():
    texts = [text for pairs in (mini("snli"), mini("paws")) for each in pairs for text in (each.prompt, each.response)]
    letters = {letter for letter in "".join(texts) + "ΑαЖжقع々ﾊﾟｱＡｂ" if letter.isalpha()}
    checked = set()
    for letter in letters:
        for script in SCRIPTS:
            if regex.fullmatch(rf"\p{{Script={script}}}", letter):
                assert script_of(letter) == script, letter
                checked.add(script)
    assert checked == set(SCRIPTS)
    assert script_of("\ue000") == script_of("\U0003fffe") == "Unknown"


def mini(task):
    return build_examples(MINI, TASKS[task], ["zh", "ja", "ru", "hi", "th", "bn", "sw"])


def test_languages():
    pairs = [pair("Wo?", "Where is it?"), pair("Где он 12?", "Here"), pair("12", "Это", "sw")]
    described = describe_languages(pairs, len)
    assert list(described) == ["en", "de", "sw"]
    assert described["de"] == {
        "prompts": 2,
        "responses": 0,
        "length": {"mean": 6.5, "median": 6.5, "p95": 9.65, "max": 10},
        "scripts": {"Cyrillic": 5 / 7, "Latin": 2 / 7},
        "in_other_scripts": 1,
    }
    assert (described["en"]["responses"], described["en"]["in_other_scripts"]) == (3, 1)
    assert (described["sw"]["scripts"], described["sw"]["in_other_scripts"]) == ({}, 0)


def test_a_language_may_have_several_scripts():
    pairs = [pair("日本語です", "x", "ja"), pair("カタカナ", "x", "ja"), pair("English", "x", "ja")]
    assert describe_languages(pairs, len)["ja"]["in_other_scripts"] == 1
    assert script_shares(["aя", "я1."]) == {"Cyrillic": 2 / 3, "Latin": 1 / 3}


def test_summary():
    assert summary([4, 1, 2, 3, 100]) == {"mean": 22.0, "median": 3.0, "p95": pytest.approx(4 + 0.8 * 96), "max": 100}


def test_lengths_are_those_that_the_tuning_drops_by():
    tokenizer = Tokenizer(sentencepiece_style())
    pairs = [pair("a" * length, "b" * (length % 7 + 1)) for length in range(1, 30)]
    for template in ("none", "default"):
        rendered = [render(each, template, tokenizer) for each in pairs]
        lengths = rendered_lengths(pairs, template, tokenizer)
        for limit in (min(lengths), 70, 80, 90):
            assert fit_pairs(rendered, limit, "drop").dropped == sum(length > limit for length in lengths)


def test_doubles():
    pairs = [pair("a", "A"), pair("a", "A"), pair("a", "B"), pair("a", "A"), pair("b", "A"), pair("a", "A", "sw")]
    assert doubles(pairs) == {"repeated_pairs": 2, "prompts_of_several_responses": 1}


def test_control_characters_are_counted():
    pairs = [pair("a\r\tb\n", "\x85\r"), pair("a\u200b\x00", "b")]
    assert control_characters(pairs) == {"U+0000": 1, "U+0009": 1, "U+000D": 2, "U+0085": 1}
    assert control_characters(mini("snli")) == {}


def row(number, *fields):
    return TaskRow("snli", "de", number, fields, "", "")


def test_test_rows_among_the_pairs():
    rows = [
        row(0, "Ein Mann  geht.", "Er\nruht."),
        row(1, "Eine Frau.", "Sie singt."),
        row(2, "Eine Frau.", "Er ruht."),
    ]
    study = pair(question(TASKS["snli"], "de", rows[0].fields), "x")
    assert rows_among([study], TASKS["snli"], rows) == [0]
    lines = pair("EINE FRAU.\nSie singt.", "x")
    assert rows_among([lines], TASKS["snli"], rows) == [1]
    # Both fields, but never in one text.
    apart = [pair("Eine Frau.", "x"), pair("Sie singt.", "x"), pair("Er ruht.", "x")]
    assert rows_among(apart, TASKS["snli"], rows) == []
    assert rows_among([pair("Eine Frau.\nSie singt.", "x", "sw")], TASKS["snli"], rows) == []
    assert rows_among([pair("x", "Prämisse: eine frau.\nHypothese: Sie singt.", "sw", "de")], TASKS["snli"], rows) == [
        1
    ]


def test_label_words_that_share_tokens_or_have_none():
    tokenizer = Tokenizer(sentencepiece_style(pieces=("消",)))
    # The Bengali words begin with the same byte, the Chinese ones do not, and German ones begin with letters.
    assert describe_labels([TASKS["emotion"], TASKS["snli"]], ["en", "de", "zh", "bn"], tokenizer) == [
        {
            "task": "emotion",
            "variant": "in_language",
            "language": "bn",
            "shared": {"ইতিবাচক/নেতিবাচক": ["<0xE0>"]},
            "without_tokens": [],
        }
    ]
    letters = models.WordLevel({"<unk>": 0, "p": 1, "pos": 2, "o": 3}, unk_token="<unk>")
    poor = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(letters), unk_token="<unk>"))
    without = {
        record["variant"]: record["without_tokens"] for record in describe_labels([TASKS["emotion"]], ["en"], poor)
    }
    assert without == {"english": ["negative"], "in_language": ["negative"], "irrelevant": ["horse"]}
