"""Candidate ids of label words: real tokenizers, those of two real models, and Mistral's own."""

import json
from importlib import resources
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.prompts import (
    PromptStyle,
    collisions,
    few_shot_prompt,
    label_candidates,
    label_queries,
    label_words,
    read_exemplars,
    scored_candidates,
    variants_of,
)
from jaxalign.data.tasks import TASKS, TaskData
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
        (item,) = TaskData(shared / "data").rows(task, expected["language"], slice(row, row + 1))
        assert len(model.prompt_ids(few_shot_prompt(item, exemplars, "english"))) == expected["prompt_tokens"]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory) -> Tokenizer:
    """Mistral-7B-v0.1's tokenizer, whose SentencePiece model mistral-common ships."""
    folder = tmp_path_factory.mktemp("mistral")
    model = resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **roles}))
    return load_tokenizer(folder)


@pytest.mark.parametrize("style", ["study", "mended"])
def test_mistrals_vocabulary(shared, mistral, style):
    listed = read(shared / "data" / "answer_token_ids.json")["mistral_v0.1"]
    words = {name: pieces for name, pieces in listed.items() if ":" not in name}
    cells = {tuple(name.split(":")): classes for name, classes in listed.items() if ":" in name}
    spelled = {index: piece for piece, index in mistral.vocabulary.items()}
    for pieces in [*words.values(), *(pieces for classes in cells.values() for pieces in classes.values())]:
        assert all(spelled[int(index)] == piece for index, piece in pieces.items())

    seen = set()
    for task in TASKS.values():
        for language in LANGUAGES:
            for variant in variants_of(task):
                found = scored_candidates(task, language, mistral, variant, style)
                if variant == "in_language":
                    expected = cells.pop((task.name, language))
                else:
                    shown = label_words(task, language, variant)
                    expected = {name: words[word] for name, word in shown.items()}
                    seen |= set(shown.values())
                if (language, variant) == ("th", "in_language"):
                    # The list holds the sets of the whole words, which are equal; after the start they part.
                    whole = label_candidates(label_words(task, language, variant), mistral)
                    assert whole == {name: sorted(map(int, pieces)) for name, pieces in expected.items()}
                    assert found == {"positive": [227, 29447], "negative": [227, 29394]}
                else:
                    assert found == {name: sorted(map(int, pieces)) for name, pieces in expected.items()}
    assert seen == set(words) and not cells


def test_thai_prompts_of_mistral_go_on_with_a_stray_beginning_of_text(shared, mistral):
    exemplars = read_exemplars(shared / "data" / "exemplars.json")
    [row] = TaskData(shared / "data").rows(TASKS["emotion"], "th", slice(0, 1))
    text = few_shot_prompt(row, exemplars, "in_language")
    [study], [mended] = (
        label_queries([row], exemplars, mistral, "in_language", style) for style in get_args(PromptStyle)
    )
    assert study.prompt == [*mistral.prompt_ids(text), 1, 28705, 29301, 29851, 29568, 29285]
    assert mended.prompt == mistral.prompt_ids(text + "เชิง")
    assert mended.prompt.count(1) == 1


@pytest.mark.real_weights
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_tokenizers_write_each_word_after_the_prompt(shared, models, name):
    """No word of any cell merges with the opening quote: the score is the word's own tokens and the closing quote."""
    tokenizer = load_tokenizer(models / name)
    exemplars = read_exemplars(shared / "data" / "exemplars.json")
    for task in TASKS.values():
        for language in LANGUAGES:
            rows = TaskData(shared / "data").rows(task, language, slice(0, 3))
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
