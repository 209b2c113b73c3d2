"""The golden commands: every verb as a user calls it, on the files of world.py, in one process.

Left out: `demo`, which is these verbs one after the other on a model of 270M, and `python -m jaxalign.lm_eval`.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path

from matplotlib.figure import Figure

import jaxalign as ja
from jaxalign.cli import main
from tests.golden.figures import save_numbers

COMMANDS = [
    line
    for line in Path(__file__).with_name("commands.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LIBRARY = "ja: import jaxalign as ja"

SHORT = {
    "LANGUAGES": "languages=en,zh,th",
    "CELLS": "languages=en,zh,th rows=0:3",
    "LABELS": "tasks=all variants=all languages=en,zh,th rows=0:3",
    "FIVE": "probes=logit_lens,attribution,pca,geometry,neurons languages=en,zh,th rows=0:3",
    "LAST": "attribution_positions=2 capture.layers=0,3 capture.position=last batch_size=2",
    "MASKS_OF_GEMMA": "probes=masking,masked_accuracy,transplant languages=en,zh,th rows=0:3 "
    "neurons.selection=out/probed/selection.npz neurons.masked=general",
    "STEPS": "steps=4 batch.pairs_per_step=4 optimizer.learning_rate=1e-2 log_every=1 checkpoint_every=2 "
    "heldout_every=2",
    "CUT": "batch.length=64 batch.too_long=cut",
    "PACKED": "batch.pairs_per_step=0 batch.rows_per_step=4 batch.length=256 batch.accumulation=2 remat=full "
    "loss.chunk=8 loss.reduction=micro_batch_mean",
    "DORA": "lora.dora=True lora.targets=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj heldout=0.2",
    "IN_ALL_FORMS": "in/my_pairs.csv in/my_pairs.jsonl in/alpaca.json in/sharegpt.json in/train.en",
    "WATCH": "watch=accuracy,open_answers,logit_lens,attribution,pca,geometry,neurons watch_every=2 watch_rows=0:3 "
    "watch_languages=en,zh,th tasks=emotion,translation pairs=out/built/pairs.json generate.max_tokens=4 "
    "neurons.top_rate=0.05 heldout=0.2",
}


def run_all(verbs: Collection[str] = ()) -> None:
    """Runs every command, or those of the verbs named, and notes in made.json which files each has made."""
    setattr(Figure, "savefig", save_numbers)  # noqa: B010
    note = Path("made.json")
    made = json.loads(note.read_text()) if note.is_file() else {}
    chosen = [line for line in (*COMMANDS, LIBRARY) if not verbs or verb_of(line) in verbs]
    for file in {Path(file) for line in chosen for file in made.get(line, ())}:
        file.unlink(missing_ok=True)
        for folder in file.parents:  # a checkpoint is there as soon as its folder is
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for line in chosen:
        before, started = written(), time.perf_counter()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            expected, code = call_library() if line == LIBRARY else run_command(line)
        print(f"{time.perf_counter() - started:5.1f} s  {line}", flush=True)
        if code != expected:
            raise SystemExit(f"exit code {code}\n{said.getvalue()}")
        made[line] = [file for file, state in written().items() if before.get(file) != state]
    note.write_text(json.dumps(made, indent=0))


def written() -> dict[str, tuple[int, int]]:
    """Time and inode of every file of the outputs."""
    files = [file for file in Path("out").rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


def verb_of(line: str) -> str:
    """The verb of a command: of two words the second, and `ja` for the library."""
    words = line.removeprefix("2 ").split()
    return words[1] if words[0] == "data" else words[0].rstrip(":")


def run_command(line: str) -> tuple[int, int]:
    """Runs one line of COMMANDS: the exit code that is expected, and the one that came."""
    words = " ".join(SHORT.get(word, word) for word in line.split()).split()
    expected = int(words.pop(0)) if words[0].isdigit() else 0
    sys.argv = ["jaxalign", *(flag_of(word) if "=" in word else word for word in words)]
    return expected, main()


def flag_of(word: str) -> str:
    """The flag that key=value stands for."""
    return f"--{word}" if word.startswith("config=") else f"--config.{word}"


def call_library() -> tuple[int, int]:
    """Each function of `import jaxalign as ja` but `demo`."""
    cells = {"languages": "en,zh", "rows": "0:3"}
    record = {"source": "Guten Tag", "target": "Good day", "source_language": "de", "target_language": "en"}
    pairs = ["in/my_pairs.csv", record]
    base = ja.load("in/llama")
    ja.evaluate(base, "out/ja_before", **cells)
    ja.train(base, pairs, "out/ja_run", steps=3, batch={"pairs_per_step": 3}, log_every=1, heldout=0.2)
    tuned = ja.load("in/llama", adapter="out/ja_run")
    ja.evaluate(tuned, "out/ja_after", **cells)
    probes = ja.probe(tuned, "out/ja_after", probes="pca", **cells)
    gains = ja.compare("out/ja_before", "out/ja_after")
    ja.report("out/ja_before", "out/ja_after", out="out/ja_report.html")
    ja.export("out/ja_run", "out/ja_peft", ["out/ja_before", "out/ja_after"])
    returned = {"probes": sorted(probes), "means": [mean.name for mean in gains.means]}
    Path("out/ja_returned.json").write_text(json.dumps(returned))
    return 0, 0
