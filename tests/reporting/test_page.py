"""The report as a browser would take it: what it says, that it is alone, whole and safe."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxalign.errors import InputError
from jaxalign.files import published, read_json, write_json
from jaxalign.reporting.compare import compare
from jaxalign.reporting.page import write_report
from jaxalign.reporting.words import VARIANTS, interval_text, p_text, signed
from tests.reporting.folders import (
    CELLS,
    LANGUAGES,
    name_model,
    write_both_sides,
    write_evaluation,
    write_geometry,
    write_lens,
    write_pca,
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


def test_the_page_is_well_formed_alone_and_without_script(text: str) -> None:
    assert_alone(text)


def test_ids_are_unique_and_every_reference_is_to_one(text: str) -> None:
    tags = Page(text).tags
    ids = Counter(value["id"] for _, value in tags if "id" in value)
    assert max(ids.values()) == 1
    assert {
        value for name in ("href", "xlink:href") for _, tag in tags if (value := tag.get(name) or "").startswith("#")
    }
    for reference in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text):
        assert "".join(reference) in ids


def test_pages_of_layers_and_neurons_stand_side_by_side(folders: tuple[Path, Path], text: str) -> None:
    for label in ("before", "after"):
        for name in (f"attribution, {label}", f"attribution scripts, {label}", f"masking, {label}"):
            assert f'aria-label="{name}"' in text
    for name in ("attribution", "masking"):
        (folders[1] / f"{name}.json").unlink()
        (folders[1] / f"{name}.npz").unlink()
    text = report(*folders)
    assert 'aria-label="attribution, before"' in text and 'aria-label="attribution, after"' not in text
    assert text.count("The after folder holds no such probe.") == 2


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


def test_the_same_files_give_the_same_bytes(written: Path, text: str) -> None:
    assert report(written / "before", written / "after") == text


def test_hostile_text_stays_text(folders: tuple[Path, Path], text: str) -> None:
    harmless = Page(text)
    run = folders[0].parent / "run"
    for path in (folders[0] / "results.json", folders[1] / "results.json", run / "run.json"):
        document = read_json(path)
        # A lone surrogate is written as an escape, as json.dumps does by default.
        document |= {"model": HOSTILE, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "template": HOSTILE}
        document |= {"config": {HOSTILE: [HOSTILE]}, "files": [HOSTILE]}
        document |= {"failures": [{"task": "paws", "language": "sw", "variant": "english", "error": HOSTILE}]}
        path.write_text(json.dumps(document))
    for folder in folders:
        name_model(folder, model=HOSTILE)
    text = report(*folders, command=HOSTILE)
    page = Page(text)
    assert page.open == []
    assert page.count("script") == page.count("img") == 0
    assert page.count("svg") == harmless.count("svg")
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "{{ 7 * 7 }}[U+0000][U+202E]abc[U+2066][U+D800]&amp;" in page.text
    assert not re.search("[\x00\u202a-\u202e\u2066-\u2069]", text)


def test_native_script_stays_as_it_is(evaluations: tuple[Path, Path]) -> None:
    path = evaluations[1] / "results.json"
    words = "सकारात्मक ইতিবাচক ポジティブ"
    write_json(path, {**read_json(path), "config": {"word": words}})
    assert words in Page(report(*evaluations)).text


def test_without_probes_and_adapter_the_sections_say_so(tmp_path: Path) -> None:
    before, after = (write_evaluation(tmp_path / name, CELLS) for name in ("before", "after"))
    (before / "timing.json").unlink()
    page = Page(report(before, after))
    for words in (
        "There are no training curves: the results name no adapter.",
        "The before folder holds no such probe.",
        "The after folder holds no such probe.",
        "No languages tuned on are recorded",
        "No timing.json in the folder.",
    ):
        assert words in page.text, words
    assert page.count("svg") == 3
    assert "Cells that failed" not in page.text


def test_an_adapter_without_a_run_is_named(tmp_path: Path) -> None:
    before = write_evaluation(tmp_path / "before", CELLS)
    after = write_evaluation(tmp_path / "after", CELLS, adapter="somewhere/else")
    assert "no training run was found at somewhere/else" in Page(report(before, after)).text


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


def test_a_probe_on_one_side_is_drawn_alone(tmp_path: Path) -> None:
    before, after = (write_evaluation(tmp_path / name, CELLS) for name in ("before", "after"))
    write_lens(after, LANGUAGES, layers=6)
    page = Page(report(before, after))
    assert "The before folder holds no such probe." in page.text
    assert "zh Chinese, after" in page.text and "zh Chinese, before" not in page.text


def test_the_geometry_is_drawn_and_its_changes_said(folders: tuple[Path, Path], text: str) -> None:
    page = Page(text)
    comparison = compare(*folders)
    for change in (comparison.geometry, comparison.correlations):
        assert change is not None
        table = change.table()
        assert table.note in page.text
        assert all(text.strip() in page.text for line in (table.head, *table.lines) for text in line)
    assert "linear CKA" in page.text and "geometry, layer 2" in page.text and "**" in page.text
    document = read_json(folders[1] / "geometry.json")
    write_json(folders[1] / "geometry.json", document | {"position": "last"})
    assert "their changes are not paired" in Page(report(*folders)).text


def test_probes_of_other_depths_or_languages_are_not_drawn_together(folders: tuple[Path, Path]) -> None:
    write_lens(folders[1], LANGUAGES, layers=5)
    write_pca(folders[1], ["sw", "zh"], ["sw"], layers=6)
    name_model(folders[1], adapter="run")
    page = Page(report(*folders))
    assert "different numbers of layers (6 and 5)" in page.text
    assert "no correlation with English" in page.text
    assert "the changes of their correlations are not paired" in page.text


def test_cells_of_one_side_and_other_rows_are_listed(tmp_path: Path) -> None:
    before = write_evaluation(tmp_path / "before", {("emotion", "en"): 0.6, ("paws", "sw"): 0.6}, rows=range(40))
    after = write_evaluation(tmp_path / "after", {("emotion", "en"): 0.6, ("snli", "th"): 0.5}, rows=range(20, 50))
    page = Page(report(before, after))
    assert "Only before, not compared: paws sw." in page.text
    assert "Only after, not compared: snli th." in page.text
    assert "Rows that not every folder scored were left out of emotion en." in page.text
    assert "20 rows in each language" in page.text


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


def test_a_folder_is_no_place_for_the_report(evaluations: tuple[Path, Path]) -> None:
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


def test_variants_stand_apart(tmp_path: Path) -> None:
    cells = {("emotion", "en", variant): 0.5 for variant in VARIANTS}
    page = Page(report(*(write_evaluation(tmp_path / name, cells, seed=seed) for seed, name in enumerate("ab"))))
    assert page.count("svg") == 4
    assert "emotion, in-language answers" in page.text and "emotion, task-irrelevant answers" in page.text


def test_several_runs_are_averaged_and_named(evaluations: tuple[Path, Path], tmp_path: Path) -> None:
    second = write_evaluation(tmp_path / "second", CELLS, seed=77)
    page = Page(report(*evaluations, second))
    assert "2 runs of one recipe" in page.text and "seed deviation" in page.text
    assert "Evaluation after, run 2" in page.text and "jaxalign evaluate --config.out=second" in page.text


def test_a_failed_cell_is_listed(tmp_path: Path) -> None:
    failure = {"task": "paws", "language": "sw", "variant": "english", "error": "out of memory"}
    before = write_evaluation(tmp_path / "before", CELLS)
    after = write_evaluation(tmp_path / "after", CELLS, failures=[failure])
    assert "paws sw, in after: out of memory" in Page(report(before, after)).text


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
