"""Malformed inputs at the doors that other programs use too: GGUF, safetensors, PEFT, runs, data sets, results.

What stands in a file is of the right form and yet no model, no adapter, no run: wrong types, numbers out of range,
names that lead elsewhere. Each is one line that names the file, exit code 2, and nothing written.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gguf
import numpy as np
import pytest
from gguf import GGUFValueType
from safetensors.numpy import load_file, save_file

from tests.model.test_gguf import gguf_tensors, tiny
from tests.reporting.folders import write_evaluation, write_lens, write_run

EVALUATE = ("evaluate", "--config.languages=en", "--config.rows=0:2")
PAIRS = "source,target,source_language,target_language\nWo?,Where?,de,en\n"
Spoil = Callable[[Path], object]


def changed(name: str, **fields: Any) -> Spoil:
    """Other fields in a JSON file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **fields}))

    return spoil


def written(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def spoilt(source: Path, place: Path, spoil: Spoil) -> Path:
    """A copy of a folder, spoilt."""
    spoil(shutil.copytree(source, place))
    return place


# GGUF

MODEL = tiny("llama")
SIZE = MODEL.config.vocab_size
METADATA: dict[str, Any] = {
    "llama.context_length": MODEL.config.max_positions,
    "llama.embedding_length": MODEL.config.width,
    "llama.block_count": MODEL.config.layers,
    "llama.feed_forward_length": MODEL.config.mlp_dim,
    "llama.attention.head_count": MODEL.config.heads,
    "llama.attention.head_count_kv": MODEL.config.kv_heads,
    "llama.attention.layer_norm_rms_epsilon": MODEL.config.norm_eps,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*(f"t{index}" for index in range(SIZE - 2)), "t", "1"],
    "tokenizer.ggml.merges": ["t 1"],
}


def gguf_file(path: Path, **metadata: Any) -> Path:
    """A tiny model whose metadata is METADATA with other values; names are written a__b for a.b."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (METADATA | {name.replace("__", "."): value for name, value in metadata.items()}).items():
        kinds = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kinds[type(value)])
    for name, array in gguf_tensors(MODEL).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def describe(refused, tmp_path) -> Callable[[Path], str]:
    """A command that reads a model's config and tokenizer alone."""
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(PAIRS)
    return lambda model: refused("data", "describe", pairs, f"--config.model={model}")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general__alignment": 0}, "general.alignment 0"),
        ({"general__alignment": "x"}, "general.alignment x"),
        ({"llama__block_count": 2**31}, "block_count must be a whole number from 1 to 1000"),
        ({"llama__attention__head_count": 0}, "head_count must be a whole number"),
        ({"llama__attention__layer_norm_rms_epsilon": float("inf")}, "must be a positive number, not Infinity"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "the tokenizer in it does not load"),
        ({"tokenizer__ggml__merges": [1, 2]}, "the tokenizer in it does not load"),
        ({"tokenizer__ggml__merges": ["q x"]}, "`q` out of vocabulary"),
        ({"tokenizer__ggml__pre": [1]}, "the tokenizer in it does not load"),
        ({"tokenizer__ggml__bos_token_id": 10**6}, "the tokenizer in it does not load"),
        ({"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": "x" * SIZE}, "the tokenizer in it does not"),
    ],
)
def test_gguf_metadata(describe, tmp_path, metadata, named):
    message = describe(gguf_file(tmp_path / "model.gguf", **metadata))
    assert "model.gguf" in message and named in message


def test_gguf_arrays_of_arrays(describe, tmp_path):
    """Each holds one other, twenty thousand deep."""
    one = struct.pack("<IQ", GGUFValueType.ARRAY, 1)
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", GGUFValueType.ARRAY)
    (tmp_path / "model.gguf").write_bytes(head + 20_000 * one)
    assert "cut off or broken" in describe(tmp_path / "model.gguf")


# Model folders


def indexed(content: Any) -> Spoil:
    """Weights in a file that only an index leads to."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(changed("config.json", num_hidden_layers=10**9), "from 1 to 1000, not 1000000000", id="layers"),
        pytest.param(changed("config.json", rope_theta=float("inf")), "rope_theta", id="an infinite base"),
        pytest.param(indexed([]), "must be one JSON object", id="an index that is a list"),
        pytest.param(indexed({"weight_map": {"x": 3}}), "no weight_map", id="a number for a file"),
        pytest.param(indexed({"weight_map": {"x": "../model/model.safetensors"}}), "no weight_map", id="elsewhere"),
        pytest.param(indexed({"weight_map": {"x": "model-9.safetensors"}}), "model-9.safetensors", id="no such shard"),
    ],
)
def test_model_folders(refused, tmp_path, model_folder, spoil, named):
    message = refused(*EVALUATE, f"--config.model={spoilt(model_folder, tmp_path / 'model', spoil)}")
    assert str(tmp_path / "model") in message and named in message


# Adapters: PEFT folders, and training runs


def whole_numbers(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {name: tensor.astype(np.int32) for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


PEFT = [
    (changed("adapter_config.json", r="8"), "r must be a whole number"),
    (changed("adapter_config.json", r=10**9), "wrong tensors"),
    (changed("adapter_config.json", lora_alpha=float("inf")), "lora_alpha must be a positive number"),
    (changed("adapter_config.json", lora_alpha=None), "lora_alpha"),
    (changed("adapter_config.json", target_modules=["q_proj", {}]), "target_modules"),
    (changed("adapter_config.json", layers_to_transform=0), "layers_to_transform 0: q_proj has an adapter in 1 of 2"),
    (changed("adapter_config.json", rank_pattern={"q_proj": 4}), "rank_pattern"),
    (changed("adapter_config.json", peft_type={}), "peft_type"),
    (written("adapter_config.json", "[]"), "one JSON object"),
    (whole_numbers, "is stored as I32, which is not supported"),
]


@pytest.mark.parametrize(("spoil", "named"), PEFT)
def test_peft_folders(refused, tmp_path, model_folder, adapter, spoil, named):
    folder = spoilt(adapter, tmp_path / "adapter", spoil)
    (folder / "certificate.json").unlink()  # which would tell that a file changed
    message = refused(*EVALUATE, f"--config.model={model_folder}", f"--config.adapter={folder}")
    assert str(folder) in message and named in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("adapter_config.json", "[]"), "a JSON object is needed"),
        (changed("adapter_config.json", base_model_name_or_path=3), "names no model"),
        (changed("adapter_config.json", r=None), "no LoRA adapter"),
        (written("adapter_model.safetensors", "x"), "safetensors"),
    ],
)
def test_what_verify_cannot_read(refused, tmp_path, adapter, spoil, named):
    folder = spoilt(adapter, tmp_path / "adapter", spoil)
    (folder / "certificate.json").unlink()
    message = refused("verify", folder)
    assert str(folder) in message and named in message


def another_record(folder: Path) -> None:
    """JSON, and not what a checkpoint says of its run."""
    (record,) = folder.glob("checkpoints/*/record/metadata")
    record.write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("run.json", "[]"), "run.json: a JSON object is needed"),
        (written("run.json", "{}"), "run.json: no field 'languages'"),
        (changed("run.json", languages=3), "field 'languages': an object is needed"),
        (changed("run.json", languages={"sources": ["de"], "targets": ["en"], "seen": 3}), "field 'seen'"),
        (another_record, "its record is not one that was saved"),
    ],
)
def test_runs_as_adapters(refused, tmp_path, model_folder, run, spoil, named):
    folder = spoilt(run, tmp_path / "run", spoil)
    message = refused(*EVALUATE, f"--config.model={model_folder}", f"--config.adapter={folder}")
    assert str(folder) in message and named in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("run.json", "[]"), "run.json: a JSON object is needed"),
        (changed("run.json", model=3), "field 'model': text is needed"),
        (changed("run.json", files="x"), "field 'files': an array is needed"),
        (changed("run.json", config={}), "run.json, config: no field 'tune'"),
        (changed("run.json", versions=3), "field 'versions': an object is needed"),
        (written("metrics.jsonl", '{"step": 1, "loss": "x"}\n'), "field 'loss': a number is needed"),
        (written("metrics.jsonl", '{"loss": 1}\n'), "row 0: a JSON object with its step is needed"),
        (written("metrics.jsonl", "[" * 100_000 + "\n"), "row 0: JSON nested too deeply"),
    ],
)
def test_runs_that_are_exported(refused, tmp_path, run, spoil, named):
    folder = spoilt(run, tmp_path / "run", spoil)
    message = refused("export", folder)
    assert str(folder) in message and named in message


# Data sets


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"dataset_info.json": ""}, "dataset_info.json: the file is empty"),
        ({"dataset_info.json": "[]"}, "does not load"),
        ({"dataset_info.json": '{"name": "x", "version": "1.0.0"}'}, "does not load"),
        ({"dataset_info.json": "{}", "state.json": "[]"}, "does not load"),
        ({"dataset_dict.json": '{"splits": ["train"]}'}, "does not load"),
        ({"dataset_dict.json": '{"splits": 3}'}, "does not load"),
        ({"notes.doc": "x"}, "neither files of pairs"),
    ],
)
def test_folders_that_are_no_data_sets(refused, tmp_path, model_folder, files, named):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    message = refused("train", folder, f"--config.model={model_folder}")
    assert str(folder) in message and named in message


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"translation": "x"}, "does not hold a text per language"),
        ({"translation": ["x"]}, "does not hold a text per language"),
        ({"translation": {"de": "x"}}, "no text in en"),
        ({"input": 3, "answer": "x"}, "row 0, field 'input': text is needed"),
    ],
)
def test_hugging_face_columns(refused, tmp_path, model_folder, row, named):
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "set")
    message = refused("train", tmp_path / "set", f"--config.model={model_folder}")
    assert str(tmp_path / "set") in message and named in message


# Results


def first_cell(**fields: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / "results.json").read_text())
        document["cells"][0].update(fields)
        (folder / "results.json").write_text(json.dumps(document))

    return spoil


@pytest.mark.parametrize("verb", ["compare", "report"])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("results.json", "[]"), "a JSON object is needed"),
        (first_cell(accuracy_corrected=float("nan")), "field 'accuracy_corrected': nan"),
        (first_cell(accuracy_corrected=10**400), "field 'accuracy_corrected': a number is needed"),
        (first_cell(count="x"), "field 'count': a whole number is needed"),
        (first_cell(language="xx"), "unknown language 'xx'"),
        (changed("results.json", failures=[3]), "failure 0: a JSON object is needed"),
        (written("timing.json", "[]"), "a JSON object is needed"),
        (written("predictions.jsonl", "[]\n"), "row 0: a JSON object is needed"),
        (changed("logit_lens.json", rows=3), "field 'rows'"),
        (lambda folder: np.savez(folder / "logit_lens.npz"), "no array"),
        (changed("../run/run.json", languages=3), "field 'languages'"),
    ],
)
def test_results(refused, tmp_path, verb, spoil, named):
    write_run(tmp_path / "run")
    before, after = (write_evaluation(tmp_path / name, {("emotion", "en"): 0.6}) for name in ("before", "after"))
    changed("results.json", adapter="run")(after)
    write_lens(after, ["en"], layers=2)
    changed("logit_lens.json", adapter="run")(after)
    spoil(after)
    message = refused(verb, before, after)
    assert str(tmp_path) in message and named in message
