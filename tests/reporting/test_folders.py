"""What evaluate, train and probe wrote, read by a comparison: what is paired, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxalign.data.tasks import TASKS
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.reporting.compare import compare
from jaxalign.reporting.folders import check_of_one_model, model_documents, model_of_all
from tests.reporting.folders import write_evaluation, write_lens, write_pca, write_run

CODES = ["en", "zh", "sw"]
EMOTION = {("emotion", language): mass for language, mass in zip(CODES, (0.6, 0.5, 0.45), strict=True)}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Before and after on emotion in en, zh, sw; the run behind the adapter is beside them, tuned on zh -> en."""
    write_run(tmp_path / "run", sources=["zh"], targets=["en"])
    before = write_evaluation(tmp_path / "before", EMOTION)
    return before, write_evaluation(tmp_path / "after", EMOTION, seed=50, adapter="run", tuned_on=["zh", "en"])


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def write_predictions(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def edit_cell(folder: Path, **changes: object) -> None:
    """The first cell of `results.json`."""
    first, *others = read_json(folder / "results.json")["cells"]
    edit(folder / "results.json", cells=[{**first, **changes}, *others])


def edit_prediction(folder: Path, **changes: object) -> None:
    """The third record."""
    records = predictions(folder)
    records[2] |= changes
    write_predictions(folder, records)


def refused(before: Path, *afters: Path) -> str:
    """The one line that the comparison is refused with."""
    with pytest.raises(InputError) as caught:
        compare(before, *afters)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_cells_are_those_of_the_predictions(folders: tuple[Path, Path]) -> None:
    cells = compare(*folders).cells
    assert [cell.language for cell in cells] == CODES
    for cell in cells:
        for folder, read in zip(folders, (cell.before, cell.after), strict=True):
            records = [record for record in predictions(folder) if record["language"] == cell.language]
            assert read.count == len(records) == 60
            assert read.correct == sum(record["correct_corrected"] for record in records)
            by_reference = [prediction.correct_reference for prediction in read.predictions.values()]
            assert by_reference == [record["correct_reference"] for record in records]
            gold = sum(record["prefix_mass"][record["gold_class"]] for record in records) / len(records)
            everything = sum(sum(record["prefix_mass"].values()) for record in records) / len(records)
            assert read.mean_gold_mass == pytest.approx(gold, abs=1e-12)  # float64 rounding
            assert read.mean_label_mass == pytest.approx(everything, abs=1e-12)
            for name in TASKS["emotion"].classes:
                assert read.predicted[name] == sum(record["prediction"] == name for record in records)


@pytest.mark.parametrize(("recorded", "seen"), [(["en", "sw"], [True, False, True]), (None, [True, True, False])])
def test_what_runs_before_it_saw_is_seen(folders: tuple[Path, Path], recorded: list[str] | None, seen: list[bool]):
    assert [cell.seen for cell in compare(*folders).cells] == [True, True, False]
    file = folders[0].parent / "run" / "run.json"
    document = read_json(file)
    document["languages"]["seen"] = recorded
    write_json(file, document)
    # Where the run does not know, what evaluate recorded counts.
    assert [cell.seen for cell in compare(*folders).cells] == seen


def test_without_its_run_the_languages_that_evaluate_recorded_are_seen(folders: tuple[Path, Path]) -> None:
    edit(folders[1] / "results.json", adapter="gone", tuned_on=["sw"])
    assert compare(*folders).run is None
    assert [cell.seen for cell in compare(*folders).cells] == [False, False, True]
    edit(folders[1] / "results.json", adapter="peft", tuned_on=None)
    write_json(folders[0].parent / "peft" / "adapter_config.json", {})
    comparison = compare(*folders)
    assert comparison.run is None and {cell.seen for cell in comparison.cells} == {None}
    assert "tuning" not in {mean.kind for mean in comparison.means}


def test_only_common_cells_are_compared_and_the_others_listed(tmp_path: Path) -> None:
    """Variants of one task are cells of their own."""
    in_both = {("emotion", "zh", "english"): 0.9, ("emotion", "zh", "irrelevant"): 0.2}
    before = write_evaluation(tmp_path / "before", in_both | {("emotion", "de"): 0.6})
    after = write_evaluation(tmp_path / "after", {("paws", "en"): 0.6} | in_both)
    comparison = compare(before, after)
    assert [cell.key for cell in comparison.cells] == list(in_both)
    assert comparison.cells[0].before.correct > comparison.cells[1].before.correct
    assert comparison.only_before == [("emotion", "de", "english")]
    assert comparison.only_after == [("paws", "en", "english")]
    other = write_evaluation(tmp_path / "other", {("paws", "sw"): 0.6})
    assert "emotion zh de, emotion irrelevant zh | paws sw" in refused(before, other)


def test_only_rows_that_all_scored_are_paired(tmp_path: Path) -> None:
    cell = {("emotion", "en"): 0.6}
    before = write_evaluation(tmp_path / "before", cell, rows=range(40))
    after = write_evaluation(tmp_path / "after", cell, rows=range(30, 50))
    [paired] = compare(before, after).cells
    assert (paired.rows, paired.left_out) == (list(range(30, 40)), 40)
    other = write_evaluation(tmp_path / "other", cell, rows=range(50, 60))
    assert "no row of emotion, en, english in common" in refused(before, other)


def exchange_golds(folder: Path) -> None:
    """The item of a neighbouring row in place of the first, answered as rightly."""
    records, other = predictions(folder), {"positive": "negative", "negative": "positive"}
    first = records[0]
    first |= {name: other[first[name]] for name in ("gold_class", "prediction")}
    first["prefix_mass"] = {other[name]: mass for name, mass in first["prefix_mass"].items()}
    write_predictions(folder, records)


NOT_LARGEST = {
    "prefix_mass": {"positive": 0.2, "negative": 0.3},
    "prediction": "positive",
    "gold_class": "positive",
    "correct_corrected": True,
}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "results.json").unlink(), "before: no results.json there"),
        (lambda folder: (folder.parent / "run" / "run.json").unlink(), "run.json: no such file"),
        (lambda folder: (folder.parent / "run" / "metrics.jsonl").unlink(), "metrics.jsonl: no such file"),
        (lambda folder: edit_cell(folder, accuracy_corrected=0.123), "accuracy_corrected"),
        (lambda folder: edit_cell(folder, count=61), "61 rows of emotion, en, english"),
        (lambda folder: edit_cell(folder, variant="<b>"), "one of english, in_language, irrelevant is needed"),
        (lambda folder: edit(folder / "results.json", model=7), "field 'model': text is needed, found 7"),
        (
            lambda folder: edit(folder / "results.json", task_version={"emotion": 9}),
            "emotion's task version is 9 in one and 1 in",
        ),
        (lambda folder: edit_prediction(folder, **NOT_LARGEST), "'prediction': 'positive' has not the largest"),
        (
            lambda folder: edit_prediction(folder, **{**NOT_LARGEST, "prediction": "negative"}),
            "row 2, field 'correct_corrected': true, but predicted is 'negative' and right is 'positive'",
        ),
        (exchange_golds, "row 0 of emotion, en, english has the gold classes negative and positive"),
    ],
)
def test_what_contradicts_itself_or_is_missing_is_refused(
    folders: tuple[Path, Path], spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folders[0])
    assert said in refused(*folders)


def test_of_equal_masses_either_is_the_largest(folders: tuple[Path, Path]) -> None:
    equal = {"prefix_mass": {"positive": 0.3, "negative": 0.3}, "prediction": "negative", "correct_corrected": False}
    edit_prediction(folders[0], **NOT_LARGEST | equal)
    assert "accuracy_corrected" in refused(*folders)  # not the prediction


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl", "logit_lens.npz", "pca.json", "pca.npz"])
def test_a_file_cut_off_is_refused_by_name(folders: tuple[Path, Path], name: str) -> None:
    write_lens(folders[1], CODES, layers=2)
    write_pca(folders[1], CODES, ["en", "zh"], layers=2)
    path = folders[1] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refused(*folders)


def test_probes_that_contradict_their_axes_or_lack_a_file_are_refused(folders: tuple[Path, Path]) -> None:
    write_pca(folders[1], CODES, ["en", "zh"], layers=2)
    edit(folders[1] / "pca.json", language=["en", "zh"])
    assert "correlations is (3, 3, 3), pca.json says (3, 2, 2)" in refused(*folders)
    (folders[1] / "pca.npz").unlink()
    assert "pca.npz: no such file" in refused(*folders)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probes_that_hold_what_is_no_number_are_refused(folders: tuple[Path, Path], value: float) -> None:
    write_pca(folders[0], CODES, ["en", "zh"], layers=2)
    write_lens(folders[0], ["en", "de"], layers=4)
    compare(*folders)  # no row of German survives: that alone is no damage
    for name, array, place in (("pca", "correlations", (0, 0, 1)), ("logit_lens", "latent_mean", (0, 3))):
        path = folders[0] / f"{name}.npz"
        whole = path.read_bytes()
        arrays = dict(np.load(path))
        arrays[array][place] = value
        np.savez(path, **arrays)
        message = refused(*folders)
        assert f"{path}: 1 of " in message and f"values of {array} are not finite; probe again" in message
        arrays[array] = np.full(arrays[array].shape, "x")
        np.savez(path, **arrays)
        assert f"{array} is <U1; numbers are needed" in refused(*folders)
        path.write_bytes(whole)


def test_a_run_still_being_written_is_read_to_its_last_whole_row(folders: tuple[Path, Path]) -> None:
    path = folders[0].parent / "run" / "metrics.jsonl"
    whole = compare(*folders).run
    path.write_text(path.read_text() + '{"step": 201, "lo')
    assert compare(*folders).run == whole


def test_a_folder_older_than_whole_words_and_failures_is_read(folders: tuple[Path, Path]) -> None:
    document = read_json(folders[0] / "results.json")
    del document["failures"]
    for cell in document["cells"]:
        del cell["accuracy_whole_word"], cell["shared_candidates"]
    write_json(folders[0] / "results.json", document)
    comparison = compare(*folders)
    assert comparison.cells[0].before.accuracy_whole_word is None
    assert comparison.cells[0].after.accuracy_whole_word == comparison.cells[0].after.accuracy
    assert comparison.failures == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tuned_on": ["zh"]}, "what it was tuned on is ['en', 'zh'] in one and ['zh'] in the other"),
        ({"model": "models/other"}, "the model is"),
        ({"param_dtype": "nf4"}, "param_dtype is 'float32' in one and 'nf4'"),
    ],
)
def test_runs_of_another_recipe_are_refused(folders: tuple[Path, Path], changed: dict[str, object], named: str) -> None:
    description = {"adapter": "run", "tuned_on": ["zh", "en"], **changed}
    other = write_evaluation(folders[0].parent / "other", EMOTION, seed=7, **description)
    assert named in refused(*folders, other)


def test_runs_on_other_cells_or_given_twice_are_refused_unless_a_cell_failed(folders: tuple[Path, Path]) -> None:
    fewer, described = dict(list(EMOTION.items())[:2]), {"adapter": "run", "tuned_on": ["zh", "en"]}
    other = write_evaluation(folders[0].parent / "other", fewer, **described)
    assert "the choice of cells is 'emotion en sw zh' in one and 'emotion en zh'" in refused(*folders, other)
    assert "given twice" in refused(*folders, folders[1])
    failure = {"task": "emotion", "language": "sw", "variant": "english", "error": "out of memory"}
    edit(other / "results.json", failures=[failure])
    comparison = compare(*folders, other)
    assert [cell.language for cell in comparison.cells] == ["en", "zh"]
    assert comparison.failures == [(other, (("emotion", "sw", "english"), "out of memory"))]


def test_results_under_other_names_of_their_languages_are_the_same(folders: tuple[Path, Path]) -> None:
    write_lens(folders[0], CODES, layers=2)
    write_pca(folders[0], CODES, ["en", "zh"], layers=2)
    expected = compare(*folders)
    results = [folder / name for folder in folders for name in ("results.json", "predictions.jsonl")]
    for path in (*results, folders[0] / "pca.json", folders[0].parent / "run" / "run.json"):
        path.write_text(path.read_text().replace('"zh"', '"zh-CN"').replace('"en"', '"eng_Latn"'))
    lens = folders[0] / "logit_lens.json"
    lens.write_text(lens.read_text().replace('"sw"', '"Swahili"'))
    found = compare(*folders)
    assert found.cells == expected.cells and found.after.tuned_on == ["zh", "en"]
    assert found.run is not None and found.run.languages == ("zh", "en")
    probes, as_written = found.before.probes, expected.before.probes
    assert probes["pca"].languages == CODES
    for name in ("language", "rows", "surviving_rows", "unshared_surviving_rows"):
        assert probes["logit_lens"].document[name] == as_written["logit_lens"].document[name]


MADE = {"model": "models/tiny", "adapter": "run"}


def test_spellings_of_one_path_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    absolute = {"model": str(tmp_path / "models/tiny"), "adapter": "./run/"}
    assert model_of_all(tmp_path, {"pca": MADE, "geometry": absolute}) == ("models/tiny", "run")
    with pytest.raises(InputError, match="pca is of org/name@1, geometry of org/name@2; use a folder for each"):
        model_of_all(tmp_path, {name: {"model": f"org/name@{n}"} for n, name in enumerate(("pca", "geometry"), 1)})


def test_what_is_written_anew_may_be_of_another_model_and_of_any_form(tmp_path: Path):
    write_json(tmp_path / "pca.json", {"model": "models/other"})  # as an older version wrote it: without axes
    write_json(tmp_path / "selection.json", {"language": "de"})  # of another program's counts: names no model
    assert list(model_documents(tmp_path)) == ["pca"]
    check_of_one_model(tmp_path, MADE, ["pca"])
    with pytest.raises(InputError, match="pca is of models/other, what is asked for of models/tiny with run"):
        check_of_one_model(tmp_path, MADE, ["geometry"])
    (tmp_path / "pca.json").unlink()
    write_json(tmp_path / "results.json", MADE)
    write_json(tmp_path / "neuron_counts.json", MADE)
    check_of_one_model(tmp_path, MADE, [])
    write_json(tmp_path / "results.json", {"model": "models/tiny", "adapter": None})
    with pytest.raises(InputError, match="neuron_counts is of models/tiny with run, results of models/tiny;"):
        check_of_one_model(tmp_path, MADE, [])
