"""What the layers hold, and what a tuning changed in it: beside numbers worked out by hand and draws made by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.files import read_json, read_npz, write_json
from jaxalign.probe_files import Probe
from jaxalign.probing.geometry import geometry_arrays, language_geometry
from jaxalign.reporting.changes import (
    LEVEL,
    LIKENESS,
    Change,
    PairedChange,
    attribution_table,
    correlation_change,
    effect_table,
    geometry_change,
    geometry_headline,
    lens_table,
    likeness_table,
    read_neurons,
)
from jaxalign.reporting.folders import checked_probe
from jaxalign.statistics import MEASURES, row_values
from tests.reporting.folders import write_geometry, write_pca, write_selection

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
        runs.append({name: values[name][:, 0].astype(np.float64) for name in LIKENESS["geometry"]})
    return runs


def headlines(shared: tuple[float, float], shuffled: bool) -> list[list[Change]]:
    """The changes of every world's languages."""
    randoms = map(np.random.default_rng, range(WORLDS))
    tables = [geometry_headline(LANGUAGES, *simulated(random, shared, shuffled)) for random in randoms]
    return [[change for code in LANGUAGES for change in table[code].values()] for table in tables]


def is_marked(change: Change) -> bool:
    return change.p_holm is not None and change.p_holm <= LEVEL


@pytest.mark.parametrize(("shared", "shuffled"), [((0.5, 1.5), True), ((1.0, 1.0), False)])
def test_nothing_is_found_in_shuffled_rows_or_without_a_change(shared: tuple[float, float], shuffled: bool):
    marked = np.mean([any(map(is_marked, world)) for world in headlines(shared, shuffled)])
    # One false mark in 5 % of the worlds at most, with the binomial error of so many at 2.58 standard errors.
    assert marked <= LEVEL + 2.58 * math.sqrt(LEVEL * (1 - LEVEL) / WORLDS)


def test_a_change_is_found_where_there_is_one():
    found = headlines((0.5, 1.5), shuffled=False)
    assert np.mean([[is_marked(change) and change.low > 0 for change in world] for world in found]) > 0.5


@pytest.fixture
def geometries(tmp_path: Path) -> tuple[Path, Path]:
    """German is first before and second after, Chinese third and first."""
    write_geometry(tmp_path / "before", LANGUAGES, shared=0.5)
    write_geometry(tmp_path / "after", ("zh", "de", "en"), shared=1.5)
    return tmp_path / "before", tmp_path / "after"


@pytest.fixture
def components(tmp_path: Path) -> tuple[Path, Path]:
    """The languages stand in another order after."""
    write_pca(tmp_path / "before", ["en", "de", "sw"], ["en"], layers=2, apart=2.0)
    write_pca(tmp_path / "after", ["sw", "en", "de"], ["en"], layers=2, apart=0.2)
    return tmp_path / "before", tmp_path / "after"


def paired(before: Path, after: Path) -> PairedChange | None:
    name = "pca" if (before / "pca.json").is_file() else "geometry"
    change = correlation_change if name == "pca" else geometry_change
    return change(checked_probe(before, name), checked_probe(after, name))


def test_geometry_changes_are_of_the_same_rows_and_languages(geometries: tuple[Path, Path]):
    change = paired(*geometries)
    assert change is not None
    assert change.labels == ["de", "zh"] and change.layers == [0, 1, 2, 3, 4] and change.layer == 2
    arrays = [read_npz(folder / "geometry.npz") for folder in geometries]
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
    table = change.table()
    assert table.head[0] == "geometry, layer 2"
    assert [line[0] for line in table.lines] == ["de German", "zh Chinese", "mean (2 languages)"]
    assert set(change.document()) >= {*MEASURES, "headline", "language", "layer"}


def test_correlation_changes_are_of_the_same_rows_and_pairs(components: tuple[Path, Path]):
    change = paired(*components)
    assert change is not None and change.labels == [("en", "de"), ("en", "sw"), ("de", "sw")]
    assert change.layers == [0, 1, 2] and change.layer == 1 and change.rows == 20
    before, after = (read_npz(folder / "pca.npz")["first_component"] for folder in components)
    after = after[:, [1, 2, 0]]

    def r(rows: np.ndarray) -> np.ndarray:
        """After minus before, [layers, pairs], of the rows drawn."""
        matrices = [[np.corrcoef(layer[:, rows]) for layer in side] for side in (before, after)]
        return np.array(matrices[1])[:, [0, 0, 1], [1, 2, 2]] - np.array(matrices[0])[:, [0, 0, 1], [1, 2, 2]]

    changed, interval = change.change["correlations"], change.interval["correlations"]
    np.testing.assert_allclose(changed, r(np.arange(20)).T, atol=1e-5)
    drawn = np.array([r(rows) for rows in np.random.default_rng(11).integers(20, size=(1500, 20))])
    expected = np.quantile(drawn, [0.025, 0.975], axis=0)
    # Other draws: quantiles of some 2,000 agree within some hundredths.
    np.testing.assert_allclose(interval, expected.T, atol=0.05)
    assert list(change.headline) == ["de German", "sw Swahili", "mean (2 languages)", "mean of all 3 pairs"]
    _, swahili, both, every = (line["correlations"] for line in change.headline.values())
    assert swahili.after - swahili.before == pytest.approx(changed[1, 1], abs=1e-6)
    assert [swahili.low, swahili.high] == pytest.approx(interval[1, 1].tolist())
    assert both.after - both.before == pytest.approx(changed[:2, 1].mean(), abs=1e-6)
    assert every.after - every.before == pytest.approx(changed[:, 1].mean(), abs=1e-6)
    means = np.quantile(drawn[:, 1].mean(axis=1), [0.025, 0.975])
    assert [every.low, every.high] == pytest.approx(means.tolist(), abs=0.05)
    assert change.table().lines[1][:2] == ["sw Swahili", f"{swahili.before:.3f} → {swahili.after:.3f}"]
    document = change.document()
    assert document["pair"][1] == ["en", "sw"] and document["headline"]["sw Swahili"]["after"] == swahili.after


@pytest.mark.parametrize(
    ("probe", "name"),
    [("geometries", n) for n in ("row", "layer", "position")] + [("components", n) for n in ("row", "layer")],
)
def test_other_rows_layers_or_states_are_not_paired(request: pytest.FixtureRequest, probe: str, name: str):
    before, after = request.getfixturevalue(probe)
    [path] = after.glob("*.json")
    document = read_json(path)
    other = "last" if name == "position" else [value + 1 for value in document[name]]
    write_json(path, document | {name: other})
    assert paired(before, after) is None


def test_one_side_or_other_languages_are_not_paired(geometries: tuple[Path, Path], components: tuple[Path, Path]):
    before, after = geometries
    assert geometry_change(checked_probe(before, "geometry"), None) is None
    assert correlation_change(checked_probe(before, "pca"), None) is None
    write_geometry(after, ("th",), shared=1.0)
    assert geometry_change(checked_probe(before, "geometry"), checked_probe(after, "geometry")) is None
    write_pca(after, ["en", "de", "zh"], ["en"], layers=2)
    assert paired(before, after) is None


def test_one_model_has_its_correlations_with_english(components: tuple[Path, Path]):
    probe = checked_probe(components[1], "pca")
    assert probe is not None
    table = likeness_table("pca", probe)
    assert table.head[0] == "correlation, layer 1" and [line[0] for line in table.lines] == ["sw Swahili", "de German"]
    low, high = probe.arrays["correlations_interval"][1, 1, 2]
    assert table.lines[1][1:] == [f"{probe.arrays['correlations'][1, 1, 2]:.3f}", f"{low:.3f} to {high:.3f}"]


def lens(latent: list[list[float]], out: list[list[float]], entropy: list[list[float]]) -> Probe:
    named = {"latent": latent, "out": out, "entropy": entropy}
    arrays = {f"unshared_{name}_mean": np.array(values, np.float32) for name, values in named.items()}
    return Probe(arrays, {"language": ["en", "zh"]})


BEFORE = lens([[0.1, 0.4, 0.2], [0.0, 0.25, 0.125]], [[0.1, 0.1, 0.1], [0.0, 0.25, 0.5]], [[9, 8, 7], [6, 5, 4.5]])
AFTER = lens([[0.1, 0.4, 0.5], [0.5, 0.25, 0.125]], [[0.1, 0.1, 0.1], [0.0, 0.25, 0.25]], [[9, 8, 7], [6, 5, 4.0]])


def test_the_lens_has_a_line_a_language_with_the_layer_of_the_largest_mass():
    english, chinese = lens_table({"before": BEFORE, "after": AFTER}, ["en", "zh"]).lines
    assert english == ["en English", "0.400 (layer 2) → 0.500 (layer 3), +0.100", "", "7.000 → 7.000, 0.000"]
    assert chinese[1:] == [
        "0.250 (layer 2) → 0.500 (layer 1), +0.250",
        "0.500 → 0.250, −0.250",
        "4.500 → 4.000, −0.500",
    ]


def test_one_run_has_no_change_and_a_language_without_rows_no_line():
    nothing = {name: np.where([[False], [True]], np.nan, values) for name, values in BEFORE.arrays.items()}
    [only] = lens_table({"before": Probe(nothing, BEFORE.document)}, ["en", "zh"]).lines
    assert only == ["en English", "0.400 (layer 2)", "", "7.000"]


def grid(own: float, spill: float, array: str = "log_perplexity_change", codes: tuple[str, ...] = ("en", "sw", "zh")):
    """Each language's neurons change it by `own` and the next language by `spill`; random ones do a tenth."""
    K = len(codes)
    change = np.zeros((3, K, K, 3))
    change[0, ..., 0] = own * np.eye(K) + spill * np.roll(np.eye(K), 1, axis=1)
    change[1] = change[0] / 10
    change[2, ..., 0] = change[0, ..., 0] - change[1, ..., 0]
    change[2, ..., 1], change[2, ..., 2] = change[2, ..., 0] - 0.25, change[2, ..., 0] + 0.5
    perplexity = np.array([[8.0] * K, [8.0 * np.exp(-0.75)] * K])
    return Probe({array: change, "perplexity": perplexity}, {"language": list(codes)})


def test_one_run_has_its_values_with_the_interval_beyond_random_neurons():
    table = effect_table("masking", {"base": grid(0.5, -0.2)}, ["en", "sw", "zh"])
    assert table.head[0] == "change of log perplexity (nats per token): base" and len(table.head) == 4
    assert table.lines[1] == ["sw Swahili", "+0.500", "−0.100", "+0.450 (+0.200 to +0.950)"]
    assert table.lines[3] == ["mean (3 languages)", "+0.500", "−0.100", "+0.450"]
    english, chinese, _ = effect_table("masking", {"base": grid(0.5, -0.2)}, ["en", "zh"]).lines
    # The neurons of English change Swahili, which is not among them; those of Chinese change English.
    assert (english[2], chinese[2]) == ("0.000", "−0.200")


def test_two_runs_are_paired_by_language():
    runs = {
        "before": grid(-0.5, 0.0, "accuracy_change"),
        "after": grid(-0.25, 0.1, "accuracy_change", ("zh", "en")),
    }
    table = effect_table("masked_accuracy", runs, ["en", "zh"])
    english, chinese, _ = table.lines
    assert table.head[0] == "change of accuracy (percentage points): before → after"
    assert english[:3] == ["en English", "−50.0 → −25.0, +25.0", "0.0 → +10.0, +10.0"]
    assert chinese[3] == "−45.0 (−70.0 to +5.0) → −22.5 (−47.5 to +27.5), +22.5"


def test_a_transplant_stands_beside_the_whole_tuning_and_one_language_beside_none():
    table = effect_table("transplant", {"tuned": grid(-0.5, 0.0, codes=("en",))}, ["en"])
    assert table.head[-1] == "the whole tuning"
    assert table.lines == [["en English", "−0.500", "", "−0.450 (−0.700 to +0.050)", "−0.750"]]


def test_attribution_says_where_english_is_largest_and_what_its_own_language_has_at_the_output():
    mass = np.zeros((2, 3, 2, 3), np.float32)
    # Only the last position counts.
    mass[:, :, 0] = 0.9
    mass[:, :, 1] = [
        [[0.1, 0.2, 0.7], [0.5, 0.2, 0.3], [0.4, 0.1, 0.5]],
        [[0.3, 0.0, 0.7], [0.2, 0.1, 0.7], [0.1, 0.6, 0.3]],
    ]
    tokens = ["en", "sw", "undecidable"]
    before = Probe({"language_mass_mean": mass}, {"language": ["en", "sw"], "token_language": tokens})
    after = Probe({"language_mass_mean": mass[::-1, ::-1]}, {"language": ["sw", "en"], "token_language": tokens})
    english, swahili = attribution_table({"before": before, "after": after}, ["en", "sw"]).lines
    assert english == ["en English", "0.500 (layer 2) → 0.500 (layer 2), 0.000", ""]
    assert swahili[1:] == ["0.300 (layer 1) → 0.300 (layer 3), 0.000", "0.600 → 0.000, −0.600"]
    without = Probe(before.arrays, {"language": ["en", "th"], "token_language": ["x", "y", "undecidable"]})
    assert attribution_table({"base": without}, ["en", "th"]).lines == [["en English", "", ""], ["th Thai", "", ""]]


def test_neurons_are_counted_side_by_side(tmp_path: Path):
    before = write_selection(tmp_path / "before", [(0, 3)])
    after = write_selection(tmp_path / "after", [(1, 4)])
    neurons = read_neurons({"before": before, "after": after})
    classes, of_languages, specific, _ = neurons.tables
    assert of_languages.head == ["language", "before", "after", "change", "kept"]
    assert of_languages.lines == [["en English", "1", "1", "+0", "0"], ["sw Swahili", "1", "1", "+0", "1"]]
    assert classes.lines[1] == ["language specific", "2", "2", "+0"]
    assert specific.summary == "language specific, layer by layer"
    assert specific.lines == [["0", "1", "0", "-1"], ["1", "1", "2", "+1"]]
    assert {label: counts.tolist() for label, counts in neurons.by_layer.items()} == {
        "before": [[1, 0], [0, 1]],
        "after": [[0, 1], [0, 1]],
    }
    assert read_neurons({"base": before}).tables[1].lines == [["en English", "1"], ["sw Swahili", "1"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_rate": 0.2}, r"top_rate is 0\.1 in one and 0\.2"),
        ({"classes_per_layer": {"language_specific": [1]}}, "classes_per_layer, language_specific: 2 whole numbers"),
    ],
)
def test_broken_selections_and_two_kinds_are_refused(tmp_path: Path, change: dict[str, object], said: str):
    before, after = write_selection(tmp_path / "a", [(0, 3)]), write_selection(tmp_path / "b", [(0, 3)])
    path = after / "selection.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(InputError, match=said):
        read_neurons({"before": before, "after": after})
