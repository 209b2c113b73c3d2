"""Mistral's own SentencePiece models: the ids of every question of MGSM and MSVAMP are those of SentencePiece."""

import json
from importlib import resources
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.model.gguf import read_gguf_tokenizer
from tests.model.test_gguf_tokenizer import write_sentence_piece_model

MODELS = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
"""Of Mistral-7B v0.1 and v0.3; mistral-common ships them."""


@pytest.fixture(scope="module")
def questions(shared) -> list[str]:
    found = []
    for folder, field in (("mgsm", "query"), ("msvamp", "m_query")):
        for file in sorted((shared / "data" / "qalign" / folder).glob("*.json")):
            found += [json.loads(line)[field] for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 11 * 250 + 10 * 1000
    return found


def as_folder(content: bytes, folder: Path) -> Tokenizer:
    """Of a family whose class, in transformers, orders merges by the vocabulary."""
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return load_tokenizer(folder)


def as_gguf(content: bytes, folder: Path) -> Tokenizer:
    return Tokenizer(read_gguf_tokenizer(write_sentence_piece_model(folder / "m.gguf", content)))


@pytest.mark.parametrize("make", [as_folder, as_gguf])
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces(questions, tmp_path, name, make):
    content = (resources.files("mistral_common") / "data" / name).read_bytes()
    ours, theirs = make(content, tmp_path), SentencePieceProcessor(model_proto=content)
    assert ours.batch_ids(questions) == theirs.encode(questions)
    assert theirs.encode("  two") == ours.ids("  two") != ours.ids(" two")
