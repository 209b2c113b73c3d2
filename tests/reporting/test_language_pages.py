import numpy as np
import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.probing.attribution import SCRIPT_CLASSES, UNDECIDABLE
from jaxalign.reporting import language_pages, plots
from jaxalign.reporting.probe_files import Probe

RNG = np.random.default_rng(0)
CODES, LAYERS = list(LANGUAGES), 12


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
    figures = language_pages.lens_pages(probe, "base model")
    titles = [axes.get_title() for axes in figures["logit_lens"].axes if axes.get_title()]
    assert len(titles) == 18 and "de German, n = 7" not in titles and "sw Swahili, n = 7" in titles
    unshared = figures["logit_lens_unshared"]
    panels = [axes for axes in unshared.axes if axes.get_lines()]
    assert len(panels) == 20 and unshared.get_figwidth() <= 7.2
    np.testing.assert_array_equal(panels[2].get_lines()[0].get_ydata(), probe.arrays["unshared_latent_mean"][2])


def test_bands_share_the_distribution_out():
    codes = ["en", "de", "ja"]
    probe = attribution(codes)
    for name, figure in language_pages.attribution_pages(probe, "base model").items():
        panels = [axes for axes in figure.axes if axes.collections]
        assert len(panels) == 3
        for panel in panels:
            top = np.asarray(panel.collections[-1].get_paths()[0].vertices)[:, 1].max()
            assert top == pytest.approx(1), name


def test_bands_of_a_prompt_hold_its_language_and_its_scripts():
    languages = [*CODES, UNDECIDABLE]
    named = {band: [languages[i] for i in members] for band, members in language_pages.language_bands(languages, "ja")}
    assert named["English"] == ["en"] and named["the prompt's language"] == ["ja"]
    assert named["undecidable"] == [UNDECIDABLE] and len(named["other languages"]) == 18
    assert [band for band, _ in language_pages.language_bands(languages, "en")][:2] == ["English", "other languages"]
    scripts = {b: [SCRIPT_CLASSES[i] for i in m] for b, m in language_pages.script_bands(SCRIPT_CLASSES, "ja")}
    assert scripts["the prompt's script"] == ["Han", "Kana"]
    assert sorted(script for band in scripts.values() for script in band) == sorted(SCRIPT_CLASSES)
    assert "the prompt's script" not in dict(language_pages.script_bands(SCRIPT_CLASSES, "sw"))


def test_pdf_is_the_same_bytes_every_time():
    figure = language_pages.attribution_pages(attribution(["en"]), "base model")["attribution"]
    page = plots.pdf(figure)
    assert page.startswith(b"%PDF") and page == plots.pdf(figure)
