"""Figures: what they hold, and that they are the same bytes every time."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxalign.data.languages import LANGUAGES as ALL_LANGUAGES
from jaxalign.probe_files import Probe
from jaxalign.probing.attribution import SCRIPT_CLASSES, UNDECIDABLE
from jaxalign.reporting import figures

RNG = np.random.default_rng(0)
LANGUAGES = ("en", "de", "zh", "sw")
LAYERS = 6


def lens_panels() -> list[tuple[str, str, dict[str, np.ndarray]]]:
    """Panels before and after of three languages."""
    quantities = ("latent", "out", "all_possible_latent", "all_possible_out", "entropy")
    means = [{f"{name}_mean": RNG.uniform(size=LAYERS) for name in quantities} for _ in range(6)]
    half_widths = {f"{name}_half_width": np.full(LAYERS, 0.05) for name in quantities}
    titles = [(f"{code} {name}, {run}", code) for run in ("before", "after") for code, name in NAMED.items()]
    return [(*title, values | half_widths) for title, values in zip(titles, means, strict=True)]


NAMED = {"en": "English", "zh": "Chinese", "sw": "Swahili"}
LENS = lens_panels()
POINTS = {run: RNG.normal(size=(LAYERS + 1, len(LANGUAGES), 9, 2)) for run in ("before", "after")}
CORRELATIONS = {run: RNG.uniform(-1, 1, (LAYERS + 1, len(LANGUAGES), len(LANGUAGES))) for run in ("before", "after")}
ACCURACIES = {"before": [0.9, 0.8, 0.7, 0.5], "after": [0.95, 0.85, 0.9, 0.7]}
INTERVALS = {run: [(value - 0.05, value + 0.04) for value in values] for run, values in ACCURACIES.items()}

GAINS = np.array([[12.5, -3.0, 0.02, 8.0], [np.nan, 1.0, -12.6, 0.0]])
MARKS = {index: "" for index in np.ndindex(GAINS.shape)} | {(0, 0): "**", (0, 3): "*"}


def geometry_arrays() -> dict[str, np.ndarray]:
    arrays = {name: RNG.uniform(0, 1, (len(LANGUAGES), LAYERS)) for name in (*figures.GEOMETRY_TITLES, "cka_chance")}
    return {**arrays, "rank": RNG.integers(1, 10, (len(LANGUAGES), LAYERS, 10))}


GEOMETRY = {"before": geometry_arrays(), "after": geometry_arrays()}

FIGURES: dict[str, Callable[[], Figure]] = {
    "lens": lambda: figures.lens_figure(LENS, 3),
    "pca": lambda: figures.pca_scatter(POINTS, LANGUAGES, [0, 3]),
    "correlations": lambda: figures.correlation_map(CORRELATIONS, LANGUAGES),
    "geometry": lambda: figures.geometry_lines(GEOMETRY, LANGUAGES, range(LAYERS), figures.CENTRED_GEOMETRY),
    "training": lambda: figures.training_curves([(1, 3.0), (2, 2.0), (3, 1.5)], [(0, 3.1), (3, 1.9)]),
    "gains": lambda: figures.gain_map(["emotion", "snli"], LANGUAGES, GAINS, MARKS),
    "accuracy": lambda: figures.accuracy_dots(LANGUAGES, ACCURACIES, INTERVALS, 0.5),
}


@pytest.mark.parametrize("name", FIGURES)
def test_svg_is_deterministic_text_with_ids_of_its_own(name: str):
    element = figures.svg(FIGURES[name](), name)
    assert element == figures.svg(FIGURES[name](), name)
    root = ElementTree.fromstring(element)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    ids = re.findall(r'\bid="([^"]+)"', element)
    assert len(ids) == len(set(ids)) and all(one.startswith(f"{name}-") for one in ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', element)
    assert set(referred) <= set(ids)
    assert "<text" in element and "<dc:date>" not in element
    assert set(element) - set(map(chr, range(128))) <= {"\N{MINUS SIGN}"}
    # Languages by code and English name.
    assert name == "training" or ("zh Chinese" in element and "sw Swahili" in element)


def test_coordinates_are_rounded_and_texts_are_not():
    figure = Figure()
    panel = figure.subplots()
    panel.plot([0, 1 / 3, 1], [0, 2 / 3, 1])
    panel.set_title("1.23456")
    element = figures.svg(figure, "rounded")
    coordinates = "".join(re.findall(r' (?:d|x|y)="[^"]*"', element))
    assert re.search(r"\d\.\d\d\b", coordinates) and not re.search(r"\d\.\d{3}", coordinates)
    assert ">1.23456<" in element


def test_the_lens_has_no_second_line_for_english():
    panels = [axes for axes in figures.lens_figure(LENS, 3).axes if axes.get_lines()]
    assert [len(panel.get_lines()) for panel in panels] == [2, 4, 4] * 2
    latent = panels[1].get_lines()[0]
    np.testing.assert_array_equal(latent.get_xdata(), np.arange(1, LAYERS + 1))
    np.testing.assert_array_equal(latent.get_ydata(), LENS[1][2]["latent_mean"])


def test_heat_map_holds_the_correlations_with_english():
    figure = figures.correlation_map(CORRELATIONS, LANGUAGES)
    mesh = figure.axes[1].collections[0].get_array()
    assert mesh is not None
    np.testing.assert_array_equal(np.asarray(mesh), CORRELATIONS["after"][:, 0, 1:].T)


def test_geometry_has_a_line_for_each_language_and_chance():
    figure = figures.geometry_lines(GEOMETRY, LANGUAGES, [0, 2, 3, 4, 5, 9], figures.UNCENTRED_GEOMETRY)
    assert len(figure.axes) == 4
    *languages, chance = figure.axes[3].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in languages}) == len(LANGUAGES)
    for line, values in zip(languages, GEOMETRY["after"]["reciprocal_rank"], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 2, 3, 4, 5, 9])
        np.testing.assert_array_equal(line.get_ydata(), values)
    # 1 + 1/2 + ... + 1/10 = 2.92897, in ten rows.
    np.testing.assert_allclose(np.asarray(chance.get_ydata()), 0.292897, atol=1e-6)
    np.testing.assert_allclose(np.asarray(figure.axes[1].get_lines()[-1].get_ydata()), 0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("largest", "most"), [(9.0, 14), (15.5, 15.5)])
def test_languages_without_rows_do_not_stretch_the_scale(largest: float, most: float):
    (title, code, values), *_ = LENS
    bits = np.array([np.nan, largest, *[1.0] * (LAYERS - 2)])
    strip: Any = figures.lens_figure([(title, code, values | {"entropy_mean": bits})], 1).axes[0]
    assert strip.collections[0].get_clim() == (0, most)


def test_gains_stand_in_their_cells_on_a_scale_around_zero():
    panel = FIGURES["gains"]().axes[0]
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in panel.texts}
    first = {(0, 0): "+12.5\n**", (0, 1): "-3.0", (0, 2): "0.0", (0, 3): "+8.0\n*"}
    assert written == first | {(1, 1): "+1.0", (1, 2): "-12.6", (1, 3): "0.0"}
    assert panel.collections[0].get_clim() == (-12.6, 12.6)
    [frame] = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
    assert frame.get_xy() == pytest.approx((-0.46, -0.46))
    assert [label.get_text() for label in panel.get_yticklabels()] == ["emotion", "snli"]


def test_scatter_marks_every_prompt_of_its_layer():
    figure = figures.pca_scatter(POINTS, LANGUAGES, [0, 3])
    third = figure.axes[3].collections[2].get_offsets()
    np.testing.assert_array_equal(np.asarray(third), POINTS["after"][3, 2])


def test_accuracy_dots_stand_at_their_percentages():
    panel = figures.accuracy_dots(LANGUAGES, ACCURACIES, INTERVALS, 0.5).axes[0]
    drawn = [np.asarray(line.get_xdata()) for line in panel.get_lines() if len(np.asarray(line.get_xdata())) == 4]
    np.testing.assert_allclose(drawn, [[90, 80, 70, 50], [95, 85, 90, 70]])


def test_effect_heat_map():
    change = np.zeros((3, 2, 2, 3))
    change[0, ..., 0] = [[0.4, -0.1], [0.0, 0.2]]
    change[2, ..., 1:] = [[[0.1, 0.7], [-0.2, 0.1]], [[-0.1, 0.1], [-0.3, -0.1]]]
    figure = figures.effect_map(Probe({"log_perplexity_change": change}, {"language": ["en", "sw"]}), "transplant")
    panels: Any = figure.axes
    own, control, _ = panels
    np.testing.assert_allclose(np.ravel(own.collections[0].get_array()), [0.4, -0.1, 0.0, 0.2])
    assert not np.any(control.collections[0].get_array())
    # Dots where the interval of the difference leaves out 0: (row, column) as (y, x).
    assert own.collections[1].get_offsets().tolist() == [[0, 0], [1, 1]]
    text = figures.svg(figure, "masking")
    assert "sw Swahili" in text and "random neurons" in text and "transplanted" in text


def test_neurons_stand_in_their_layer():
    counts = {"base": np.array([[3, 0, 1], [0, 0, 2]])}
    panel: Any = figures.layers_map(counts, ["en", "sw"], "neurons", "viridis", (0, 3)).axes[0]
    np.testing.assert_array_equal(panel.collections[0].get_array(), counts["base"])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["en English", "sw Swahili"]


CODES = list(ALL_LANGUAGES)


def lens() -> Probe:
    arrays = {}
    for way in ("", "unshared_"):
        for quantity in ("latent", "out", "all_possible_latent", "all_possible_out", "entropy"):
            arrays[f"{way}{quantity}_mean"] = RNG.uniform(size=(20, LAYERS))
            arrays[f"{way}{quantity}_half_width"] = np.full((20, LAYERS), 0.05)
    studys = {code: 0 if code in ("de", "fr") else 7 for code in CODES}
    document = {"language": CODES, "surviving_rows": studys, "unshared_surviving_rows": dict.fromkeys(CODES, 9)}
    return Probe(arrays, document)


def attribution(codes: list[str]) -> Probe:
    arrays = {
        f"{kind}_mass_mean": RNG.dirichlet(np.ones(size), (len(codes), LAYERS, 2))
        for kind, size in (("language", 21), ("script", len(SCRIPT_CLASSES)))
    }
    document = {"language": codes, "token_language": [*CODES, UNDECIDABLE], "token_script": list(SCRIPT_CLASSES)}
    return Probe(arrays, document)


def test_a_page_has_a_panel_for_each_language_with_rows():
    probe = lens()
    pages = figures.lens_pages(probe, "base model")
    titles = [axes.get_title() for axes in pages["logit_lens"].axes if axes.get_title()]
    assert len(titles) == 18 and "de German, n = 7" not in titles and "sw Swahili, n = 7" in titles
    unshared = pages["logit_lens_unshared"]
    panels = [axes for axes in unshared.axes if axes.get_lines()]
    assert len(panels) == 20 and unshared.get_figwidth() <= 7.2
    np.testing.assert_array_equal(panels[2].get_lines()[0].get_ydata(), probe.arrays["unshared_latent_mean"][2])


def test_bands_share_the_distribution_out():
    codes = ["en", "de", "ja"]
    probe = attribution(codes)
    for name, figure in figures.attribution_pages(probe, "base model").items():
        panels = [axes for axes in figure.axes if axes.collections]
        assert len(panels) == 3
        for panel in panels:
            top = np.asarray(panel.collections[-1].get_paths()[0].vertices)[:, 1].max()
            assert top == pytest.approx(1), name


def test_bands_of_a_prompt_hold_its_language_and_its_scripts():
    languages = [*CODES, UNDECIDABLE]
    bands = figures.bands_of("language", languages, "ja")
    named = {band: [languages[i] for i in members] for band, members in bands.items()}
    assert named["English"] == ["en"] and named["the prompt's language"] == ["ja"]
    assert named["undecidable"] == [UNDECIDABLE] and len(named["other languages"]) == 18
    assert list(figures.bands_of("language", languages, "en"))[:2] == ["English", "other languages"]
    bands = figures.bands_of("script", SCRIPT_CLASSES, "ja")
    scripts = {band: [SCRIPT_CLASSES[i] for i in members] for band, members in bands.items()}
    assert scripts["the prompt's script"] == ["Han", "Kana"]
    assert sorted(script for band in scripts.values() for script in band) == sorted(SCRIPT_CLASSES)
    assert "the prompt's script" not in figures.bands_of("script", SCRIPT_CLASSES, "sw")


def test_twenty_languages_have_twenty_marks():
    assert len({figures.mark(index) for index in range(20)}) == 20


def test_pdf_is_the_same_bytes_every_time():
    figure = figures.attribution_pages(attribution(["en"]), "base model")["attribution"]
    page = figures.pdf(figure)
    assert page.startswith(b"%PDF") and page == figures.pdf(figure)
