"""Probes of the same prompts, three ways side by side: `python benchmarks/probe.py --model FOLDER --out FILE.json`.

The study's way (transformers, a prompt at a time, final norm and head on every position of every layer), a mended torch
script (batches, the last position alone), and jaxalign; on the CPU, in-language emotion prompts, the same token ids and
threads. For each probe the ways take turns, and each repeat is a turn of all of them. Memory is what a process held at
most beyond what it held when its model was loaded. jaxalign keeps its compiled programs, so it is started twice: the
first process compiles (`compiling`), the second takes the turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from probe_ways import PROBES, WAYS
from workers import Worker, exit_code, surroundings, take_turns

from jaxalign.data.languages import parse_languages
from jaxalign.data.prompts import read_exemplars
from jaxalign.data.tasks import TaskData, parse_rows
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.files import data_folder, exemplars_file, write_json
from jaxalign.probing.logit_lens import word_sets
from jaxalign.probing.probe import TASK, probe_texts


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", default="mini", help="a folder of task files, or mini")
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--languages", default="en,zh,ja,ru", help="codes, comma-separated, or all")
    parser.add_argument("--rows", default="0:10", help="START:STOP of each file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="of the two that batch")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    return parser.parse_args(words)


def gather_work(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each language: token ids of its prompts, and the candidate ids of all label words."""
    folder, tokenizer = data_folder(options.data), load_tokenizer(Path(options.model))
    files, chosen = TaskData(folder), parse_rows(options.rows)
    rows = [files.rows(TASK, code, chosen) for code in parse_languages(options.languages)]
    texts = probe_texts(rows, read_exemplars(exemplars_file(folder, "")), tokenizer)
    return [
        {"language": code, "prompts": each.prompts, "label_sets": word_sets(tokenizer, code).all()}
        for code, each in texts.items()
    ]


def measure(options: argparse.Namespace, probe: str, work_file: Path) -> dict[str, Any]:
    """One probe's figures, all ways."""
    compiling: dict[str, float] = {}

    def start(way: str) -> Worker:
        arguments = [way, probe, options.model, work_file, options.threads, options.batch_size]
        worker = Worker("probe_ways.py", arguments, work_file.parent)
        if way != "jaxalign" or compiling:
            return worker
        try:
            compiling.update(warm_up(worker.ready))
        finally:
            worker.end()
        return start(way)

    ready, turns = take_turns(start, WAYS, ["go"], options.repeats, probe)
    runs = turns["go"]
    rows = sum(len(cell["prompts"]) for cell in json.loads(work_file.read_text()))
    measured = {way: figures(rows, ready[way], runs[way], runs["study"]) for way in WAYS}
    measured["jaxalign"]["compiling"] = compiling
    return measured


def warm_up(ready: dict[str, Any]) -> dict[str, float]:
    """What a process took to meet every shape once."""
    return {"seconds": ready["warm_up_seconds"], "mib_beyond_weights": ready["warm_up_peak_mib"] - ready["loaded_mib"]}


def figures(
    rows: int, ready: dict[str, Any], runs: list[dict[str, Any]], reference: list[dict[str, Any]]
) -> dict[str, Any]:
    """One way's: rate, memory, and how far its numbers lie from the reference's (entropy and states per unit)."""
    seconds = statistics.median(run["seconds"] for run in runs)
    with np.load(runs[0]["numbers"]) as ours, np.load(reference[0]["numbers"]) as theirs:
        # Of masses the difference itself; of what is larger than 1, relative to its size. A gate near 0 falls to either
        # side by rounding, which changes a count by one.
        apart = [np.abs(ours[name] - theirs[name]) / np.maximum(1.0, np.abs(theirs[name])) for name in theirs]
    return {
        "loaded_mib": ready["loaded_mib"],
        "warm_up": warm_up(ready),
        "seconds": [run["seconds"] for run in runs],
        "rows_per_second": rows / seconds,
        "times_the_study": statistics.median(run["seconds"] for run in reference) / seconds,
        "peak_mib_beyond_weights": ready["peak_mib"] - ready["loaded_mib"],
        "largest_difference": max(float(difference.max()) for difference in apart),
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The figures as text."""
    lines = ["probe   way        rows/s  times the study  MiB beyond weights  difference"]
    for probe, ways in measured.items():
        for way, row in ways.items():
            lines.append(
                f"{probe:7} {way:9} {row['rows_per_second']:7.2f} {row['times_the_study']:16.1f} "
                f"{row['peak_mib_beyond_weights']:19.0f} {row['largest_difference']:11.1e}"
            )
    return "\n".join(lines)


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        work_file = Path(folder) / "work.json"
        work_file.write_text(json.dumps(gather_work(options)))
        measured = {probe: measure(options, probe, work_file) for probe in options.probes.split(",")}
    print(table(measured))
    write_json(Path(options.out), {"probes": measured, "settings": vars(options), **surroundings()})


if __name__ == "__main__":
    sys.exit(exit_code(main))
