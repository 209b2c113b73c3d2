"""Slices by name, and the rates of their devices."""

import pytest

from jaxalign.errors import InputError
from jaxalign.planning.chips import CHIPS, GIB, parse_slice


def test_a_slice_is_its_chips():
    pod = parse_slice("v5e:16x16")
    assert (pod.chips, pod.devices, pod.chip.capacity) == (256, 256, int(15.75 * GIB))
    # A 7x chip is two devices, with half the chip's rates each.
    small = parse_slice("tpu7x:2x2x1")
    assert (small.chips, small.devices, small.flops) == (4, 8, 2307e12 / 2)
    assert small.vector == 4096 * 2.2e9


@pytest.mark.parametrize(("chip", "cores", "units", "side"), [("v5e", 1, 4, 128), ("v5p", 2, 4, 128)])
def test_the_vector_unit_runs_at_the_clock_of_the_matrix_units(chip: str, cores: int, units: int, side: int):
    """A matrix unit multiplies and adds side x side numbers a cycle; a vector unit has 4096 ALUs."""
    clock = CHIPS[chip].flops / (cores * units * side**2 * 2)
    assert CHIPS[chip].vector == pytest.approx(cores * 4096 * clock, rel=0.01)


def test_links_that_a_slice_uses():
    """50 GB/s one way a link of v5e: two a chip on an axis of 16, which is a ring; one on a shorter axis; none on 1."""
    assert parse_slice("v5e:16x16").ici == 200e9
    assert parse_slice("v5e:4x4").ici == 100e9
    assert parse_slice("v5e:1x1").ici == 0
    assert parse_slice("v5p:4x4x4").ici == 600e9


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:4x4x4", "v5p:2x2", "v5e:0x4", "v5e:4by4", ""])
def test_what_names_no_slice_is_refused(name):
    with pytest.raises(InputError, match=r"--config\.topology"):
        parse_slice(name)
