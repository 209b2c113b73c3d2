#!/usr/bin/env bash
# Guess: a checkpoint that Orbax has written holds arrays and their metadata; what it says of itself is relative, so
#   that a folder can be moved and published.
# True: each step's commit_success.txt, the marker of a whole checkpoint, spells the absolute path of where it was saved,
#   home folder and user's name in it. It keeps the old path when the folder is moved; nothing reads the text.
# Seen with: Python 3.11, orbax-checkpoint 0.12.8, jax 0.10.2.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
"$work/venv/bin/python" - "$work/home/alice/run" <<'PY'
import pathlib
import sys

import numpy as np
import orbax.checkpoint as ocp

folder = pathlib.Path(sys.argv[1])
with ocp.CheckpointManager(folder) as manager:
    manager.save(1, args=ocp.args.StandardSave({"x": np.zeros(3)}))
    manager.wait_until_finished()
found = [file for file in folder.rglob("*") if file.is_file() and str(folder).encode() in file.read_bytes()]
for file in found:
    print(f"{file.relative_to(folder)}: {file.read_text()}")
sys.exit(found == [])
PY
