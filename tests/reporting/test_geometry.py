"""Changes of the geometry: right on planted numbers, and none found where there is nothing to find."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.probing.geometry import MEASURES, geometry_arrays, language_geometry, row_values
from jaxalign.reporting.geometry import (
    HEADLINE,
    LEVEL,
    Change,
    GeometryChange,
    geometry_change,
    geometry_lines,
    headline,
)
from jaxalign.reporting.probe_files import read_geometry
from tests.reporting.folders import write_geometry

WORLDS, ROWS, WIDTH, LANGUAGES = 100, 30, 12, ("de", "sw", "zh")


def simulated(random: np.random.Generator, shared: tuple[float, float], shuffled: bool) -> list[dict[str, np.ndarray]]:
    """Rows' values before and after, [languages, rows] each, of one world.

    States are what all languages share of an item (weighed by `shared` before and after), what one language has of
    it, and what a run adds; `shuffled` puts each language's rows in an order of their own, the same before and after.
    """
    items, own = random.normal(size=(ROWS, WIDTH)), random.normal(size=(1 + len(LANGUAGES), ROWS, WIDTH))
    orders = [random.permutation(ROWS) if shuffled else np.arange(ROWS) for _ in LANGUAGES]
    runs = []
    for weight in shared:
        english, *others = weight * items + own + 0.5 * random.normal(size=own.shape)
        pairs = [
            language_geometry(states[order, None], english[:, None])
            for states, order in zip(others, orders, strict=True)
        ]
        values = row_values(geometry_arrays(pairs))
        runs.append({measure: values[measure][:, 0].astype(np.float64) for measure in HEADLINE})
    return runs


def headlines(shared: tuple[float, float], shuffled: bool) -> list[list[Change]]:
    """The changes of every world's languages."""
    tables = [headline(LANGUAGES, *simulated(np.random.default_rng(seed), shared, shuffled)) for seed in range(WORLDS)]
    return [[change for code in LANGUAGES for change in table[code].values()] for table in tables]


@pytest.mark.parametrize(("shared", "shuffled"), [((0.5, 1.5), True), ((1.0, 1.0), False)])
def test_nothing_is_found_in_shuffled_rows_or_without_a_change(shared: tuple[float, float], shuffled: bool):
    marked = np.mean([any(change.mark for change in world) for world in headlines(shared, shuffled)])
    # One false mark in 5 % of the worlds at most, with the binomial error of so many at 2.58 standard errors.
    assert marked <= LEVEL + 2.58 * math.sqrt(LEVEL * (1 - LEVEL) / WORLDS)


def test_a_change_is_found_where_there_is_one():
    found = headlines((0.5, 1.5), shuffled=False)
    assert np.mean([[bool(change.mark) and change.low > 0 for change in world] for world in found]) > 0.5


def probes(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "before", tmp_path / "after"
    write_geometry(before, LANGUAGES, shared=0.5)
    write_geometry(after, ("zh", "de", "en"), shared=1.5)
    return before, after


def paired(before: Path, after: Path) -> GeometryChange | None:
    return geometry_change(read_geometry(before), read_geometry(after))


def test_changes_are_of_the_same_rows_and_languages(tmp_path: Path):
    folders = probes(tmp_path)
    change = paired(*folders)
    assert change is not None
    assert change.languages == ["de", "zh"] and change.layers == [0, 1, 2, 3, 4] and change.layer == 2
    arrays = [dict(np.load(folder / "geometry.npz")) for folder in folders]
    # German is first before and second after, Chinese third and first.
    ranks = [arrays[0]["rank_centred"][[0, 2]], arrays[1]["rank_centred"][[1, 0]]]
    differences = 1 / ranks[1] - 1 / ranks[0]
    np.testing.assert_allclose(change.change["reciprocal_rank_centred"], differences.mean(axis=-1), atol=1e-12)
    drawn = np.random.default_rng(5).integers(20, size=(4000, 20))
    expected = np.quantile(differences[:, :, drawn].mean(axis=-1), [0.025, 0.975], axis=-1)
    # 2,000 and 4,000 resamples: quantiles agree within some hundredths.
    np.testing.assert_allclose(change.interval["reciprocal_rank_centred"], np.moveaxis(expected, 0, -1), atol=0.04)
    cka = change.headline["zh"]["cka"]
    assert cka.before == pytest.approx(arrays[0]["cka"][2, 2], abs=1e-6)
    assert cka.after == pytest.approx(arrays[1]["cka"][0, 2], abs=1e-6)
    assert cka.low < cka.after - cka.before < cka.high
    assert change.headline["mean"]["cka"].after == pytest.approx(arrays[1]["cka"][:2, 2].mean(), abs=1e-6)
    lines = geometry_lines(change)
    assert [line[0] for line in lines] == ["geometry, layer 2", "de German", "zh Chinese", "mean (2 languages)"]
    assert set(change.document()) >= {*MEASURES, "headline", "language", "layer"}


@pytest.mark.parametrize("name", ["row", "layer", "position"])
def test_other_rows_layers_or_states_are_not_paired(tmp_path: Path, name: str):
    before, after = probes(tmp_path)
    path = after / "geometry.json"
    document = read_json(path)
    other = "last" if name == "position" else [value + 1 for value in document[name]]
    write_json(path, document | {name: other})
    assert paired(before, after) is None


def test_one_side_or_no_common_language_is_not_paired(tmp_path: Path):
    before, after = probes(tmp_path)
    assert geometry_change(read_geometry(before), None) is None
    write_geometry(after, ("th",), shared=1.0)
    assert paired(before, after) is None


@pytest.mark.parametrize(("name", "value"), [("row", ["x"] * 20), ("layer", [0, 1, 2, 3, "4"]), ("position", 3)])
def test_a_broken_document_is_refused(tmp_path: Path, name: str, value: object):
    _, after = probes(tmp_path)
    path = after / "geometry.json"
    write_json(path, read_json(path) | {name: value})
    with pytest.raises(InputError, match=f"field '{name}'"):
        read_geometry(after)
