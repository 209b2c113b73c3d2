"""Many pairs: seconds to tokenise and to plan them, and memory, at two sizes, before and after.

    python benchmarks/growth.py --model MODELS/smollm2 --out growth.json

Of each size a file of so many pairs is made of the mini set's texts, in all its languages into English. Each way reads
it in a process of its own, tokenises it, and plans three epochs of the default batches and of packed rows. "before" is
how the first version did it: one text a call, lists of Python numbers, lengths counted anew for every pair.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from workers import answer, exit_code, peak_mib, surroundings

from jaxalign import files
from jaxalign.configuration import config_with
from jaxalign.data import batches
from jaxalign.data.batches import BatchPlan, TokenisedPairs, fit_pairs
from jaxalign.data.languages import LANGUAGES
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.data.tokenizer import Tokenizer, edges, render_all
from jaxalign.errors import InputError
from jaxalign.files import MINI
from jaxalign.loading import config_and_tokenizer
from jaxalign.verbs.train import plans, tuning_of

WAYS = ("before", "after")
LAYOUTS = {"pairs": {}, "rows": {"pairs_per_step": 0, "rows_per_step": 16}}
TEMPLATE = "none"


def one_by_one(pairs: Iterable[QuestionPair], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """`render_all` with a call of the backend for each text, everything that it gives kept."""
    opening, closing = edges(TEMPLATE, tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer.backend(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    return [(opening + ids(pair.prompt), [*ids(pair.response), closing]) for pair in pairs]


def bins_of_a_sorted_list(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """`best_fit_bins` with all bins in one sorted list, which moves up for each item."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        slot = bisect_left(rooms, (length, 0))
        if slot == len(rooms):
            rooms.append((capacity, len(bins)))
            bins.append([])
        room, chosen = rooms.pop(slot)
        bins[chosen].append(item)
        insort(rooms, (room - length, chosen))
    return bins


def measured(way: str, model: Path, file: Path) -> dict[str, Any]:
    """Wall and processor seconds of each part, the peak in MiB, and what was made, to compare ways by."""
    _, tokenizer = config_and_tokenizer(model)
    tokenizer.ids("a")
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        wall, own = time.perf_counter(), time.process_time()
        result = call()
        seconds[name] = [time.perf_counter() - wall, time.process_time() - own]
        return result

    def planned(settings: dict[str, int]) -> BatchPlan:
        config = config_with({"model": "-", "out": "-", "batch": settings})
        plan, _ = plans(tuning_of(config), fitted.pairs, row_multiple=1)
        assert 0 <= plan.padding < 1  # which counts every pair's length, as a run does
        return plan

    before = way == "before"
    pairs = timed("read", lambda: read_pairs([file]))
    rendered = one_by_one if before else lambda pairs, tokenizer: render_all(pairs, TEMPLATE, tokenizer)
    fitted = timed("tokenise", lambda: fit_pairs(rendered(pairs, tokenizer), 2048, "drop"))
    if before:
        patch.object(batches, "best_fit_bins", bins_of_a_sorted_list).start()
        patch.object(TokenisedPairs, "lengths", property(lambda self: np.diff(self.starts) - 1)).start()
    made = []
    for name, settings in LAYOUTS.items():
        plan = timed(f"plan {name}", lambda settings=settings: planned(settings))
        digest = hashlib.sha256(plan.fingerprint["pairs"].encode())
        for step in plan.rows:
            digest.update(str(step).encode())
        made.append(digest.hexdigest())
        del plan
    return {"seconds": seconds, "peak_mib": peak_mib(), "tokens": len(fitted.pairs.ids), "made": made}


def write_pairs(file: Path, count: int) -> None:
    """Pairs of one or two of the mini set's texts, each with a number of its own."""
    texts = {
        code: [" ".join(row.fields) for task in TASKS.values() for row in TaskData(MINI).rows(task, code)]
        for code in LANGUAGES
    }
    sources, choose = [code for code in LANGUAGES if code != "en"], random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            code = sources[number % len(sources)]
            some = choose.sample(range(len(texts["en"])), choose.choice((1, 2)))
            sides = (f"{number}. " + " ".join(texts[language][row] for row in some) for language in (code, "en"))
            row = dict(zip(("source", "target"), sides, strict=True)) | {
                "source_language": code,
                "target_language": "en",
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="of which config and tokenizer are read")
    parser.add_argument("--counts", default="50000,200000")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return answer(measured(options.worker[0], options.model, Path(options.worker[1])))
    runs: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for count in map(int, options.counts.split(",")):
            write_pairs(file := Path(folder) / "pairs.jsonl", count)
            for way in options.ways.split(",") * options.repeats:
                command = [sys.executable, __file__, "--model", str(options.model), "--worker", way, str(file)]
                environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "0"}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                runs.append({"pairs": count, "way": way, "load": os.getloadavg()[0]} | json.loads(done.stdout))
                print(line_of(runs[-1]), flush=True)
    for count in {run["pairs"] for run in runs}:
        if len({json.dumps(run["made"]) for run in runs if run["pairs"] == count}) > 1:
            raise InputError(f"{count} pairs: the ways have made other plans")
    if options.out:
        files.write_json(options.out, {**surroundings(), "runs": runs})


def line_of(run: dict[str, Any]) -> str:
    """A run for the terminal: wall (processor) seconds."""
    parts = [f"{name} {wall:.1f} ({own:.1f}) s" for name, (wall, own) in run["seconds"].items()]
    return f"{run['pairs']:,} {run['way']}: {', '.join(parts)}; peak {run['peak_mib']:.0f} MiB; load {run['load']:.1f}"


if __name__ == "__main__":
    sys.exit(exit_code(run))
