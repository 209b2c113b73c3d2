"""Facts about compiled programs: from the cache, or from a process that compiles."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxalign
from jaxalign import files, runtime
from jaxalign.errors import InputError
from jaxalign.planning.job import Job

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
SOURCES = ("data/batches.py", "model", "training", "planning", "runtime.py")
"""What of this package decides what a training step is, where it runs and how it is counted."""
MORE_SOURCES = {"train": (), "score": ("evaluation",), "lens": ("probing",)}
"""And what decides another program."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU host to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
OF_OTHER_PROCESSES = ("JAXALIGN_DISTRIBUTED", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def facts_of(job: Job) -> dict[str, Any]:
    """What `compile.compiled_facts` says of the job, compiled only where no earlier call has.

    Raises:
      InputError: libtpu is missing or knows no such slice, the mesh does not suit it, or the compiler failed.
    """
    path = runtime.cache_folder() / "plans" / f"{key_of(job)}.json"
    if path.is_file():
        return files.read_json(path)
    facts = compiled_elsewhere(job)
    files.write_json(path, facts)
    return facts


def key_of(job: Job) -> str:
    """A digest of all that the facts depend on."""
    document = {
        "job": dataclasses.asdict(job),
        "versions": versions(),
        "source": source_digest(SOURCES + MORE_SOURCES[job.program]),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that decide what a program compiles to."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("plan compiles with libtpu, which is not installed: pip install 'jaxalign[plan]'")
    return {name: metadata.version(name) for name in PACKAGES}


def source_digest(names: Sequence[str]) -> str:
    """A digest of the package's source files of these names, or in folders of them."""
    package, digest = Path(jaxalign.__file__).parent, hashlib.sha256()
    for name in names:
        place = package / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def compiled_elsewhere(job: Job) -> dict[str, Any]:
    """Runs compile.py on the job."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_OTHER_PROCESSES}
    package = str(Path(jaxalign.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "jaxalign.planning.compile"],
        input=json.dumps(dataclasses.asdict(job)),
        capture_output=True,
        text=True,
        env=environment | ENVIRONMENT | {"PYTHONPATH": path},
    )
    if done.returncode:
        said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
        raise InputError(f"{job.topology}: the compiler ended with code {done.returncode}: {said[:300]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if "input_error" in facts:
        raise InputError(facts["input_error"])
    return facts
