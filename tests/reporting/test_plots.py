import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxalign.reporting import geometry_plots, plots

RNG = np.random.default_rng(0)
LANGUAGES = ("en", "de", "zh", "sw")
LAYERS = 6


def lens_arrays() -> dict[str, np.ndarray]:
    arrays = {}
    for quantity in ("latent", "out", "all_possible_latent", "all_possible_out", "entropy"):
        mean = RNG.uniform(0, 10 if quantity == "entropy" else 1, (len(LANGUAGES), LAYERS))
        if quantity != "entropy":
            mean[1] = np.nan
        arrays[f"{quantity}_mean"], arrays[f"{quantity}_half_width"] = mean, np.full_like(mean, 0.05)
    return arrays


LENS = {"before": lens_arrays(), "after": lens_arrays()}
POINTS = {run: RNG.normal(size=(LAYERS + 1, len(LANGUAGES), 9, 2)) for run in ("before", "after")}
CORRELATIONS = {run: RNG.uniform(-1, 1, (LAYERS + 1, len(LANGUAGES), len(LANGUAGES))) for run in ("before", "after")}
ACCURACIES = {"before": [0.9, 0.8, 0.7, 0.5], "after": [0.95, 0.85, 0.9, 0.7]}
INTERVALS = {run: [(value - 0.05, value + 0.04) for value in values] for run, values in ACCURACIES.items()}

GAINS = np.array([[12.5, -3.0, 0.02, 8.0], [np.nan, 1.0, -12.6, 0.0]])
MARKS = {index: "" for index in np.ndindex(GAINS.shape)} | {(0, 0): "**", (0, 3): "*"}


def geometry_arrays() -> dict[str, np.ndarray]:
    arrays = {
        name: RNG.uniform(0, 1, (len(LANGUAGES), LAYERS)) for name in (*geometry_plots.GEOMETRY_TITLES, "cka_chance")
    }
    return {**arrays, "rank": RNG.integers(1, 10, (len(LANGUAGES), LAYERS, 10))}


GEOMETRY = {"before": geometry_arrays(), "after": geometry_arrays()}

FIGURES: dict[str, Callable[[], Figure]] = {
    "lens": lambda: plots.logit_lens(LENS, LANGUAGES),
    "pca": lambda: plots.pca_scatter(POINTS, LANGUAGES, [0, 3]),
    "correlations": lambda: plots.correlation_heat_map(CORRELATIONS, LANGUAGES),
    "geometry": lambda: geometry_plots.geometry(GEOMETRY, LANGUAGES, range(LAYERS)),
    "training": lambda: plots.training_curves([1, 2, 3], [3.0, 2.0, 1.5], [0, 3], [3.1, 1.9]),
    "gains": lambda: plots.gain_heat_map(["emotion", "snli"], LANGUAGES, GAINS, MARKS),
    "accuracy": lambda: plots.accuracy_dots(LANGUAGES, ACCURACIES, INTERVALS, 0.5),
}


@pytest.mark.parametrize("name", FIGURES)
def test_svg_is_deterministic_text_with_ids_of_its_own(name: str):
    element = plots.svg(FIGURES[name](), name)
    assert element == plots.svg(FIGURES[name](), name)
    root = ElementTree.fromstring(element)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    ids = re.findall(r'\bid="([^"]+)"', element)
    assert len(ids) == len(set(ids)) and all(one.startswith(f"{name}-") for one in ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', element)
    assert set(referred) <= set(ids)
    assert "<text" in element and "<dc:date>" not in element


def test_coordinates_are_rounded_and_texts_are_not():
    figure = Figure()
    panel = figure.subplots()
    panel.plot([0, 1 / 3, 1], [0, 2 / 3, 1])
    panel.set_title("1.23456")
    element = plots.svg(figure, "rounded")
    coordinates = "".join(re.findall(r' (?:d|x|y)="[^"]*"', element))
    assert re.search(r"\d\.\d\d\b", coordinates) and not re.search(r"\d\.\d{3}", coordinates)
    assert ">1.23456<" in element


@pytest.mark.parametrize("name", ["lens", "pca", "correlations", "geometry", "gains", "accuracy"])
def test_languages_are_named_by_code_and_english_name(name: str):
    element = plots.svg(FIGURES[name](), name)
    assert "zh Chinese" in element and "sw Swahili" in element
    assert element.isascii() or set(element) - set(map(chr, range(128))) <= {"\N{MINUS SIGN}"}


def test_lens_shows_languages_with_rows_and_no_second_line_for_english():
    figure = plots.logit_lens(LENS, LANGUAGES)
    panels = [axes for axes in figure.axes if axes.get_lines()]
    # Two runs of en, zh, sw; German has no surviving row.
    assert len(panels) == 6
    assert [len(panel.get_lines()) for panel in panels] == [2, 4, 4] * 2
    latent = panels[1].get_lines()[0]
    np.testing.assert_array_equal(latent.get_xdata(), np.arange(1, LAYERS + 1))
    np.testing.assert_array_equal(latent.get_ydata(), LENS["before"]["latent_mean"][2])


def test_heat_map_holds_the_correlations_with_english():
    figure = plots.correlation_heat_map(CORRELATIONS, LANGUAGES)
    mesh = figure.axes[1].collections[0].get_array()
    assert mesh is not None
    np.testing.assert_array_equal(np.asarray(mesh), CORRELATIONS["after"][:, 0, 1:].T)


def test_geometry_has_a_line_for_each_language_and_chance():
    figure = geometry_plots.geometry(GEOMETRY, LANGUAGES, [0, 2, 3, 4, 5, 9], geometry_plots.UNCENTRED_GEOMETRY)
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
def test_languages_without_rows_do_not_stretch_the_scale():
    assert plots.largest_entropy([np.full(3, np.nan)]) == 14
    assert plots.largest_entropy([np.full(3, np.nan), np.array([15.5, np.nan])]) == 15.5


def test_gains_stand_in_their_cells_on_a_scale_around_zero():
    panel = FIGURES["gains"]().axes[0]
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in panel.texts}
    assert written == {
        (0.5, 0.5): "+12.5\n**",
        (0.5, 1.5): "-3.0",
        (0.5, 2.5): "0.0",
        (0.5, 3.5): "+8.0\n*",
        (1.5, 1.5): "+1.0",
        (1.5, 2.5): "-12.6",
        (1.5, 3.5): "0.0",
    }
    assert panel.collections[0].get_clim() == (-12.6, 12.6)
    [frame] = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
    assert frame.get_xy() == pytest.approx((0.04, 0.04))
    assert [label.get_text() for label in panel.get_yticklabels()] == ["emotion", "snli"]


def test_scatter_marks_every_prompt_of_its_layer():
    figure = plots.pca_scatter(POINTS, LANGUAGES, [0, 3])
    third = figure.axes[3].collections[2].get_offsets()
    np.testing.assert_array_equal(np.asarray(third), POINTS["after"][3, 2])


def test_accuracy_dots_stand_at_their_percentages():
    panel = plots.accuracy_dots(LANGUAGES, ACCURACIES, INTERVALS, 0.5).axes[0]
    drawn = [np.asarray(line.get_xdata()) for line in panel.get_lines() if len(np.asarray(line.get_xdata())) == 4]
    np.testing.assert_allclose(drawn, [[90, 80, 70, 50], [95, 85, 90, 70]])


def test_twenty_languages_have_twenty_marks():
    assert len({plots.mark(index) for index in range(20)}) == 20
