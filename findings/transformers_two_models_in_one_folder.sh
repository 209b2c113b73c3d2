#!/usr/bin/env bash
# A model folder that holds two models: which one does transformers load?
#
# Guessed: save_pretrained leaves a folder from which from_pretrained loads what was just saved; and where an index
#   (model.safetensors.index.json) says which shard a tensor is in, it is read from there.
# True (transformers 5.24.0, torch 2.13.0, safetensors 0.8.0, CPU):
#   1. save_pretrained in shards removes older shards, but not an older, whole model.safetensors; from_pretrained then
#      prefers the whole file: the older weights, without a word.
#   2. from_pretrained takes the names of the shards from the index, and of each shard all tensors: of a tensor that two
#      shards hold, the copy of the shard that is read last wins, whatever the index says.
#
# Makes a virtual environment, installs the pinned packages, and exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 numpy==2.3.5
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=64,
)
name = "model.layers.0.input_layernorm.weight"


def model(value):
    network = LlamaForCausalLM(config)
    torch.nn.init.constant_(network.model.layers[0].input_layernorm.weight, value)
    return network


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()[name][0].item()


first = Path(sys.argv[1]) / "first"
model(1.0).save_pretrained(first)
model(2.0).save_pretrained(first, max_shard_size="20KB")
print("1. saved 1.0 whole, then 2.0 in shards; loaded:", loaded(first))

second = Path(sys.argv[1]) / "second"
model(2.0).save_pretrained(second, max_shard_size="20KB")
weight_map = json.loads((second / "model.safetensors.index.json").read_text())["weight_map"]
own = weight_map[name]
found = {}
for other in sorted(set(weight_map.values()) - {own}):
    tensors = load_file(second / other)
    save_file(tensors | {name: torch.full((32,), 1.0)}, second / other, metadata={"format": "pt"})
    found[other] = loaded(second)
    save_file(tensors, second / other, metadata={"format": "pt"})
print(f"2. the index says that 2.0 is in {own}; loaded with a stale 1.0 in another shard:", found)

later = {other: value for other, value in found.items() if other > own}
earlier = {other: value for other, value in found.items() if other < own}
print("   in shards read later:", set(later.values()), "earlier:", set(earlier.values()))
sys.exit(0 if loaded(first) == 1.0 and 1.0 in found.values() else 1)
PYTHON
