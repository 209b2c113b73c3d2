"""Processes of a benchmark, one for each way, that wait for their turns; and the machine that they run on."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")


class Worker:
    """A script of this folder in a process of its own, on the CPU. It answers {"ready": ...} once, then every turn."""

    def __init__(self, script: str, arguments: list[object], cache: Path):
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        # A cache of its own: programs are compiled anew.
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "XDG_CACHE_HOME": str(cache),
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self.read()["ready"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"a worker ended with exit code {self.process.wait()}; its error stands above")
        return json.loads(line)

    def run(self, turn: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(turn) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def take_turns(
    start: Callable[[str], Worker], ways: Collection[str], tasks: Collection[Any], repeats: int, label: str = ""
) -> tuple[dict[str, dict[str, Any]], dict[Any, dict[str, list[dict[str, Any]]]]]:
    """Each repeat is a turn of all ways at every task.

    Returns what each way's worker said when it was ready, with its peak memory, and task -> way -> its answers.
    """
    from tqdm import tqdm  # not above: workers import this file, and their memory is measured

    workers: dict[str, Worker] = {}
    runs = {task: {way: [] for way in ways} for task in tasks}
    try:
        with tqdm(total=len(ways) * (1 + repeats * len(tasks)), unit="turn", desc=label, disable=None) as progress:
            for way in ways:
                workers[way] = start(way)
                progress.update()
            for _ in range(repeats):
                for task in tasks:
                    for way in ways:
                        runs[task][way].append(workers[way].run(task))
                        progress.update()
    finally:
        for worker in workers.values():
            worker.end()
    peaks = {way: max(run["peak_mib"] for of_task in runs.values() for run in of_task[way]) for way in ways}
    return {way: {**worker.ready, "peak_mib": peaks[way]} for way, worker in workers.items()}, runs


def exit_code(main: Callable[[], None]) -> int:
    """What a benchmark's process ends with: 2, after a line that says why, where its input or a file is at fault."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return 2
    return 0


def answer(document: Any) -> None:
    """What a worker says."""
    print(json.dumps(document), flush=True)


def peak_resident_bytes() -> int:
    """The largest resident size of this process, so far or since `reset_peak` (Linux).

    Not `resource.getrusage`: its maximum survives exec, so a child would start with its parent's.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_mib() -> float:
    """The same in MiB."""
    return peak_resident_bytes() / 2**20


def reset_peak() -> float:
    """The MiB that this process holds now, from which its largest size counts again (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def keep_to(threads: int) -> None:
    """Confines this process to so many of its cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def torch_model(folder: Path, threads: int) -> Any:
    """transformers' model in float32 with its default attention."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def surroundings() -> dict[str, Any]:
    """The command, the libraries and the machine, for the file of results."""
    return {
        "command": " ".join(sys.argv),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "machine": {"cores": os.cpu_count(), "processor": processor()},
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
