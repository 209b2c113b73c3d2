"""The table of scaling: rates a chip, and the largest slice against the smallest."""

from pathlib import Path

import scaling

from jaxalign.planning.chips import parse_slice


def plan(chips: int, rate: float, bound: str) -> dict:
    return {"chips": chips, "step": {"tokens_per_second_per_chip": rate, "bound": bound}}


PLANS = {
    "v5e": [plan(8, 4000.0, "compute"), plan(256, 3000.0, "interconnect")],
    "v5p": [plan(8, 9000.0, "compute"), plan(256, 9000.0, "compute")],
    "v6e": [plan(8, 8000.0, "memory"), plan(256, 2000.0, "interconnect")],
}


def test_the_last_row_is_the_largest_slice_against_the_smallest():
    lines = scaling.table(PLANS).splitlines()
    assert lines[2] == "| 8 | 4,000 (compute) | 9,000 (compute) | 8,000 (memory) |"
    assert lines[-1] == "| 256 against 8 | 75% | 100% | 25% |"


def test_slices_go_from_8_to_256_chips():
    for kind, grids in scaling.SLICES.items():
        assert [parse_slice(f"{kind}:{grid}").chips for grid in grids] == [8, 32, 64, 256]


def test_the_plot_names_each_kind(tmp_path: Path):
    scaling.plot(PLANS, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f"<!-- {kind} -->" in drawn for kind in PLANS)
