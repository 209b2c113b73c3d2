"""The benchmark of label scoring: its counts of operations, and that its ways agree."""

import json
import subprocess
import sys
from pathlib import Path

import flops
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.cli.conftest import save_model
from tests.model.tiny_models import FAMILIES, WINDOW, tiny_case

LENGTH = 11


@pytest.mark.parametrize("case", FAMILIES)
def test_operations_are_those_that_torch_counts(case: str):
    tiny = tiny_case(case)
    config = tiny.config
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tiny.torch_model(torch.ones((1, LENGTH), dtype=torch.long))
    # Torch's attention computes all pairs, and masks those that no query sees.
    local = config.local_layers or (False,) * config.layers
    seen = {False: LENGTH * (LENGTH + 1) // 2, True: sum(min(i + 1, WINDOW) for i in range(LENGTH))}
    unseen = sum(LENGTH**2 - seen[kind] for kind in local)
    ours = flops.one_at_a_time(config, [LENGTH], full_logits=True)
    assert ours == counter.get_total_flops() - 4 * config.heads * config.head_dim * unseen


def test_a_prefix_is_counted_once():
    config = tiny_case("gemma3_text").config
    whole = flops.forward(config, 0, 20)
    assert whole == flops.forward(config, 0, 12) + flops.forward(config, 12, 20)
    assert flops.behind_a_prefix(config, 12, [20, 20]) == 2 * whole - flops.forward(config, 0, 12) + flops.logits(
        config, 2
    )


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path):
    model = save_model(tmp_path / "model", width=16)
    root = Path(__file__).parents[2]
    command = [sys.executable, "benchmarks/evaluate.py", "--model", str(model), "--out", str(tmp_path / "out.json")]
    command += ["--tasks", "emotion", "--languages", "de", "--rows", "0:3", "--repeats", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [measured] = json.loads((tmp_path / "out.json").read_text())["models"]
    ways = measured["tasks"]["emotion"]["ways"]
    assert list(ways) == ["study", "last logit", "batched", "jaxalign", "jaxalign, words too"]
    for figures in ways.values():
        # Five times the same float32 numbers.
        assert figures["largest_mass_difference"] < 1e-5 and figures["examples_per_second"] > 0
    assert ways["jaxalign"]["ratio_allowed"] > ways["batched"]["ratio_allowed"] > ways["study"]["ratio_allowed"] == 1
    refused = subprocess.run([*command, "--languages", "dee"], cwd=root, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.startswith("evaluate: ") and refused.stderr.count("\n") == 1
