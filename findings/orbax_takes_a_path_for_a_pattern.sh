#!/usr/bin/env bash
# Guessed: a folder's name is a name to Orbax; a checkpoint that it saved without an error can be read.
# True: while it saves, it looks for its own parts by a glob of the whole path. Below a folder such as `lr[1]` the glob
#   finds nothing, the parts are not joined, and save() succeeds with a checkpoint that holds no arrays. Where the path
#   has `**` it raises NotImplementedError. Below `a\b` save() succeeds too: tensorstore writes the arrays into `a/b`. In
#   every path `gs:/`, as in a folder `logs:`, becomes `gs://`, at which it raises ValueError.
# Seen with: orbax-checkpoint 0.12.8, jax 0.10.2, Python 3.11 (jax 0.10.2 is the last for it).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$work/seen.py" <<'PY'
import logging
import sys
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)


def saved_and_read(folder: Path) -> str:
    try:
        with ocp.CheckpointManager(folder) as manager:
            manager.save(1, args=ocp.args.StandardSave({"a": jnp.arange(3.0)}))
    except Exception as error:
        return f"not saved: {type(error).__name__}"
    try:
        with ocp.CheckpointManager(folder) as manager:
            return f"read: {manager.restore(1, args=ocp.args.StandardRestore({'a': jnp.zeros(3)}))['a'].tolist()}"
    except Exception as error:
        return f"saved without an error, not read: {type(error).__name__}"


seen = {name: saved_and_read(Path(sys.argv[1]) / name / "run") for name in ("plain", "lr[1]", "a**b", "a\\b", "logs:")}
for name, what in seen.items():
    print(f"{name:6} {what}")
expected = {
    "plain": "read: [0.0, 1.0, 2.0]",
    "lr[1]": "saved without an error, not read: ",
    "a**b": "not saved: NotImplementedError",
    "a\\b": "saved without an error, not read: ",
    "logs:": "not saved: ValueError",
}
sys.exit(not all(seen[name].startswith(what) for name, what in expected.items()))
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/seen.py" "$work/out"
