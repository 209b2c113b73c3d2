"""The run of cluster.py on one device, in a process to be killed; says "ready" before its first step. Argument: RUN.

Every step is saved, so that much of the time goes into writing checkpoints.
"""

import sys
from typing import Any

import jax

from jaxalign import runtime
from tests.training.cluster import train_job


def say_ready(step: int, collections: Any) -> dict[str, float]:
    print("ready", flush=True)
    return {}


if __name__ == "__main__":
    runtime.start()
    # Kills are to fall on steps and writing, not on compilation.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    train_job(sys.argv[1], (1, 1, 1), checkpoint_every=1, hooks=[say_ready])
