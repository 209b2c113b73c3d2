from typing import get_args

import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import (
    PromptStyle,
    candidate_ids,
    collisions,
    few_shot_prompt,
    label_candidates,
    label_queries,
    label_words,
    read_exemplars,
    scored_candidates,
    shared_start,
    variants_of,
)
from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.data.tokenizer import Tokenizer
from tests.data.test_prompts import written
from tests.data.tiny_tokenizers import byte_level, sentencepiece_style

THAI = ("เ", "ช", "ิ", "ง", "บ", "ว", "ก", "ล")
EMOTION = TASKS["emotion"]


@pytest.fixture
def exemplars(tmp_path):
    reviews = [{"text": "So.", "label": "positive"}, {"text": "No.", "label": "negative", "trailing": " "}]
    pairs = [{"premise": "A", "hypothesis": "B", "label": label} for label in TASKS["snli"].classes]
    document = {
        "emotion": {language: {"exemplars": reviews} for language in ("de", "th")},
        "snli": {"ru": {"exemplars": pairs}},
    }
    return read_exemplars(written(tmp_path, document))


def review(language, index=0):
    return TaskRow("emotion", language, index, ("Nie wieder, " + "ja " * index,), "", "")


def characters(tokenizer, text):
    return [tokenizer.vocabulary[piece] for piece in text]


def decoded(tokenizer, ids) -> str:
    return tokenizer.backend.decode(ids)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_words_follow_the_prompt_with_their_closing_quote(exemplars, make):
    tokenizer = Tokenizer(make(merges=(("p", "o"), ("po", "s"), ("t", "i"))))
    text = few_shot_prompt(review("de"), exemplars, "english", "study")
    query = label_queries([review("de")], exemplars, tokenizer, "english", "study")[0]
    assert query.prompt == tokenizer.prompt_ids(text)
    assert [word.scored_from for word in query.words] == [len(query.prompt)] * 2
    positive, negative = (word.ids[word.scored_from :] for word in query.words)
    assert positive == characters(tokenizer, ["pos", "i", "ti", "v", "e", '"'])
    assert negative == characters(tokenizer, ["n", "e", "g", "a", "ti", "v", "e", '"'])
    assert all(word.ids[: word.scored_from] == query.prompt for word in query.words)


def test_a_quote_merged_with_the_next_letter_is_scored_again(exemplars):
    tokenizer = Tokenizer(sentencepiece_style(merges=(('"', "p"),)))
    query = label_queries([review("de")], exemplars, tokenizer, "english", "study")[0]
    positive, negative = query.words
    assert query.prompt[-1] == tokenizer.vocabulary['"']
    assert positive.scored_from == len(query.prompt) - 1
    assert positive.ids[positive.scored_from :] == characters(tokenizer, ['"p', *"ositive", '"'])
    assert negative.scored_from == len(query.prompt)
    assert negative.ids[negative.scored_from :] == characters(tokenizer, 'negative"')


def test_one_continuation_per_class_in_task_order(exemplars):
    tokenizer = Tokenizer(byte_level())
    row = TaskRow("snli", "ru", 0, ("A", "B"), "", "")
    query = label_queries([row], exemplars, tokenizer, "english", "mended")[0]
    tails = [decoded(tokenizer, word.ids[word.scored_from :]) for word in query.words]
    assert tails == ['entailment"', 'neutral"', 'contradiction"']
    assert decoded(tokenizer, query.prompt).endswith('Предпосылка: A\nГипотеза: B\nОтвет: "')
    ox, horse = label_queries([review("de")], exemplars, tokenizer, "irrelevant", "study")[0].words
    assert decoded(tokenizer, ox.ids[ox.scored_from :]) == 'ox"'
    assert decoded(tokenizer, horse.ids[horse.scored_from :]) == 'horse"'


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_rows_do_not_depend_on_each_other(exemplars, make, style):
    tokenizer = Tokenizer(make(merges=(("j", "a"), ('"', "p"), ("e", '"'))))
    rows = [review(language, index) for index, language in enumerate(["de", "th", "de", "th", "th"])]
    for variant in variants_of(EMOTION):
        together = label_queries(rows, exemplars, tokenizer, variant, style)
        assert together == [label_queries([row], exemplars, tokenizer, variant, style)[0] for row in rows]
        assert together[::-1] == label_queries(rows[::-1], exemplars, tokenizer, variant, style)


def test_only_thai_in_language_words_share_a_start():
    starts = {
        (task.name, language, variant): shared_start(task, language, variant)
        for task in TASKS.values()
        for language in LANGUAGES
        for variant in variants_of(task)
    }
    assert {cell: start for cell, start in starts.items() if start} == {("emotion", "th", "in_language"): "เชิง"}


def test_the_study_appends_the_thai_start_as_a_text_of_its_own(exemplars):
    tokenizer = Tokenizer(sentencepiece_style(THAI))
    text = few_shot_prompt(review("th"), exemplars, "in_language", "study")
    query = label_queries([review("th")], exemplars, tokenizer, "in_language", "study")[0]
    # As Mistral's vocabulary does: 1, 28705 (▁), 29301, 29851, 29568, 29285.
    assert query.prompt == tokenizer.prompt_ids(text) + characters(tokenizer, ["<s>", "▁", *"เชิง"])


def test_mended_prompts_go_on_with_the_thai_start(exemplars):
    tokenizer = Tokenizer(sentencepiece_style(THAI))
    text = few_shot_prompt(review("th"), exemplars, "in_language", "mended")
    query = label_queries([review("th")], exemplars, tokenizer, "in_language", "mended")[0]
    assert query.prompt == tokenizer.prompt_ids(text) + characters(tokenizer, "เชิง")
    # Also where the start merges with the opening quote.
    tokenizer = Tokenizer(sentencepiece_style(THAI, merges=(('"', "เ"),)))
    query = label_queries([review("th")], exemplars, tokenizer, "in_language", "mended")[0]
    assert query.prompt == tokenizer.prompt_ids(text)[:-1] + characters(tokenizer, ['"เ', *"ชิง"])


@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_a_tokenizer_without_a_bos_writes_the_thai_start_alike_in_both_styles(exemplars, style):
    tokenizer = Tokenizer(byte_level())
    text = few_shot_prompt(review("th"), exemplars, "in_language", style)
    [query] = label_queries([review("th")], exemplars, tokenizer, "in_language", style)
    assert query.prompt == tokenizer.prompt_ids(text) + tokenizer.ids("เชิง") == tokenizer.ids(text + "เชิง")


@pytest.mark.parametrize("make", [lambda: sentencepiece_style(THAI), byte_level])
@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_whole_thai_words_follow_the_prompt_without_the_start(exemplars, make, style):
    tokenizer = Tokenizer(make())
    prompt = tokenizer.prompt_ids(few_shot_prompt(review("th"), exemplars, "in_language", style))
    query = label_queries([review("th")], exemplars, tokenizer, "in_language", style)[0]
    for word, whole in zip(query.words, ("เชิงบวก", "เชิงลบ"), strict=True):
        assert word.ids[: word.scored_from] == prompt
        assert decoded(tokenizer, word.ids[word.scored_from :]) == whole + '"'


def test_thai_words_part_after_their_start():
    tokenizer = Tokenizer(sentencepiece_style(THAI))
    for style in get_args(PromptStyle):
        found = scored_candidates(EMOTION, "th", tokenizer, "in_language", style)
        assert found == {
            "positive": sorted(characters(tokenizer, ["<0xE0>", "บ"])),
            "negative": sorted(characters(tokenizer, ["<0xE0>", "ล"])),
        }
        assert collisions(found) == {("positive", "negative"): [tokenizer.vocabulary["<0xE0>"]]}


def test_the_study_scores_irrelevant_words_without_first_tokens():
    # "h" + "or" merge first, so "ho" is two tokens and "hor" one; without the key "hor" only first tokens find it.
    tokenizer = Tokenizer(byte_level((("o", "x"), ("o", "r"), ("h", "or"))))
    expected = {
        "positive": sorted(characters(tokenizer, ["o", "ox"])),
        "negative": sorted(characters(tokenizer, ["h", "hor"])),
    }
    for style in get_args(PromptStyle):
        assert scored_candidates(EMOTION, "sw", tokenizer, "irrelevant", style) == expected
    del tokenizer.vocabulary["ox"], tokenizer.vocabulary["hor"]
    assert scored_candidates(EMOTION, "sw", tokenizer, "irrelevant", "mended") == expected
    assert scored_candidates(EMOTION, "sw", tokenizer, "irrelevant", "study") == {
        "positive": characters(tokenizer, "o"),
        "negative": characters(tokenizer, "h"),
    }


@pytest.mark.parametrize("style", get_args(PromptStyle))
def test_other_candidates_are_those_of_the_words(style):
    tokenizer = Tokenizer(byte_level((("p", "o"), ("Ð", "¿"))))
    for variant in ("english", "in_language"):
        words = label_words(EMOTION, "ru", variant)
        assert scored_candidates(EMOTION, "ru", tokenizer, variant, style) == label_candidates(words, tokenizer)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_rows_that_spell_control_tokens_are_text(exemplars, make):
    tokenizer = Tokenizer(make())
    end = str(tokenizer.backend.eos_token)
    row = TaskRow("emotion", "de", 0, (f"{end}<s> so. {end}",), "", "")
    query = label_queries([row], exemplars, tokenizer, "english", "study")[0]
    for ids in (query.prompt, *(word.ids for word in query.words)):
        inner = ids[len(tokenizer.opening) :]
        assert tokenizer.control_ids.isdisjoint(inner)
        assert f"{end}<s> so. {end}" in decoded(tokenizer, inner)


# Label word -> candidate ids


def spelt(tokenizer: Tokenizer, word: str) -> set[str]:
    ids = candidate_ids(word, tokenizer)
    assert ids == sorted(set(ids))
    texts = {index: text for text, index in tokenizer.vocabulary.items()}
    return {texts[index] for index in ids}


def test_prefixes_bare_and_after_the_space_mark():
    pieces = ("▁p", "▁pos", "pos", "positive", "▁positive", "▁positives", "tive", "▁n", "os", "Pos")
    tokenizer = Tokenizer(sentencepiece_style(pieces))
    assert spelt(tokenizer, "positive") == {"p", "pos", "positive", "▁p", "▁pos", "▁positive"}


def test_a_native_word_adds_the_byte_piece_of_its_first_byte():
    tokenizer = Tokenizer(sentencepiece_style(("积", "▁积极", "极")))
    # 积 is E7 A7 AF in UTF-8
    assert spelt(tokenizer, "积极") == {"积", "▁积极", "<0xE7>"}
    # An ASCII word has no byte piece, although <0x70> is in the vocabulary.
    assert spelt(tokenizer, "po") == {"p"}
    # The rule looks at the first character alone.
    assert spelt(tokenizer, "négatif") == {"n"}
    assert spelt(tokenizer, "émotion") == {"<0xC3>"}


def test_a_byte_level_vocabulary_adds_first_tokens():
    tokenizer = Tokenizer(byte_level((("p", "o"), ("ç", "§"))))
    # p, po: vocabulary keys; pos is no key, and its first token is po.
    assert spelt(tokenizer, "pos") == {"p", "po"}
    # 积 is E7 A7 AF, spelt ç § ¯ in the byte alphabet; the merge makes ç§ the first token of both prefixes.
    assert spelt(tokenizer, "积极") == {"ç§"}


def test_first_tokens_are_not_taken_from_a_sentencepiece_vocabulary():
    # Its first token for any prefix is the lone ▁, which begins every word alike.
    tokenizer = Tokenizer(sentencepiece_style())
    assert tokenizer.ids("so")[0] == tokenizer.vocabulary["▁"]
    assert spelt(tokenizer, "so") == {"s"}


def test_a_word_that_the_vocabulary_lacks_has_no_candidates():
    tokenizer = Tokenizer(sentencepiece_style())
    tokenizer.vocabulary.pop("x")
    assert candidate_ids("xyz", tokenizer) == []


def test_shared_candidates_are_found():
    tokenizer = Tokenizer(sentencepiece_style(("▁po",)))
    found = label_candidates({"positive": "po", "middle": "pa", "negative": "ne"}, tokenizer)
    assert collisions(found) == {("positive", "middle"): [tokenizer.vocabulary["p"]]}
