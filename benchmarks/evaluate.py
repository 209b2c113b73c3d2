"""Label scoring, five ways side by side: `python benchmarks/evaluate.py --model FOLDER --out FILE.json`.

On the CPU: the same rows, token ids and threads. The ways take turns, and each repeat is a turn of all of them. A ratio
is that of the study's way to another in time; what it may be at most by counting operations is flops.py's.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flops
import numpy as np
from ways import WAYS
from workers import Worker, exit_code, surroundings, take_turns

from jaxalign.data.languages import parse_languages
from jaxalign.data.prompts import label_queries, read_exemplars, scored_candidates
from jaxalign.data.tasks import TaskData, parse_rows, task_named
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.score import shared_prefix_length
from jaxalign.files import data_folder, exemplars_file, write_json
from jaxalign.model.config import ModelConfig, read_config


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="a Hugging Face folder; may be repeated")
    parser.add_argument("--data", default="mini", help="a folder of task files, or mini")
    parser.add_argument("--tasks", default="emotion,snli,paws")
    parser.add_argument("--languages", default="en", help="codes, comma-separated, or all")
    parser.add_argument("--rows", default="0:60", help="START:STOP of each file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="of transformers' batches")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    return parser.parse_args(words)


def gather_work(options: argparse.Namespace, model: Path) -> dict[str, list[dict[str, Any]]]:
    """task -> its cells: token ids of prompts and words, and candidate ids, with English answers."""
    data, tokenizer = data_folder(options.data), load_tokenizer(model)
    exemplars = read_exemplars(exemplars_file(data, ""))
    work = {}
    for task in (task_named(name) for name in options.tasks.split(",")):
        work[task.name] = []
        for language in parse_languages(options.languages):
            rows = TaskData(data).rows(task, language, parse_rows(options.rows))
            queries = label_queries(rows, exemplars, tokenizer, "english", "study")
            candidates = scored_candidates(task, language, tokenizer, "english", "study")
            work[task.name].append(
                {
                    "language": language,
                    "prompts": [query.prompt for query in queries],
                    "words": [[(word.ids, word.scored_from) for word in query.words] for query in queries],
                    "label_sets": list(candidates.values()),
                    "prefix": shared_prefix_length(queries),
                }
            )
    return work


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """All ways on all tasks with one model."""
    work = gather_work(options, model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work_file = folder / "work.json"
        work_file.write_text(json.dumps(work))

        def start(way: str) -> Worker:
            return Worker("ways.py", [way, model, work_file, options.threads, options.batch_size], folder)

        workers, runs = take_turns(start, WAYS, work, options.repeats, model.name)
    return {
        "model": str(model),
        "tasks": {task: compared(read_config(model), cells, runs[task]) for task, cells in work.items()},
        "workers": workers,
    }


def compared(
    config: ModelConfig, cells: Sequence[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """One task's figures for each way."""
    lengths = [[len(prompt) for prompt in cell["prompts"]] for cell in cells]
    whole = sum(flops.one_at_a_time(config, each, full_logits=True) for each in lengths)
    last = sum(flops.one_at_a_time(config, each, full_logits=False) for each in lengths)
    shared = sum(flops.behind_a_prefix(config, cell["prefix"], each) for cell, each in zip(cells, lengths, strict=True))
    needed = {"study": whole, "last logit": last, "batched": last}
    seconds = {way: statistics.median(run["seconds"] for run in of_way) for way, of_way in runs.items()}
    examples = sum(map(len, lengths))
    reference = [np.array(cell) for cell in runs["study"][0]["masses"]]
    ways = {}
    for way, of_way in runs.items():
        allowed, reached = whole / needed.get(way, shared), seconds["study"] / seconds[way]
        ways[way] = {
            "seconds": [run["seconds"] for run in of_way],
            "median_seconds": seconds[way],
            "examples_per_second": examples / seconds[way],
            "ratio_allowed": allowed,
            "ratio": reached,
            "share_of_allowed": reached / allowed,
            "largest_mass_difference": max(
                float(np.abs(np.array(cell) - expected).max())
                for run in of_way
                for cell, expected in zip(run["masses"], reference, strict=True)
            ),
        }
    return {"examples": examples, "prompt_tokens": sum(map(sum, lengths)), "ways": ways}


def table(measured: dict[str, Any]) -> str:
    """The figures of one model as text."""
    lines = [measured["model"], "task     way                  examples/s  ratio  allowed  share  peak MiB  mass diff"]
    for task, figures in measured["tasks"].items():
        for way, row in figures["ways"].items():
            peak = measured["workers"][way]["peak_mib"]
            lines.append(
                f"{task:8} {way:20} {row['examples_per_second']:10.2f} {row['ratio']:6.2f} {row['ratio_allowed']:8.2f} "
                f"{row['share_of_allowed']:6.0%} {peak:9.0f} {row['largest_mass_difference']:10.1e}"
            )
    compiled = measured["workers"]["jaxalign"]
    lines.append(f"jaxalign compiled {compiled['compilations']} programs in {compiled['compile_seconds']:.1f} s, apart")
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
