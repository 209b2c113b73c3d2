"""The pages as a browser would take them: what they say, that they are alone, whole and safe."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.files import published, read_json, read_npz, write_json
from jaxalign.reporting.compare import compare
from jaxalign.reporting.folders import checked_probe, read_probes
from jaxalign.reporting.page import geometry_section, made_by, small_multiples, write_report
from jaxalign.reporting.words import VARIANTS, interval_text, p_text, signed
from tests.reporting.folders import (
    CELLS,
    LANGUAGES,
    PROBED,
    name_model,
    write_attribution,
    write_both_sides,
    write_effect,
    write_evaluation,
    write_geometry,
    write_lens,
    write_pca,
    write_run,
    write_selection,
)
from tests.reporting.read_page import HOSTILE, Page, assert_alone


def report(before: Path, *afters: Path, command: str = "jaxalign report before after") -> str:
    out = before.parent / "report.html"
    write_report(before, afters, out, command)
    return out.read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where folders hold everything that a report can."""
    root = tmp_path_factory.mktemp("written")
    write_both_sides(root)
    return root


@pytest.fixture
def folders(written: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folders before and after, to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "before", tmp_path / "after"


@pytest.fixture
def evaluations(tmp_path: Path) -> tuple[Path, Path]:
    """Folders before and after without probes, whose figures take most of a page's time."""
    return write_evaluation(tmp_path / "before", CELLS), write_evaluation(tmp_path / "after", CELLS, seed=1)


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    """The page of the folders as they are."""
    return report(written / "before", written / "after")


def test_the_page_is_alone_and_its_ids_are_unique_and_every_reference_is_to_one(text: str) -> None:
    assert_alone(text)
    tags = Page(text).tags
    ids = Counter(value["id"] for _, value in tags if "id" in value)
    assert max(ids.values()) == 1
    assert {
        value for name in ("href", "xlink:href") for _, tag in tags if (value := tag.get(name) or "").startswith("#")
    }
    for reference in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text):
        assert "".join(reference) in ids


def test_what_was_measured_is_said(written: Path, text: str) -> None:
    page = Page(text)
    for cell in read_json(written / "after" / "results.json")["cells"]:
        assert f"{100 * cell['accuracy_corrected']:.1f}" in page.text
        assert f"{round(cell['accuracy_corrected'] * cell['count'])}/{cell['count']}" in page.text
        low, high = cell["interval_corrected"]
        assert f"{100 * low:.1f}–{100 * high:.1f}" in page.text
    for words in (
        "Tuned on questions translated from zh Chinese, de German into en English",
        "tuned on, 3 languages",
        "unseen, 1 language",
        "significant at 5 % after Holm's correction over the 5 cells of this comparison",
        "Framed and **",
        "Mean gain by slice",
        "Latin script (3)",
        "high-resource (3)",
        "No row of de German survives",
        "Reference scoring, where it counts differently",
        "jaxalign train --config.out=run",
        "jaxalign evaluate --config.out=before",
        "jaxalign report before after",
        "learning_rate",
        "0.12.8",
        "pairs dropped as too long",
    ):
        assert words in page.text, words
    # Gains, two tasks, the training curve, the lens, two depths of PCA, the correlations, the geometry twice;
    # and of each side the masking and two attributions.
    assert page.count("svg") == 16


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    cells, run = {("emotion", "en"): 0.6, ("emotion", "zh"): 0.6}, write_run(tmp_path / "run")
    folders = [write_evaluation(tmp_path / name, cells, adapter="run") for name in ("before", "after")]
    for path in (folders[0] / "results.json", folders[1] / "results.json", run / "run.json"):
        document = read_json(path)
        # A lone surrogate is written as an escape, as json.dumps does by default.
        document |= {"model": HOSTILE, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "template": HOSTILE}
        document |= {"config": {HOSTILE: [HOSTILE]}, "files": [HOSTILE]}
        document |= {"failures": [{"task": "paws", "language": "sw", "variant": "english", "error": HOSTILE}]}
        path.write_text(json.dumps(document))
    for folder in folders:
        write_geometry(folder, ["en", "zh"], layers=2)
        name_model(folder, model=HOSTILE, adapter="run")
    text = report(*folders, command=HOSTILE)
    page = Page(text)
    assert page.open == []
    assert page.count("script") == page.count("img") == 0
    # Gains, accuracy, the training curve, the geometry twice.
    assert page.count("svg") == 5
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "{{ 7 * 7 }}[U+0000][U+202E]abc[U+2066][U+D800]&amp;" in page.text
    assert not re.search("[\x00\u202a-\u202e\u2066-\u2069]", text)


def test_without_probes_and_adapter_the_sections_say_so(evaluations: tuple[Path, Path]) -> None:
    before, after = evaluations
    assert report(before, after) == report(before, after)
    (before / "timing.json").unlink()
    words = "सकारात्मक ইতিবাচক ポジティブ"
    write_json(before / "results.json", read_json(before / "results.json") | {"config": {"word": words}})
    page = Page(report(before, after))
    for said in (
        "There are no training curves: the results name no adapter.",
        "The before folder holds no such probe.",
        "The after folder holds no such probe.",
        "No languages tuned on are recorded",
        "No timing.json in the folder.",
        words,
    ):
        assert said in page.text, said
    assert page.count("svg") == 3
    assert "Cells that failed" not in page.text and "Language neurons" not in page.text


def test_what_stands_on_one_side_alone_is_said(tmp_path: Path) -> None:
    """A probe, cells, rows, a selection; and an adapter whose run is not here."""
    failures = [{"task": "paws", "language": "sw", "variant": "english", "error": "out of memory"}]
    cells = {("emotion", "en"): 0.6, ("emotion", "zh"): 0.6}
    before = write_evaluation(tmp_path / "before", cells | {("paws", "sw"): 0.6}, rows=range(40))
    after = write_evaluation(
        tmp_path / "after", cells | {("snli", "th"): 0.5}, rows=range(20, 50), adapter="far/off", failures=failures
    )
    write_lens(after, ["en", "zh"], layers=3)
    write_selection(after, [(0, 3)])
    name_model(after, adapter="far/off")
    page = Page(report(before, after))
    for said in (
        "no training run was found at far/off",
        "Only before, not compared: paws sw.",
        "Only after, not compared: snli th.",
        "Rows that not every folder scored were left out of emotion en zh.",
        "20 rows in each language",
        "paws sw, in after: out of memory",
        "The before folder holds no such probe.",
        "The before folder holds no selection.json: no neurons are compared.",
        "zh Chinese, after",
    ):
        assert said in page.text, said
    assert "zh Chinese, before" not in page.text


@pytest.mark.parametrize(
    "write", [lambda folder: write_geometry(folder, LANGUAGES), lambda folder: write_selection(folder, [(0, 3)])]
)
def test_probes_of_another_model_than_the_results_are_refused(
    evaluations: tuple[Path, Path], write: Callable[[Path], object]
) -> None:
    write(evaluations[1])
    compare(*evaluations)
    name_model(evaluations[1], adapter="run")
    with pytest.raises(
        InputError, match=r"after: results is of models/smollm2-135m, .* of models/smollm2-135m with run"
    ):
        report(*evaluations)


def test_both_sides_are_drawn_and_what_changed_is_said(written: Path, text: str) -> None:
    for label in ("before", "after"):
        for name in (f"attribution, {label}", f"attribution scripts, {label}", f"masking, {label}"):
            assert f'aria-label="{name}"' in text
    page = Page(text)
    comparison = compare(written / "before", written / "after")
    for change in (comparison.geometry, comparison.correlations):
        assert change is not None
        table = change.table()
        assert table.note in page.text
        assert all(cell.strip() in page.text for line in (table.head, *table.lines) for cell in line)
    assert "linear CKA" in page.text and "geometry, layer 2" in page.text and "**" in page.text


def test_probes_that_do_not_fit_are_not_drawn_together(folders: tuple[Path, Path]) -> None:
    """Another depth, other languages, other states, and a probe of one side alone."""
    write_lens(folders[1], LANGUAGES, layers=5)
    write_pca(folders[1], ["sw", "zh"], ["sw"], layers=6)
    name_model(folders[1], adapter="run")
    write_json(folders[1] / "geometry.json", read_json(folders[1] / "geometry.json") | {"position": "last"})
    for name in ("attribution", "masking"):
        (folders[1] / f"{name}.json").unlink()
        (folders[1] / f"{name}.npz").unlink()
    text = report(*folders)
    assert 'aria-label="attribution, before"' in text and 'aria-label="attribution, after"' not in text
    assert text.count("The after folder holds no such probe.") == 2
    page = Page(text)
    assert "different numbers of layers (6 and 5)" in page.text
    assert "no correlation with English" in page.text
    assert "the changes of their correlations are not paired" in page.text
    assert "rows, layers or states: their changes are not paired" in page.text


def test_bad_input_leaves_no_report_and_an_old_one_as_it_was(evaluations: tuple[Path, Path]) -> None:
    out = evaluations[0].parent / "out" / "report.html"
    path = evaluations[1] / "results.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(InputError, match="cut off"):
        write_report(evaluations[0], evaluations[1:], out, "")
    assert not out.exists()
    path.write_bytes(whole)
    write_report(evaluations[0], evaluations[1:], out, "")
    old = out.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(InputError):
        write_report(evaluations[0], evaluations[1:], out, "")
    assert out.read_bytes() == old
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match="name the HTML file"):
        write_report(evaluations[0], evaluations[1:], evaluations[0], "")


def test_the_numbers_are_those_of_the_comparison(written: Path, text: str) -> None:
    page = Page(text)
    gains = compare(written / "before", written / "after")
    for cell in gains.cells:
        score = cell.corrected
        numbers = f"{signed(score.gain_points)}{score.mark}{p_text(score.p_value)}{p_text(score.p_holm)}"
        assert numbers in page.text
        assert f"{score.gain_points:+.1f}".replace("+0.0", "0.0") in page.text  # in the heat map
    for mean in gains.means:
        assert f"{signed(mean.corrected.gain_points)} ({interval_text(mean.corrected.interval_points)})" in page.text


def test_variants_stand_apart_and_several_runs_are_averaged_and_named(tmp_path: Path) -> None:
    cells = {("emotion", "en", variant): 0.5 for variant in VARIANTS}
    folders = [write_evaluation(tmp_path / name, cells, seed=seed) for seed, name in enumerate(("a", "b", "second"))]
    page = Page(report(*folders))
    assert page.count("svg") == 4
    assert "emotion, in-language answers" in page.text and "emotion, task-irrelevant answers" in page.text
    assert "2 runs of one recipe" in page.text and "seed deviation" in page.text
    assert "Evaluation after, run 2" in page.text and "jaxalign evaluate --config.out=second" in page.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("jaxalign train /a/b/pairs.csv --config.model=/data/llama", "jaxalign train pairs.csv --config.model=llama"),
        ("'--config.out=~/al ice/run'", "'--config.out=al ice/run'"),
        ('{"model": "/mnt/x/llama-7b", "out": "runs/a"}', '{"model": "llama-7b", "out": "runs/a"}'),
        ("../llama runs/a gs://bucket/run https://a.b/c/d org/name@c0ffee", None),
        ("3/4 of 5 / 6, and/or, </code>", None),
        ("/data/x/llama: no such folder (/tmp/y)", "llama: no such folder (y)"),
    ],
)
def test_of_a_place_on_this_machine_the_name_stays(text, shown):
    assert published(text) == (text if shown is None else shown)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All probes of one model."""
    folder = tmp_path_factory.mktemp("probed") / "base"
    write_lens(folder, LANGUAGES, layers=6)
    write_pca(folder, LANGUAGES, ["en", "de"], layers=6)
    write_geometry(folder, LANGUAGES)
    write_attribution(folder, LANGUAGES)
    write_effect(folder, "masking", LANGUAGES)
    write_effect(folder, "masked_accuracy", LANGUAGES)
    write_effect(folder, "transplant", LANGUAGES)
    write_selection(folder, [(0, 3)])
    return folder


@pytest.fixture(scope="module")
def probes_text(base: Path) -> str:
    return report(base, command="jaxalign report base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def test_the_page_is_alone_and_holds_every_probe(probes_text: str):
    assert_alone(probes_text)
    page = Page(probes_text)
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


def test_the_tables_say_what_the_arrays_hold(base: Path, probes_text: str):
    page = Page(probes_text)
    geometry = read_npz(base / "geometry.npz")
    for index in range(3):
        low, high = geometry["cka_interval"][index, 2]
        assert f"{geometry['cka'][index, 2]:.3f}{low:.3f} to {high:.3f}" in page.text
    latent = read_npz(base / "logit_lens.npz")["unshared_latent_mean"]
    english = read_npz(base / "attribution.npz")["language_mass_mean"][:, :, -1, 0]
    for values in (*latent, *english):
        assert f"{values.max():.3f} (layer {values.argmax() + 1})" in page.text
    for name, scale, decimals in (("masking", 1, 3), ("masked_accuracy", 100, 1), ("transplant", 1, 3)):
        change = next(array for key, array in read_npz(base / f"{name}.npz").items() if key.endswith("_change"))
        own = [f"{scale * change[0, k, k, 0]:+.{decimals}f}".replace("-", "\N{MINUS SIGN}") for k in range(4)]
        section = probes_text.split(f'<section id="{name}">')[1].split("</section>")[0]
        assert all(f'<td class="number">{value}</td>' in section for value in own)
    correlations = read_npz(base / "pca.npz")["correlations"]
    assert all(f"{correlations[3, 0, k]:.3f}" in page.text for k in (1, 2, 3))
    assert f"{np.mean(correlations[6, 0, 1:]):.3f}" in page.text


def test_a_probe_that_was_not_run_has_no_section(tmp_path: Path):
    write_geometry(tmp_path / "base", LANGUAGES)
    page = Page(report(tmp_path / "base"))
    sections = [value["id"] for tag, value in page.tags if tag == "section"]
    assert sections == ["geometry", "making"] and "no such probe" not in page.text


def test_the_lens_without_shared_tokens_is_shown_where_it_differs(tmp_path: Path):
    for languages, pages in ((["en", "de"], 2), (["en"], 1)):
        # No row of German survives the study's filter.
        write_lens(tmp_path, languages, layers=2, rows=3)
        lens = checked_probe(tmp_path, "logit_lens")
        assert lens is not None and len(small_multiples(lens, "base")) == pages


def test_hostile_text_stays_text_in_the_page_of_probes(tmp_path: Path):
    folder = tmp_path / "base"
    write_geometry(folder, LANGUAGES)
    write_pca(folder, LANGUAGES, ["en"], layers=6)
    write_selection(folder, [(0, 3)])
    for file in folder.glob("*.json"):
        document = read_json(file)
        document |= {"model": HOSTILE, "adapter": HOSTILE, "command": HOSTILE, "config": {HOSTILE: HOSTILE}}
        document |= {"versions": {HOSTILE: HOSTILE}, "position": HOSTILE}
        file.write_text(json.dumps(document))
    text = report(folder, command=HOSTILE)
    assert_alone(text)
    page = Page(text)
    assert page.count("img") == 0 and "{{ 7 * 7 }}[U+0000][U+202E]abc[U+2066][U+D800]&amp;" in page.text
    assert "States: <script>alert(1)</script>" in page.text  # as text


def test_probes_of_two_models_are_refused(folder: Path):
    write_json(folder / "pca.json", {**read_json(folder / "pca.json"), "adapter": "run"})
    with pytest.raises(InputError, match="logit_lens is of models/smollm2-135m, pca of models/smollm2-135m with run"):
        report(folder)


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
        report(folder)
    assert file in str(caught.value) and not (folder.parent / "report.html").exists()


def test_selected_neurons_alone_make_a_page(tmp_path: Path):
    folder = tmp_path / "neurons"
    folder.mkdir()
    write_json(folder / "neuron_counts.json", dict(PROBED))
    with pytest.raises(InputError, match="neurons are counted and none selected; `jaxalign neurons neuron_counts"):
        report(folder)
    write_selection(folder, [(0, 3)])
    assert PROBED["model"] in report(folder)


def test_a_selection_of_another_model_is_refused_and_one_of_no_named_model_shown(folder: Path):
    path = folder / "selection.json"
    document = read_json(path)
    write_json(path, document | {"model": "models/other"})
    with pytest.raises(InputError, match="logit_lens is of models/smollm2-135m, selection of models/other"):
        report(folder)
    geometry = folder.parent / "geometry"
    write_geometry(geometry, LANGUAGES)
    write_selection(geometry, [(0, 3)])
    write_json(geometry / "selection.json", {name: each for name, each in document.items() if name != "model"})
    assert "language specific" in report(geometry)


def test_probes_of_one_command_line_and_two_configs_are_named_apart(folder: Path):
    """As from Python, where several calls have one command line."""
    documents = {name: read_json(folder / f"{name}.json") for name in ("pca", "geometry")}
    together = made_by(folder, documents)
    apart = made_by(folder, documents | {"geometry": documents["geometry"] | {"config": {"rows": "0:99"}}})
    assert list(together) == ["pca, geometry"] and list(apart) == ["pca", "geometry"]
    assert apart["geometry"]["config"] == {"rows": "0:99"}


def test_geometries_of_other_layers_are_not_drawn_side_by_side(base: Path, folder: Path):
    path = folder / "geometry.json"
    layers = read_json(path)["layer"]
    write_json(path, read_json(path) | {"layer": [10 * layer for layer in layers]})
    sides = {"before": read_probes(base), "after": read_probes(folder)}
    section = geometry_section(sides, None)
    assert section.plots == () and "read different layers" in section.notes[-1]


def test_selected_neurons_are_shown_of_both_sides(evaluations: tuple[Path, Path]):
    for folder, places in zip(evaluations, ([(0, 3)], [(1, 4)]), strict=True):
        write_selection(folder, places)
    page = report(*evaluations)
    row = page[page.index("sw Swahili</th>", page.index('id="neurons"')) :]
    assert row.split("</tr>")[0].count('<td class="number">1</td>') == 3
