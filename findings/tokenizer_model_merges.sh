#!/usr/bin/env bash
# A folder with tokenizer.model alone, read by transformers: which ids does a text get?
#
# Guessed: those of SentencePiece, whose file it is; and those whichever class reads it.
# True (transformers 5.24.0, tokenizers 0.23.3, sentencepiece 0.2.3, mistral-common 1.13.1): LlamaTokenizer puts merges
#   in the order of the vocabulary, where the model has scores: two blanks in a row become other tokens. It also puts no
#   space before a text that begins with one. With model_type mistral the generic class reads the very same file by its
#   scores, and its ids are SentencePiece's. So one key of config.json decides over the ids of tokenizer.model.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 \
  mistral-common==1.13.1 protobuf==7.36.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from importlib import resources
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

model = (resources.files("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()
reference = SentencePieceProcessor(model_proto=model)


def ids_of(family: str) -> list[list[int]]:
    """The ids of each text, from a folder of that family."""
    folder = Path(sys.argv[1]) / family
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(f"{family}: {type(tokenizer).__name__}")
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


TEXTS = ["one blank", "two  blanks", " a blank first"]
right = [reference.encode(text) for text in TEXTS]
llama, mistral = ids_of("llama"), ids_of("mistral")
for text, *ids in zip(TEXTS, right, llama, mistral):
    print(repr(text), *(f"\n  {name}: {each}" for name, each in zip(("SentencePiece", "llama", "mistral"), ids)))
as_found = [each == other for each, other in zip(llama, right)] == [True, False, False] and mistral == right
sys.exit(0 if as_found else "no longer as found")
PYTHON
