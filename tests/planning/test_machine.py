"""What a machine holds: sizes of weights against transformers' own models, and lines that say what fits."""

from types import SimpleNamespace

import jax
import pytest
import torch
import transformers

from jaxalign.model import architectures
from jaxalign.planning import plan
from jaxalign.planning.chips import GIB
from jaxalign.planning.plan import Machine, machine_lines, this_machine, weight_bytes


def parameters(name: str) -> tuple[int, int]:
    """Of transformers' model of a shipped config.json: all parameters, and those of its layers' projections."""
    config = transformers.AutoConfig.from_pretrained(architectures.FOLDER / f"{name}.json")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linear = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    return sum(each.numel() for each in model.parameters()), sum(each.weight.numel() for each in linear)


@pytest.mark.parametrize("name", ["gemma-3-1b", "qwen1.5-1.8b", "llama-2-7b"])
def test_bytes_of_stored_weights(name):
    every, projected = parameters(name)
    architecture, rest = architectures.read(name), every - projected
    assert weight_bytes(architecture, "float32", 1) == 4 * every
    assert weight_bytes(architecture, "bfloat16", 1) == 2 * every
    # Beside a byte, or half of one, a weight: a float32 for every output, or for every block of 64.
    assert projected < weight_bytes(architecture, "int8", 1) - 2 * rest < 1.01 * projected
    assert weight_bytes(architecture, "nf4", 1) - 2 * rest == projected / 2 + projected / 64 * 4
    # Of eight devices each holds an eighth, and all of the norms.
    split = weight_bytes(architecture, "bfloat16", 8)
    assert 2 * every / 8 < split < 1.01 * 2 * every / 8


def words(one: Machine) -> dict[str, list[str]]:
    """The lines by their first word."""
    return {line.split()[0]: line.split()[1:] for line in machine_lines(one) if line}


def test_what_fits_is_told_from_what_does_not():
    one = words(Machine("TPU v5 lite", 1, int(15.75 * GIB)))
    assert " ".join(one["1"]) == "x TPU v5 lite, 15.75 GiB each"
    assert one["llama-2-7b"][:3] == ["(25.1)", "12.6", "6.5"]
    assert [text[0] for text in one["llama-3.1-70b"]] == ["("] * 4
    eight = words(Machine("TPU v5 lite", 8, int(15.75 * GIB)))
    assert eight["llama-2-7b"][0] == "3.1" and eight["llama-3.1-70b"][0] == "(32.9)"
    three = words(Machine("three of them", 3, None))
    assert three["3"][-3:] == ["unknown", "memory", "each"] and set(three["llama-2-7b"]) == {"no"}


@pytest.mark.parametrize(
    ("kind", "stats", "memory"),
    [
        ("TPU v6 lite", None, int(31.25 * GIB)),
        ("TPU v6 lite", {"bytes_limit": 31 * GIB}, 31 * GIB),
        ("NVIDIA H100 80GB HBM3", {"bytes_limit": 60 * GIB}, 60 * GIB),
        ("something else", None, None),
    ],
)
def test_memory_of_an_accelerator(monkeypatch, kind, stats, memory):
    device = SimpleNamespace(platform="tpu", device_kind=kind, memory_stats=lambda: stats)
    monkeypatch.setattr(plan, "jax", SimpleNamespace(local_devices=lambda: [device], device_count=lambda: 8))
    assert this_machine() == Machine(kind, 8, memory)


def test_this_machine():
    here = this_machine()
    assert here.devices == jax.device_count() == 8
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert here.memory == pytest.approx(total / 8, rel=1e-3)
