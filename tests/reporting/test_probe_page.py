"""The page of one model's probes: what it says, that it is alone, whole and safe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.files import read_json, read_npz, write_json
from jaxalign.reporting.folders import read_probe, read_probes
from jaxalign.reporting.page import geometry_section, made_by, small_multiples, write_report
from tests.reporting.folders import (
    PROBED,
    write_attribution,
    write_geometry,
    write_lens,
    write_masking,
    write_pca,
    write_selection,
    write_transplant,
)
from tests.reporting.read_page import HOSTILE, Page, assert_alone

LANGUAGES = ["en", "de", "zh", "sw"]


def page_text(folder: Path, command: str = "jaxalign report base") -> str:
    out = folder.parent / "page.html"
    write_report(folder, [], out, command)
    return out.read_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All probes of one model."""
    folder = tmp_path_factory.mktemp("probed") / "base"
    write_lens(folder, LANGUAGES, layers=6)
    write_pca(folder, LANGUAGES, ["en", "de"], layers=6)
    write_geometry(folder, LANGUAGES)
    write_attribution(folder, LANGUAGES)
    write_masking(folder, LANGUAGES)
    write_masking(folder, LANGUAGES, "masked_accuracy", "accuracy_change")
    write_transplant(folder, LANGUAGES)
    write_selection(folder, [(0, 3)])
    return folder


@pytest.fixture(scope="module")
def text(base: Path) -> str:
    return page_text(base)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def test_the_page_is_alone_and_holds_every_probe(text: str):
    assert_alone(text)
    page = Page(text)
    # The lens of all languages in two ways, and large (3 of 4 have rows); PCA at two depths, correlations, two
    # geometries, two attributions, neurons by layer, two maskings, a transplant.
    assert page.count("svg") == 2 + 1 + 3 + 2 + 2 + 1 + 2 + 1
    for words in (
        "Probes of model models/smollm2-135m, no adapter, on the emotion task's prompts in en English, de German",
        "sw Swahili, n = 20",
        "No row of de German survives",
        "80% have a language of their own, and for 95% of these it is the right one",
        "language specific",
        "Change of accuracy (percentage points) with the neurons of each language switched off",
        "Change of log perplexity (nats per token) with the neurons of each language transplanted",
        "jaxalign probe --config.out=base",
        "jaxalign neurons counts.npz",
        "jaxalign report base",
        "Selection",
        "0.12.8",
    ):
        assert words in page.text, words
    assert "before" not in page.text and "Kept" not in page.text and "changes" not in page.text


def test_the_tables_say_what_the_arrays_hold(base: Path, text: str):
    page = Page(text)
    geometry = read_npz(base / "geometry.npz")
    for index in range(3):
        low, high = geometry["cka_interval"][index, 2]
        assert f"{geometry['cka'][index, 2]:.3f}{low:.3f} to {high:.3f}" in page.text
    latent = read_npz(base / "logit_lens.npz")["unshared_latent_mean"]
    for values in latent:
        assert f"{values.max():.3f} (layer {values.argmax() + 1})" in page.text
    english = read_npz(base / "attribution.npz")["language_mass_mean"][:, :, -1, 0]
    for values in english:
        assert f"{values.max():.3f} (layer {values.argmax() + 1})" in page.text
    for name, scale, decimals in (("masking", 1, 3), ("masked_accuracy", 100, 1), ("transplant", 1, 3)):
        change = next(array for key, array in read_npz(base / f"{name}.npz").items() if key.endswith("_change"))
        own = [f"{scale * change[0, k, k, 0]:+.{decimals}f}".replace("-", "\N{MINUS SIGN}") for k in range(4)]
        start = text.index(f'<section id="{name}">')
        section = text[start : text.index("</section>", start)]
        assert all(f'<td class="number">{value}</td>' in section for value in own)
    correlations = read_npz(base / "pca.npz")["correlations"]
    assert all(f"{correlations[3, 0, k]:.3f}" in page.text for k in (1, 2, 3))
    assert f"{np.mean(correlations[6, 0, 1:]):.3f}" in page.text


def test_a_probe_that_was_not_run_has_no_section(tmp_path: Path):
    write_geometry(tmp_path / "base", LANGUAGES)
    page = Page(page_text(tmp_path / "base"))
    sections = [value["id"] for tag, value in page.tags if tag == "section"]
    assert sections == ["geometry", "making"] and "no such probe" not in page.text


def test_the_lens_without_shared_tokens_is_shown_where_it_differs(tmp_path: Path):
    for languages, pages in ((["en", "de"], 2), (["en"], 1)):
        # No row of German survives the study's filter.
        write_lens(tmp_path, languages, layers=2, rows=3)
        lens = read_probe(tmp_path, "logit_lens")
        assert lens is not None and len(small_multiples(lens, "base")) == pages


def test_hostile_text_stays_text(tmp_path: Path):
    folder = tmp_path / "base"
    write_geometry(folder, LANGUAGES)
    write_pca(folder, LANGUAGES, ["en"], layers=6)
    write_selection(folder, [(0, 3)])
    for file in folder.glob("*.json"):
        document = read_json(file)
        document |= {"model": HOSTILE, "adapter": HOSTILE, "command": HOSTILE, "config": {HOSTILE: HOSTILE}}
        document |= {"versions": {HOSTILE: HOSTILE}, "position": HOSTILE}
        file.write_text(json.dumps(document))
    text = page_text(folder, command=HOSTILE)
    assert_alone(text)
    page = Page(text)
    assert page.count("img") == 0 and "{{ 7 * 7 }}[U+0000][U+202E]abc[U+2066][U+D800]&amp;" in page.text
    assert "States: <script>alert(1)</script>" in page.text  # as text


def test_probes_of_two_models_are_refused(folder: Path):
    write_json(folder / "pca.json", {**read_json(folder / "pca.json"), "adapter": "run"})
    with pytest.raises(InputError, match="logit_lens is of models/smollm2-135m, pca of models/smollm2-135m with run"):
        page_text(folder)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("attribution", {"token_map": {}}, "no field 'held_out'"),
        ("masking", {"effect": [1]}, "probe again"),
        ("transplant", {"weights": ["tuned", "base", *"12345678"]}, "do not begin with base, tuned"),
        ("selection", {"language": []}, "language is empty"),
        ("selection", {"language": ["xx", "sw"]}, "xx"),
        ("selection", {"neurons_per_layer": 3}, "other neurons than 2 layers of 3"),
        ("geometry", {"command": 3}, "field 'command'"),
    ],
)
def test_damaged_files_are_named(folder: Path, file: str, change: dict[str, object], said: str):
    path = folder / f"{file}.json"
    write_json(path, {**read_json(path), **change})
    with pytest.raises(InputError, match=said) as caught:
        page_text(folder)
    assert file in str(caught.value) and not (folder.parent / "page.html").exists()


def test_selected_neurons_alone_make_a_page(tmp_path: Path):
    folder = tmp_path / "neurons"
    folder.mkdir()
    write_json(folder / "neuron_counts.json", dict(PROBED))
    with pytest.raises(InputError, match="neurons are counted and none selected; `jaxalign neurons neuron_counts"):
        page_text(folder)
    write_selection(folder, [(0, 3)])
    assert PROBED["model"] in page_text(folder)


def test_a_selection_of_another_model_is_refused_and_one_of_no_named_model_shown(folder: Path):
    path = folder / "selection.json"
    document = read_json(path)
    write_json(path, document | {"model": "models/other"})
    with pytest.raises(InputError, match="logit_lens is of models/smollm2-135m, selection of models/other"):
        page_text(folder)
    geometry = folder.parent / "geometry"
    write_geometry(geometry, LANGUAGES)
    write_selection(geometry, [(0, 3)])
    write_json(geometry / "selection.json", {name: each for name, each in document.items() if name != "model"})
    assert "language specific" in page_text(geometry)


def test_probes_of_one_command_line_and_two_configs_are_named_apart(folder: Path):
    """As from Python, where several calls have one command line."""
    path = folder / "geometry.json"
    together = made_by(folder, {name: read_json(folder / f"{name}.json") for name in ("pca", "geometry")})
    write_json(path, read_json(path) | {"config": {"rows": "0:99"}})
    apart = made_by(folder, {name: read_json(folder / f"{name}.json") for name in ("pca", "geometry")})
    assert list(together) == ["pca, geometry"] and list(apart) == ["pca", "geometry"]
    assert apart["geometry"]["config"] == {"rows": "0:99"}


def test_geometries_of_other_layers_are_not_drawn_side_by_side(base: Path, folder: Path):
    path = folder / "geometry.json"
    layers = read_json(path)["layer"]
    write_json(path, read_json(path) | {"layer": [10 * layer for layer in layers]})
    sides = {"before": read_probes(base), "after": read_probes(folder)}
    section = geometry_section(sides, None)
    assert section.plots == () and "read different layers" in section.notes[-1]
