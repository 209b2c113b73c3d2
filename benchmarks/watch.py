"""What looks at a model cost while it is tuned: `python benchmarks/watch.py --model M --pairs FILE --out FILE.json`.

One run of `jaxalign train` on this machine, adapters on q and v, with `config.watch` before the first step and after
every `--every`. By operations, a look has some share of the run; it costs no more than that where its operations take
no longer than those of the steps. The first step and the first look, which compile, are left out.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flops
from ml_collections import ConfigDict
from train import ON_A_CPU, real_plan
from workers import exit_code, surroundings

import jaxalign as ja
from jaxalign.configuration import config_from_flags
from jaxalign.data.batches import BatchPlan
from jaxalign.data.tasks import parse_rows
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import GridData, label_cell
from jaxalign.evaluation.score import shared_prefix_length
from jaxalign.files import read_json_lines, write_json
from jaxalign.model.config import ModelConfig, read_config
from jaxalign.model.ragged import shared_length
from jaxalign.probing.capture import shared_tokens
from jaxalign.probing.probe import probe_texts
from jaxalign.verbs.evaluate import chosen_cells, prompt_style
from jaxalign.verbs.probe import probe_settings
from jaxalign.verbs.train import tuning_of
from jaxalign.verbs.watch import watch_settings


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--pairs", action="append", required=True, help="a file of question pairs; may be repeated")
    parser.add_argument("--watch", default="accuracy,logit_lens,geometry")
    parser.add_argument("--languages", default="en,zh,de,fr,ru,hi,th,sw")
    parser.add_argument("--rows", default="0:20", help="START:STOP of each language's test file in the mini set")
    parser.add_argument("--every", type=int, default=50, help="steps between looks")
    parser.add_argument("--looks", type=int, default=1, help="that are timed")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    return parser.parse_args(words)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The run's, as keys of the config."""
    return {
        "steps": options.every * options.looks,
        "watch": options.watch,
        "watch_every": options.every,
        "watch_rows": options.rows,
        "watch_languages": options.languages,
        "heldout": 0.0,
        "log_every": 1,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The run, its seconds, and the operations of its steps and of a look."""
    flags = [f"--config.{key}={value}" for key, value in settings_of(options).items()]
    config = config_from_flags([*ON_A_CPU, *flags, f"--config.model={options.model}"], "base")
    model, plan = read_config(options.model), real_plan(options.model, config, options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        ja.train(
            ja.load(options.model, param_dtype="float32"),
            options.pairs,
            run,
            batch={"rows_at_once": 1},
            **settings_of(options),
        )
        rows = [row for _, row in read_json_lines(run / "metrics.jsonl")]
    steps = [row["seconds"] for row in rows if "seconds" in row][1:]
    looks = [row["watch_seconds"] for row in rows if "watch_seconds" in row][1:]
    between, look = options.every * statistics.mean(steps), statistics.mean(looks)
    of_look = look_flops(config, model, load_tokenizer(options.model))
    of_steps = options.every * step_flops(config, model, plan)
    return {
        "step_seconds": steps,
        "look_seconds": looks,
        "look_flops": of_look,
        "flops_between_looks": of_steps,
        "share_of_the_run": look / (look + between),
        "share_of_the_flops": of_look / (of_look + of_steps),
        "overhead": (look / between) / (of_look / of_steps),
    }


def step_flops(config: ConfigDict, model: ModelConfig, plan: BatchPlan) -> float:
    """What the mathematics of a step needs, mean of the plan's."""
    lora = tuning_of(config).lora
    assert lora is not None
    needed = flops.tuning_needs(model, lora, plan.pairs.lengths.tolist(), plan.pairs.target_counts.sum())
    return needed / len(plan.pairs) * config.batch.pairs_per_step


def look_flops(config: ConfigDict, model: ModelConfig, tokenizer: Tokenizer) -> int:
    """Forward passes of everything that is watched: a text that prompts share once, the head where it is read."""
    watch = watch_settings(config)
    watched, read, rows = watch.config, watch.data, parse_rows(watch.config.rows)
    settings = probe_settings(watched, read, [], "watch_")
    texts = probe_texts(settings.rows, read.exemplars, tokenizer).values()

    def accuracy() -> int:
        style, total = prompt_style(watched), 0
        grid = GridData(read.tasks, read.exemplars, tokenizer, rows, style, watched.seed)
        for key in chosen_cells(watched):
            queries = label_cell(grid, key).queries()
            lengths = [len(query.prompt) for query in queries]
            total += flops.behind_a_prefix(model, shared_prefix_length(queries), lengths)
        return total

    def logit_lens() -> int:
        return sum(
            flops.behind_a_prefix(model, shared_length(each.prompts), list(map(len, each.prompts)))
            + flops.logits(model, len(each.prompts) * (model.layers - 1))
            for each in texts
        )

    def geometry() -> int:
        total = 0
        for each in texts:
            shared = shared_tokens(settings.capture.position, each.prompts, each.examples)
            lengths = list(map(len, each.prompts))
            total += flops.behind_a_prefix(model, shared, lengths) - flops.logits(model, len(lengths))
        return total

    counts: dict[str, Callable[[], int]] = {"accuracy": accuracy, "logit_lens": logit_lens, "geometry": geometry}
    if unknown := [name for name in watch.names if name not in counts]:
        raise InputError(f"--watch={config.watch}: the operations of {unknown[0]} are not counted here")
    return sum(counts[name]() for name in watch.names)


def table(measured: dict[str, Any]) -> str:
    """The figures as text."""
    return (
        f"a look takes {statistics.mean(measured['look_seconds']):.1f} s, a step "
        f"{statistics.mean(measured['step_seconds']):.2f} s\n"
        f"looks are {measured['share_of_the_run']:.1%} of the run and {measured['share_of_the_flops']:.1%} of its "
        f"operations: they take {measured['overhead']:.2f} times as long for theirs"
    )


def main() -> None:
    options = parsed()
    measured = measure(options)
    print(table(measured))
    settings = {key: str(value) for key, value in vars(options).items()}
    write_json(Path(options.out), {**measured, "settings": settings, **surroundings()})


if __name__ == "__main__":
    sys.exit(exit_code(main))
