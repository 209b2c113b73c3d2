"""Runs every verb on tiny models and writes, or with --check compares, digests of all that they leave behind.

    python tests/golden/remake.py --check --against FOLDER    # FOLDER: outputs that an earlier run left by --keep

It takes some three minutes on two cores; compiled programs are kept between runs. The digests are of one stack and of
float32 sums in one order: another jax has a file of its own, and a program that sums in another order differs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]
JAX = metadata.version("jax")
GOLDENS = HERE / f"goldens-jax-{JAX}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"compare with {GOLDENS.name}, and do not write it")
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="leave the outputs there, in place of what it holds"
    )
    parser.add_argument("--against", metavar="FOLDER", type=Path, help="say how far what differs is from outputs there")
    parser.add_argument("--only", metavar="VERBS", help="run these alone, as in train,export; the rest is --against's")
    given = parser.parse_args()
    if given.only and not (given.check and given.against):
        parser.error("--only needs --check and --against, which has what the verbs read")
    settle_environment()
    from tests.golden.digests import changes, difference, digests, parts_of_folder

    with tempfile.TemporaryDirectory(prefix="golden") as folder:
        root = Path(folder)
        if given.only:
            shutil.copytree(given.against, root, dirs_exist_ok=True)
        run_in(root, given.only.split(",") if given.only else [])
        parts = parts_of_folder(root / "out")
        found = digests(parts)
        if given.keep:
            shutil.rmtree(given.keep, ignore_errors=True)
            shutil.copytree(root, given.keep)
    if not given.check:
        GOLDENS.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(found)} files, {sum(map(len, found.values()))} parts: {GOLDENS}")
        return 0
    other = changes(json.loads(GOLDENS.read_text(encoding="utf-8")), found)
    kept = parts_of_folder(given.against / "out") if given.against else {}
    for file, name, what in other:
        if file in kept and file in parts and name in kept[file] and name in parts[file]:
            what = difference(kept[file][name], parts[file][name])
        print(f"{file}: {name}: {what}" if name else f"{file}: {what}")
    print(f"{len(other)} of {sum(map(len, found.values()))} parts differ" if other else f"all {len(found)} files equal")
    return 1 if other else 0


def settle_environment() -> None:
    """What jax and torch read once: the tests' fast compiler, and instructions that all of today's CPUs have."""
    older = " --xla_cpu_use_fusion_emitters=false" if JAX.startswith("0.10") else ""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_max_isa=AVX2" + older
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"golden-programs-{os.getuid()}-{JAX}")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"


def run_in(root: Path, verbs: Collection[str]) -> None:
    """Makes the inputs `root/in` and the outputs `root/out`; commands name both by relative paths."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    os.chdir(root)
    import torch

    from tests.golden.verbs import run_all
    from tests.golden.world import make_world

    torch.set_num_threads(1)
    if not (root / "in").is_dir():
        make_world(root / "in")
    run_all(verbs)
    os.chdir(HERE)


if __name__ == "__main__":
    sys.exit(main())
