"""Candidate ids of label words: real tokenizers, and the listed pieces of two vocabularies that are not at hand."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from jaxalign.data.label_sets import candidate_ids, collisions, label_candidates
from jaxalign.data.prompts import few_shot_prompt, label_words, read_exemplars
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


def test_mistrals_listed_pieces(shared):
    """A vocabulary of every piece that any label of the study may begin with: each word picks exactly its own."""
    listed = read(shared / "data" / "answer_token_ids.json")["mistral_v0.1"]
    words = {name: pieces for name, pieces in listed.items() if name in {*ENGLISH, "ox", "horse"}}
    cells = {tuple(name.split(":")): classes for name, classes in listed.items() if ":" in name}
    vocabulary = {piece: int(index) for pieces in words.values() for index, piece in pieces.items()}
    for classes in cells.values():
        vocabulary |= {piece: int(index) for pieces in classes.values() for index, piece in pieces.items()}
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel(vocabulary, "p"))))
    for word, pieces in words.items():
        assert candidate_ids(word, tokenizer) == sorted(map(int, pieces))
    for (task, language), classes in cells.items():
        for name, pieces in classes.items():
            assert candidate_ids(TASKS[task].label_words[language][name], tokenizer) == sorted(map(int, pieces))


ENGLISH = {name for task in TASKS.values() for name in task.classes}
