"""Candidate ids of label words: real tokenizers, and the listed pieces of two vocabularies that are not at hand."""

import json
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from jaxalign.data.label_queries import label_queries, scored_candidates
from jaxalign.data.label_sets import collisions, label_candidates
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import PromptStyle, few_shot_prompt, label_words, read_exemplars, variants_of
from jaxalign.data.tasks import TASKS, read_task_rows
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer


def read(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.real_weights
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_tokenizers(shared, models, name):
    model = load_tokenizer(models / name)
    reference = read(shared / "reference" / f"{name}.json")
    assert model.is_byte_level == (name == "smollm2")
    for task, expected in reference["label_token_ids"].items():
        found = label_candidates(label_words(TASKS[task], "en", "english"), model)
        assert found == {label: sorted(ids) for label, ids in expected.items()}
        assert collisions(found) == {}
    exemplars = read_exemplars(shared / "data" / "exemplars.json")
    for expected in reference["rows"]:
        task, row = TASKS[expected["task"]], expected["row"]
        (item,) = read_task_rows(shared / "data", task, expected["language"], "test", slice(row, row + 1))
        assert len(model.prompt_ids(few_shot_prompt(item, exemplars, "english"))) == expected["prompt_tokens"]


THAI_REMAINDERS = {"บ": 29447, "ล": 29394}
"""Ids in Mistral's vocabulary of what the Thai words go on with after their shared start."""


@pytest.mark.parametrize("style", ["study", "mended"])
def test_mistrals_listed_pieces(shared, style):
    """A vocabulary of every piece that any label of the study may begin with: each word picks exactly its own."""
    listed = read(shared / "data" / "answer_token_ids.json")["mistral_v0.1"]
    words = {name: pieces for name, pieces in listed.items() if ":" not in name}
    cells = {tuple(name.split(":")): classes for name, classes in listed.items() if ":" in name}
    by_id = [*words.values(), *(pieces for classes in cells.values() for pieces in classes.values())]
    vocabulary = {piece: int(index) for pieces in by_id for index, piece in pieces.items()} | THAI_REMAINDERS
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel(vocabulary, "p"))))

    seen = set()
    for task in TASKS.values():
        for language in LANGUAGES:
            for variant in variants_of(task):
                found = scored_candidates(task, language, tokenizer, variant, style)
                if variant == "in_language":
                    expected = cells.pop((task.name, language))
                else:
                    shown = label_words(task, language, variant)
                    expected = {name: words[word] for name, word in shown.items()}
                    seen |= set(shown.values())
                if (language, variant) == ("th", "in_language"):
                    # The list holds the sets of the whole words, which are equal; after the start they part.
                    whole = label_candidates(label_words(task, language, variant), tokenizer)
                    assert whole == {name: sorted(map(int, pieces)) for name, pieces in expected.items()}
                    assert found == {"positive": [227, 29447], "negative": [227, 29394]}
                else:
                    assert found == {name: sorted(map(int, pieces)) for name, pieces in expected.items()}
    assert seen == set(words) and not cells


@pytest.mark.real_weights
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_tokenizers_write_each_word_after_the_prompt(shared, models, name):
    """No word of any cell merges with the opening quote: the score is the word's own tokens and the closing quote."""
    tokenizer = load_tokenizer(models / name)
    exemplars = read_exemplars(shared / "data" / "exemplars.json")
    for task in TASKS.values():
        for language in LANGUAGES:
            rows = read_task_rows(shared / "data", task, language, "test", slice(0, 3))
            for variant, style in product(variants_of(task), get_args(PromptStyle)):
                texts = [few_shot_prompt(row, exemplars, variant, style) for row in rows]
                queries = label_queries(rows, exemplars, tokenizer, variant, style)
                for text, query in zip(texts, queries, strict=True):
                    prompt = tokenizer.prompt_ids(text)
                    assert query.prompt[: len(prompt)] == prompt
                    for word, written in zip(label_words(task, language, variant).values(), query.words, strict=True):
                        assert written.ids == tokenizer.prompt_ids(text + word + '"')
                        assert written.scored_from == len(prompt)
                        assert tokenizer.backend.decode(written.ids[len(prompt) :]) == word + '"'
