"""The counts that the follow-up released (arXiv 2505.21505), and its own selection, to the last neuron."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

RUN = "import sys; from jaxalign.cli import main; code = main(); import resource; print('peak KiB', "
MAIN = RUN + "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"

HISTOGRAM = [1369, 1866, 617, 310, 153, 127, 59, 40, 27, 20, 0]
AT_ZERO = [4024, 473, 58, 19, 7, 7, 0, 0, 0, 0, 0]
OF_ALL = [397496, 23235, 9802, 5617, 3693, 2680, 2126, 1982, 2002, 2322, 7797]
SIZES = {"en": 142, "ru": 556, "es": 523, "fr": 821, "de": 941, "zh": 412, "ja": 676, "bn": 948, "th": 622, "sw": 666}


def select(shared: Path, out: Path, *flags: str) -> tuple[dict, str]:
    """The document and the stdout of the command in a process of its own."""
    counts = shared / "data/language_neurons/mistral_mgsm_counts.npz"
    command = [sys.executable, "-c", MAIN, "neurons", str(counts), f"--config.out={out}", *flags]
    stdout = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads((out / "selection.json").read_text()), stdout


def test_the_released_selection(shared: Path, tmp_path: Path):
    start = time.monotonic()
    document, stdout = select(shared, tmp_path)
    # Alone it takes 5 s of one core and 0.4 GiB.
    assert time.monotonic() - start < 30
    assert int(stdout.split("peak KiB")[1]) < 4 * 2**20
    assert document["lambda_star"] == 0.109375
    assert document["tau"] == pytest.approx(0.5644363, abs=5e-8)
    assert document["histogram"] == HISTOGRAM
    assert document["histogram_at_lambda_0"] == AT_ZERO
    assert document["histogram_of_all_neurons"] == OF_ALL
    assert document["neurons"] == SIZES
    with np.load(tmp_path / "selection.npz", allow_pickle=False) as own:
        assert {code: len(own[code]) for code in own} == SIZES
        pairs = np.concatenate([own[code] for code in own])
        assert all(own[code].dtype == np.int32 and own[code].shape[1] == 2 for code in own)
    assert (pairs.min(0) >= 0).all() and (pairs.max(0) < [32, 14336]).all()
    # A neuron is listed once for each language that it is active in.
    listed = np.unique(pairs, axis=0, return_counts=True)[1]
    assert np.bincount(listed, minlength=10)[1:].tolist() == HISTOGRAM[1:10]
    assert len(listed) == sum(document["classes"][name] for name in ("language_specific", "language_related"))


def test_lape(shared: Path, tmp_path: Path):
    document, _ = select(shared, tmp_path, "--config.neurons.score=lape")
    assert document["lambda_star"] == 0.0 and document["histogram"] == AT_ZERO
