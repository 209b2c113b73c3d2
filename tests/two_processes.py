"""One command in two processes of four devices each, joined by jax.distributed over loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
JAXALIGN = ("-c", "import sys; from jaxalign.cli import main; sys.exit(main())")
"""`jaxalign`, behind the interpreter."""


def start_two(*command: object, folders: Sequence[Path] = (REPOSITORY, REPOSITORY)) -> list[subprocess.Popen[str]]:
    """The Python command, begun twice, each in its folder; the first process is number 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XDG_CACHE_HOME": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "PYTHONPATH": str(REPOSITORY),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=os.environ | cluster | {"JAX_PROCESS_ID": str(process)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, folder in enumerate(folders)
    ]


def end_of(processes: list[subprocess.Popen[str]], seconds: float = 300) -> tuple[list[int], list[str]]:
    """Exit codes and what was said on stderr; TimeoutExpired, and all of them ended, after so many seconds."""
    deadline = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=deadline - time.monotonic())[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said
