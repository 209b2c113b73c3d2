"""The benchmark of many pairs: both ways make the same, from a file of as many pairs as asked for."""

from pathlib import Path

import growth
import numpy as np
import pytest

from jaxalign.data.batches import best_fit_bins
from jaxalign.data.pairs import read_pairs
from tests.cli.conftest import save_model


def test_both_ways_make_the_same(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    model, out = save_model(tmp_path / "model", width=16), tmp_path / "growth.json"
    monkeypatch.setattr("sys.argv", ["growth", "--model", str(model), "--counts", "60,90", "--out", str(out)])
    growth.run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{count} {way}" for count in (60, 90) for way in growth.WAYS]
    assert out.is_file()


def test_the_file_has_distinct_pairs_in_every_language(tmp_path: Path):
    growth.write_pairs(tmp_path / "pairs.jsonl", 200)
    pairs = read_pairs([tmp_path / "pairs.jsonl"])
    assert len(set(pairs)) == 200 and len({pair.source_language for pair in pairs}) == 19


@pytest.mark.parametrize("capacity", [1, 40, 64, 1000])
def test_bins_are_those_of_a_sorted_list(capacity: int):
    for seed in range(5):
        lengths = np.random.default_rng(seed).integers(0, capacity + 1, 700)
        assert best_fit_bins(lengths, capacity) == growth.bins_of_a_sorted_list(lengths, capacity)
