"""Tuning an adapter, three ways side by side: `python benchmarks/train.py --model FOLDER --pairs FILE --out FILE.json`.

On the CPU, float32, LoRA on q_proj and v_proj: the study's recipe and the fastest of several settings of transformers +
peft, and the compiled step of `jaxalign train`. All make the same optimizer steps on the same token ids, from the same
adapter, with the same threads. The settings are tried one after the other; then the three ways take turns.

Model FLOP utilisation: operations that the mathematics needs (flops.tuning_needs: no padding, no recomputation, no
gradient of frozen weights), a second, over those of a large float32 matrix product in torch on the same threads.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flops
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm
from train_peer import SETTINGS
from train_ways import OURS
from workers import Worker, exit_code, surroundings, take_turns

from jaxalign.configuration import config_from_flags
from jaxalign.data.batches import BatchPlan, fit_pairs
from jaxalign.data.pairs import read_pairs
from jaxalign.data.tokenizer import load_tokenizer, render_all, resolve_template
from jaxalign.files import write_json
from jaxalign.model.config import ModelConfig, read_config
from jaxalign.model.lora import lora_shapes
from jaxalign.verbs.train import plans, tuning_of

ON_A_CPU = ("--config.batch.rows_at_once=1",)
"""Our settings: small products are as fast as large ones there, and what a step does not hold is not computed."""
STUDY, FASTEST = "study", "fastest of transformers"


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="a Hugging Face folder; may be repeated")
    parser.add_argument("--pairs", action="append", required=True, help="a file of question pairs; may be repeated")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a turn")
    parser.add_argument("--trial-steps", type=int, default=2, help="of each setting that is tried")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", required=True, help="the JSON file to write")
    return parser.parse_args(words)


def real_plan(model: Path, config: ConfigDict, files: Sequence[str]) -> BatchPlan:
    """The plan that `jaxalign train` makes of the files."""
    tokenizer, template = load_tokenizer(model), resolve_template(config.template, read_config(model).family)
    rendered = render_all(read_pairs([Path(file) for file in files]), template, tokenizer)
    pairs = fit_pairs(rendered, config.batch.length, config.batch.too_long).pairs
    return plans(tuning_of(config), pairs, row_multiple=1)[0]


def gather_work(config: ConfigDict, plan: BatchPlan, steps: int) -> dict[str, Any]:
    """The first steps of a plan, and every setting, as JSON: what train_ways.py and train_peer.py read."""
    pairs, rows, of_steps = plan.pairs, [], []
    placed = 0
    for step in plan.rows[:steps]:
        # As drawn, not as packed: the order of the file, which knows nothing of lengths.
        members = sorted(pair for row in step for pair in row)
        of_steps.append(
            [(pairs.ids[pairs.starts[i] : pairs.starts[i + 1]].tolist(), int(pairs.prompt_lengths[i])) for i in members]
        )
        rows.append([[placed + members.index(pair) for pair in row] for row in step])
        placed += len(members)
    tuning = tuning_of(config)
    assert tuning.lora is not None
    return {
        "steps": of_steps,
        "rows": rows,
        "length": plan.length,
        "targets_per_row": plan.targets_per_row,
        "lora": asdict(tuning.lora),
        "optimizer": asdict(tuning.run.optimizer),
        "warmup_steps": int(tuning.run.optimizer.warmup_fraction * steps + 0.5),
        "step": asdict(tuning.run.step),
    }


def random_adapter(model: ModelConfig, config: ConfigDict) -> dict[str, np.ndarray]:
    """Path -> factor. B is not zero, so that every factor has a gradient from the first step on."""
    rng, lora = np.random.default_rng(0), tuning_of(config).lora
    assert lora is not None
    return {
        f"{module}/{target}/{name}": rng.normal(0.0, 0.02, shape.shape).astype(np.float32)
        for module, targets in lora_shapes(model, lora)["layers"].items()
        for target, factors in targets.items()
        for name, shape in factors.items()
    }


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """All ways with one model."""
    config = config_from_flags(ON_A_CPU, "base")
    plan = real_plan(model, config, options.pairs)
    work = gather_work(config, plan, options.steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work.json").write_text(json.dumps(work))
        np.savez(folder / "adapter.npz", allow_pickle=False, **random_adapter(read_config(model), config))

        def start(way: str) -> Worker:
            return Worker("train_ways.py", [way, model, folder, options.threads], cache=folder)

        trials = {}
        for setting in tqdm(SETTINGS, unit="setting", desc=f"{model.name}: settings", disable=None):
            worker = start(setting)
            try:
                trials[setting] = worker.run(options.trial_steps)
            finally:
                worker.end()
        fastest = min(trials, key=lambda setting: trials[setting]["seconds"])
        ways = {STUDY: STUDY, FASTEST: fastest, OURS: OURS}
        ready, runs = take_turns(lambda way: start(ways[way]), ways, [options.steps], options.repeats, model.name)
    return {
        "model": str(model),
        "fastest_setting": fastest,
        "trial_seconds": {setting: trial["seconds"] for setting, trial in trials.items()},
        "plan": {"rows": plan.rows_per_step, "length": plan.length, "padding": plan.padding, "steps": plan.steps},
        **compared(read_config(model), config, work, ready, runs[options.steps]),
    }


def compared(
    model: ModelConfig,
    config: ConfigDict,
    work: dict[str, Any],
    ready: dict[str, dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """The figures of each way."""
    lora, pairs = tuning_of(config).lora, [pair for step in work["steps"] for pair in step]
    assert lora is not None
    lengths = [len(ids) - 1 for ids, _ in pairs]
    targets = sum(len(ids) - prompt for ids, prompt in pairs)
    needed = flops.tuning_needs(model, lora, lengths, targets)
    ceiling = max(each["product_flops_per_second"] for each in ready.values())
    seconds = {way: statistics.median(run["seconds"] for run in of_way) for way, of_way in runs.items()}
    taken = {way: flops.tuning_takes(model, lora, **each["computed"]) for way, each in ready.items()}
    ways = {}
    for way, of_way in runs.items():
        ways[way] = {
            "seconds": [run["seconds"] for run in of_way],
            "median_seconds": seconds[way],
            "examples_per_second": len(pairs) / seconds[way],
            "tokens_per_second": sum(lengths) / seconds[way],
            "ratio": {other: seconds[other] / seconds[way] for other in runs},
            "flops_ratio": {other: taken[other] / taken[way] for other in runs},
            "flops": taken[way],
            "utilisation": needed / seconds[way] / ceiling,
            "largest_loss_difference": largest(of_way, runs[STUDY][0], "losses"),
            "largest_gradient_norm_difference": largest(of_way, runs[STUDY][0], "gradient_norms"),
            "losses": of_way[0]["losses"],
            **ready[way],
        }
    return {
        "examples": len(pairs),
        "tokens": sum(lengths),
        "targets": targets,
        "needed_flops": needed,
        "product_flops_per_second": ceiling,
        "ways": ways,
    }


def largest(runs: Sequence[dict[str, Any]], reference: dict[str, Any], key: str) -> float:
    """How far any run's numbers are from the reference's."""
    return max(float(np.abs(np.subtract(run[key], reference[key])).max()) for run in runs)


def table(measured: dict[str, Any]) -> str:
    """The figures of one model as text."""
    plan = measured["plan"]
    lines = [
        f"{measured['model']}: {measured['examples']} pairs a turn; rows {plan['rows']} x {plan['length']} "
        f"({plan['padding']:.0%} padding); transformers' fastest setting: {measured['fastest_setting']}",
        "way                      examples/s  tokens/s  x study  FLOPs/study's  MFU  peak MiB  loss diff",
    ]
    for way, row in measured["ways"].items():
        lines.append(
            f"{way:24} {row['examples_per_second']:10.2f} {row['tokens_per_second']:9.0f} {row['ratio'][STUDY]:8.2f} "
            f"{1 / row['flops_ratio'][STUDY]:14.2f} {row['utilisation']:4.0%} {row['peak_mib']:9.0f} "
            f"{row['largest_loss_difference']:10.1e}"
        )
    ours = measured["ways"][OURS]
    lines.append(
        f"{OURS} is {ours['ratio'][FASTEST]:.2f} times as fast as transformers' fastest setting; "
        f"its first step, compilation included, took {ours['first_step_seconds']:.1f} s, apart"
    )
    return "\n".join(lines)


def main() -> None:
    options = parsed()
    models = []
    for model in options.model:
        models.append(measure(options, Path(model)))
        print(table(models[-1]), flush=True)
    write_json(Path(options.out), {"models": models, "settings": vars(options), **surroundings()})


if __name__ == "__main__":
    sys.exit(exit_code(main))
