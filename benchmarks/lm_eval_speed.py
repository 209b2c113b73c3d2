"""Requests of lm-eval per second, its `hf` model beside ours.

`python benchmarks/lm_eval_speed.py --model FOLDER --out FILE.json`

On the CPU: the same tasks (lm_eval_tasks.py) as lm-eval makes requests of them, the same threads. The ways take turns,
and each repeat is a turn of all of them at every task. A ratio is that of `hf`, one request at a time, to another in
time; compilation is apart.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval_tasks import tasks, write_tasks
from lm_eval_ways import WAYS
from workers import Worker, exit_code, surroundings, take_turns

from jaxalign.files import write_json


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--limit", type=int, help="documents of each task at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batch-size", type=int, default=8, help="of transformers' batches, and of texts that we decode"
    )
    parser.add_argument("--out", required=True, help="the JSON file to write")
    return parser.parse_args(words)


def gather_work(folder: Path, limit: int | None) -> dict[str, dict[str, Any]]:
    """task -> the type of its requests and their arguments."""
    write_tasks(folder, limit)
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(list(tasks()))["tasks"]
    work = {}
    for name, task in loaded.items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
        work[name] = {"type": task.instances[0].request_type, "arguments": [one.args for one in task.instances]}
    return work


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All ways at all tasks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = gather_work(folder, options.limit)
        work_file = folder / "work.json"
        work_file.write_text(json.dumps(work))

        def start(way: str) -> Worker:
            arguments = [way, options.model, work_file, options.threads, options.batch_size]
            return Worker("lm_eval_ways.py", arguments, folder)

        workers, runs = take_turns(start, WAYS, work, options.repeats)
    return {"tasks": {task: compared(of_task, runs[task]) for task, of_task in work.items()}, "workers": workers}


def compared(task: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One task's figures for each way."""
    seconds = {way: statistics.median(run["seconds"] for run in of_way) for way, of_way in runs.items()}
    requests = len(task["arguments"])
    ways = {
        way: {
            "seconds": [run["seconds"] for run in of_way],
            "requests_per_second": requests / seconds[way],
            "ratio": seconds["hf"] / seconds[way],
            **difference(task["type"], of_way[0]["answers"], runs["hf"][0]["answers"]),
        }
        for way, of_way in runs.items()
    }
    return {"type": task["type"], "requests": requests, "ways": ways}


def difference(kind: str, found: Sequence[Any], expected: Sequence[Any]) -> dict[str, float]:
    """How many texts, or continuations called greedy, are not those expected, and how far numbers lie apart."""
    if kind == "generate_until":
        return {"different": sum(a != b for a, b in zip(found, expected, strict=True))}
    if kind == "loglikelihood_rolling":
        found, expected = [(number, None) for number in found], [(number, None) for number in expected]
    return {
        "different": sum(a[1] != b[1] for a, b in zip(found, expected, strict=True)),
        "largest_relative_difference": max(abs(a[0] / b[0] - 1) for a, b in zip(found, expected, strict=True)),
    }


def table(measured: dict[str, Any]) -> str:
    """The figures as text."""
    lines = ["task                     requests  way          requests/s  ratio  different  relative difference"]
    for task, figures in measured["tasks"].items():
        for way, row in figures["ways"].items():
            apart = f"{row['largest_relative_difference']:.1e}" if "largest_relative_difference" in row else ""
            lines.append(
                f"{task:24} {figures['requests']:8}  {way:12} {row['requests_per_second']:10.2f} {row['ratio']:6.2f} "
                f"{row['different']:10} {apart:>20}"
            )
    for way, worker in measured["workers"].items():
        lines.append(f"{way}: warm-up {worker['warm_up_seconds']:.1f} s, peak {worker['peak_mib']:.0f} MiB")
    return "\n".join(lines)


def main() -> None:
    options = parsed()
    measured = measure(options)
    print(table(measured), flush=True)
    document = {**measured, "settings": vars(options), **surroundings()}
    document["versions"]["lm_eval"] = version("lm_eval")
    write_json(Path(options.out), document)


if __name__ == "__main__":
    sys.exit(exit_code(main))
