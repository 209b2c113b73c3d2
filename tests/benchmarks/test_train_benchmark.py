"""The benchmark of tuning: its counts of operations, its batches, and that its ways agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flops
import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from train_peer import SETTINGS, micro_batches

from jaxalign.model.lora import projection_sizes
from tests.cli.conftest import save_model
from tests.defaults import base_lora
from tests.model.tiny_models import FAMILIES, tiny_case

ROOT = Path(__file__).parents[2]
ROWS, LENGTH = 2, 11
LORA = base_lora(rank=3, alpha=6.0)


@pytest.mark.parametrize("case", FAMILIES)
def test_operations_are_those_that_torch_counts(case: str):
    tiny = tiny_case(case)
    config = peft.LoraConfig(r=LORA.rank, target_modules=list(LORA.targets))
    model: Any = peft.get_peft_model(tiny.torch_model, config)
    tokens = torch.ones((ROWS, LENGTH), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    # Nothing below the first layer's projections has a gradient, and its keys have none either.
    sizes = {name: size for name, (_, size) in projection_sizes(tiny.config).items()}
    below = sum(size_in * size_out for size_in, size_out in (sizes[name] for name in ("q_proj", "k_proj", "v_proj")))
    below += sum(sizes[name][0] * LORA.rank for name in LORA.targets)
    untouched = 2 * below * ROWS * LENGTH + flops.attention(tiny.config, ROWS * LENGTH**2) // 2
    ours = flops.tuning_takes(tiny.config, LORA, [LENGTH] * ROWS, ROWS * LENGTH, recomputed=False)
    assert ours - untouched == counter.get_total_flops()


def test_a_recomputed_pass_costs_the_layers_once_more():
    config, rows = tiny_case("gemma3_text").config, [LENGTH, 7]
    once, twice = (flops.tuning_takes(config, LORA, rows, 5, recomputed=again) for again in (False, True))
    head = flops.logits(config, 5)
    of_all_pairs = flops.attention(config, config.layers * (LENGTH**2 + 7**2))
    of_adapters = flops.adapters(config, LORA, sum(rows))
    assert twice - once == flops.projections(config, sum(rows)) + of_all_pairs + of_adapters
    assert once == 2 * (flops.projections(config, sum(rows)) + head) + 3 * (of_all_pairs + of_adapters)


def test_what_tuning_needs_leaves_out_padding_and_unseen_keys():
    config = tiny_case("llama_mha").config
    takes = flops.tuning_takes(config, LORA, [LENGTH], 4, recomputed=False)
    unseen = LENGTH * (LENGTH - 1) // 2
    assert flops.tuning_needs(config, LORA, [LENGTH], 4) == takes - 3 * flops.attention(config, config.layers * unseen)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_meets_every_target_once(name: str):
    """Each label's id follows the ids before it in its pair, and nothing else is a target."""
    pairs = [(list(range(10 * i, 10 * i + 3 + i % 4)), 1 + i % 2) for i in range(16)]
    found = []
    for micro in micro_batches(pairs, SETTINGS[name]):
        assert micro.tokens.shape == micro.positions.shape == micro.labels.shape
        for row, column in (micro.labels >= 0).nonzero().tolist():
            position = int(micro.positions[row, column])
            pair = int(micro.tokens[row, column]) // 10
            assert micro.tokens[row, column - position : column + 1].tolist() == pairs[pair][0][: position + 1]
            assert micro.labels[row, column] == micro.tokens[row, column]
            found.append((pair, position))
    assert sorted(found) == [(i, t) for i, (ids, prompt) in enumerate(pairs) for t in range(prompt, len(ids))]


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path):
    model = save_model(tmp_path / "model", width=16)
    pairs = tmp_path / "pairs.json"
    line = "Translate the input from German to English:"
    rows = [{"input": f"{'Wort ' * (i % 5 + 1)}\n{line}\n", "answer": "word " * (i % 7 + 1)} for i in range(80)]
    pairs.write_text(json.dumps(rows))
    command = [sys.executable, "benchmarks/train.py", "--model", str(model), "--pairs", str(pairs)]
    command += ["--out", str(tmp_path / "out.json"), "--steps", "2", "--trial-steps", "1", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [measured] = json.loads((tmp_path / "out.json").read_text())["models"]
    assert measured["fastest_setting"] in SETTINGS and list(measured["trial_seconds"]) == list(SETTINGS)
    assert list(measured["ways"]) == ["study", "fastest of transformers", "jaxalign"]
    for figures in measured["ways"].values():
        # Three times the same float32 numbers, after an update too.
        assert figures["largest_loss_difference"] < 1e-4 and figures["examples_per_second"] > 0
        assert figures["largest_gradient_norm_difference"] < 1e-3
    refused = subprocess.run([*command, "--pairs", "none.json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.startswith("train: ") and refused.stderr.count("\n") == 1
