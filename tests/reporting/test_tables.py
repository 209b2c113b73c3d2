"""Comparing two result folders: which cells are paired, how they are marked and averaged, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.tasks import TASKS
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.reporting.tables import compare, mean_rows, plain_text_table, signed
from tests.reporting.folders import write_evaluation, write_lens, write_pca, write_run

LANGUAGES = ["en", "zh", "sw"]
EMOTION = {("emotion", language): mass for language, mass in zip(LANGUAGES, (0.6, 0.5, 0.45), strict=True)}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Before and after on emotion in en, zh, sw; the run behind the adapter is beside them, tuned on zh -> en."""
    write_run(tmp_path / "run", sources=["zh"], targets=["en"])
    before = write_evaluation(tmp_path / "before", EMOTION)
    return before, write_evaluation(tmp_path / "after", EMOTION, seed=50, adapter="run", tuned_on=["zh", "en"])


def counted(folder: Path, language: str, key: str = "correct_corrected") -> int:
    """Correct rows of a language, counted from the file with nothing of the package."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(record[key] for record in map(json.loads, lines) if record["language"] == language)


def test_counts_and_differences_are_those_of_the_predictions(folders: tuple[Path, Path]) -> None:
    rows = compare(*folders).rows
    assert [row.language for row in rows] == LANGUAGES
    for row in rows:
        before, after = (counted(folder, row.language) for folder in folders)
        assert (row.before.correct, row.after.correct, row.after.count) == (before, after, 60)
        # Exact up to rounding of float64.
        assert row.points == pytest.approx(100 * (after - before) / 60, abs=1e-9)


def test_sources_and_targets_of_the_run_are_seen(folders: tuple[Path, Path]) -> None:
    assert [row.seen for row in compare(*folders).rows] == [True, True, False]


@pytest.mark.parametrize(("recorded", "seen"), [(["en", "sw"], [True, False, True]), (None, [True, True, False])])
def test_what_runs_before_it_saw_is_seen(folders: tuple[Path, Path], recorded: list[str] | None, seen: list[bool]):
    file = folders[0].parent / "run" / "run.json"
    document = read_json(file)
    document["languages"]["seen"] = recorded
    write_json(file, document)
    # Where the run does not know, what evaluate recorded counts.
    assert [row.seen for row in compare(*folders).rows] == seen


def test_without_its_run_the_languages_that_evaluate_recorded_are_seen(tmp_path: Path) -> None:
    before = write_evaluation(tmp_path / "before", EMOTION)
    after = write_evaluation(tmp_path / "after", EMOTION, adapter="gone", tuned_on=["sw"])
    comparison = compare(before, after)
    assert comparison.run is None
    assert [row.seen for row in comparison.rows] == [False, False, True]


def test_without_a_record_nothing_is_marked_and_only_one_mean_is_taken(tmp_path: Path) -> None:
    rows = compare(*(write_evaluation(tmp_path / name, EMOTION) for name in ("before", "after"))).rows
    assert {row.seen for row in rows} == {None}
    assert [mean.label for mean in mean_rows(rows)] == ["all languages"]


def test_means_are_plain_means_over_languages(folders: tuple[Path, Path]) -> None:
    means = mean_rows(compare(*folders).rows)
    groups = {"all languages": LANGUAGES, "tuned on": ["en", "zh"], "unseen": ["sw"]}
    assert {mean.label: mean.languages for mean in means} == {label: len(codes) for label, codes in groups.items()}
    for mean in means:
        for folder, value in zip(folders, (mean.before, mean.after), strict=True):
            accuracies = [counted(folder, code) / 60 for code in groups[mean.label]]
            assert value == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-12)  # float64 rounding


def test_only_common_cells_are_compared_and_the_others_listed(tmp_path: Path) -> None:
    before = write_evaluation(tmp_path / "before", {("emotion", "en"): 0.6, ("emotion", "de"): 0.6})
    after = write_evaluation(tmp_path / "after", {("paws", "en"): 0.6, ("emotion", "en"): 0.6})
    comparison = compare(before, after)
    assert [(row.task, row.language) for row in comparison.rows] == [("emotion", "en")]
    assert comparison.only_before == [("emotion", "de", "english")]
    assert comparison.only_after == [("paws", "en", "english")]


def test_reference_scoring_is_counted_apart(tmp_path: Path) -> None:
    """Norwegian SNLI files exchange two words, so the two scorings differ there."""
    folders = [write_evaluation(tmp_path / name, {("snli", "no"): 0.6}) for name in ("before", "after")]
    [row] = compare(*folders).rows
    assert row.before.correct == counted(folders[0], "no")
    assert row.before.correct_reference == counted(folders[0], "no", "correct_reference")
    assert row.before.correct != row.before.correct_reference


def test_label_masses_and_answers(folders: tuple[Path, Path]) -> None:
    lines = (folders[0] / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["language"] == "zh"]
    cell = next(row.before for row in compare(*folders).rows if row.language == "zh")
    gold = sum(record["prefix_mass"][record["gold_class"]] for record in records) / len(records)
    everything = sum(sum(record["prefix_mass"].values()) for record in records) / len(records)
    assert cell.mean_gold_mass == pytest.approx(gold, abs=1e-12)  # float64 rounding
    assert cell.mean_label_mass == pytest.approx(everything, abs=1e-12)
    for name in TASKS["emotion"].classes:
        assert cell.predicted[name] == sum(record["prediction"] == name for record in records)


def test_plain_text_table_is_aligned(folders: tuple[Path, Path]) -> None:
    table = plain_text_table(compare(*folders).rows)
    head, english, chinese, swahili, *means = table.splitlines()
    assert head.split() == ["emotion", "before", "correct", "after", "correct", "difference", "tuned", "on"]
    assert [line.split()[:2] for line in (english, chinese, swahili)] == [
        ["en", "English"],
        ["zh", "Chinese"],
        ["sw", "Swahili"],
    ]
    assert [line.split()[-1] for line in (english, chinese, swahili)] == ["yes", "yes", "no"]
    assert f"{counted(folders[0], 'sw')}/60" in swahili
    assert f"{counted(folders[1], 'sw')}/60" in swahili
    assert len(means) == 3
    # Right-aligned columns end where their headings end.
    end = head.index("before") + len("before")
    assert all(line[end - 1].isdigit() and line[end] == " " for line in (english, chinese, swahili, *means))


@pytest.mark.parametrize(("points", "text"), [(0.04, "0.0"), (-0.04, "0.0"), (1.25, "+1.2"), (-3.0, "−3.0")])
def test_signed_has_no_sign_on_what_rounds_to_zero(points: float, text: str) -> None:
    assert signed(points) == text


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def refused(before: Path, *afters: Path) -> str:
    """The one line that the comparison is refused with."""
    with pytest.raises(InputError) as caught:
        compare(before, *afters)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_cell_in_common_is_refused(tmp_path: Path) -> None:
    before = write_evaluation(tmp_path / "before", {("emotion", "en"): 0.6})
    after = write_evaluation(tmp_path / "after", {("paws", "sw"): 0.6})
    assert "emotion en | paws sw" in refused(before, after)


def test_a_folder_without_results_is_refused(folders: tuple[Path, Path]) -> None:
    (folders[0] / "results.json").unlink()
    assert "before: no results.json there" in refused(*folders)


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl", "logit_lens.npz", "pca.json", "pca.npz"])
def test_a_file_cut_off_is_refused_by_name(folders: tuple[Path, Path], name: str) -> None:
    write_lens(folders[1], LANGUAGES)
    write_pca(folders[1], LANGUAGES, ["en", "zh"])
    path = folders[1] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refused(*folders)


def test_half_a_probe_is_refused(folders: tuple[Path, Path]) -> None:
    write_pca(folders[1], LANGUAGES, ["en", "zh"])
    (folders[1] / "pca.npz").unlink()
    assert "pca.npz: no such file" in refused(*folders)


def test_arrays_that_contradict_their_axes_are_refused(folders: tuple[Path, Path]) -> None:
    write_pca(folders[1], LANGUAGES, ["en", "zh"])
    edit(folders[1] / "pca.json", language=["en", "zh"])
    assert "correlations is (13, 3, 3), pca.json says (13, 2, 2)" in refused(*folders)


def test_results_that_contradict_their_predictions_are_refused(folders: tuple[Path, Path]) -> None:
    cells = read_json(folders[1] / "results.json")["cells"]
    wrong = {**cells[0], "accuracy_corrected": 0.123}
    edit(folders[1] / "results.json", cells=[wrong, *cells[1:]])
    assert "accuracy_corrected" in refused(*folders)
    edit(folders[1] / "results.json", cells=[{**cells[0], "count": 61}, *cells[1:]])
    assert "61 rows of emotion, en, english" in refused(*folders)


def test_a_wrong_field_is_named(folders: tuple[Path, Path]) -> None:
    edit(folders[0] / "results.json", model=7)
    assert "field 'model': text is needed, found 7" in refused(*folders)


def test_other_task_versions_are_refused(folders: tuple[Path, Path]) -> None:
    edit(folders[0] / "results.json", task_version={"emotion": 99})
    assert "task version 99 in one and 1 in the other" in refused(*folders)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_run_with_a_file_missing_is_refused(folders: tuple[Path, Path], name: str) -> None:
    (folders[0].parent / "run" / name).unlink()
    assert name in refused(*folders)


def test_a_run_still_being_written_is_read_to_its_last_whole_row(folders: tuple[Path, Path]) -> None:
    path = folders[0].parent / "run" / "metrics.jsonl"
    whole = compare(*folders).run
    path.write_text(path.read_text() + '{"step": 201, "lo')
    assert compare(*folders).run == whole


def test_a_peft_folder_is_no_run(folders: tuple[Path, Path]) -> None:
    edit(folders[1] / "results.json", adapter="peft")
    write_json(folders[0].parent / "peft" / "adapter_config.json", {})
    assert compare(*folders).run is None


def test_variants_of_one_task_are_cells_of_their_own(tmp_path: Path) -> None:
    cells = {("emotion", "zh", "english"): 0.9, ("emotion", "zh", "irrelevant"): 0.2}
    rows = compare(*(write_evaluation(tmp_path / name, cells) for name in ("before", "after"))).rows
    assert [row.key for row in rows] == list(cells)
    assert rows[0].before.correct > rows[1].before.correct


def test_an_unknown_variant_is_refused(folders: tuple[Path, Path]) -> None:
    cells = read_json(folders[1] / "results.json")["cells"]
    edit(folders[1] / "results.json", cells=[{**cells[0], "variant": "<b>"}, *cells[1:]])
    assert "one of english, in_language, irrelevant is needed, found '<b>'" in refused(*folders)


def test_a_folder_older_than_whole_words_and_failures_is_read(folders: tuple[Path, Path]) -> None:
    document = read_json(folders[0] / "results.json")
    del document["failures"]
    for cell in document["cells"]:
        del cell["accuracy_whole_word"], cell["shared_candidates"]
    write_json(folders[0] / "results.json", document)
    comparison = compare(*folders)
    assert comparison.rows[0].before.accuracy_whole_word is None
    assert comparison.rows[0].after.accuracy_whole_word == comparison.rows[0].after.accuracy
    assert comparison.failures == []


def test_only_rows_that_all_scored_are_paired(tmp_path: Path) -> None:
    cell = {("emotion", "en"): 0.6}
    before = write_evaluation(tmp_path / "before", cell, rows=range(40))
    after = write_evaluation(tmp_path / "after", cell, rows=range(30, 50))
    [row] = compare(before, after).rows
    assert (row.rows, row.left_out) == (list(range(30, 40)), 40)
    other = write_evaluation(tmp_path / "other", cell, rows=range(50, 60))
    assert "no row of emotion, en, english in common" in refused(before, other)


def test_other_items_under_the_same_row_numbers_are_refused(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first = lines[0]
    # The item of a neighbouring row, answered as rightly.
    other = {"positive": "negative", "negative": "positive"}
    first |= {name: other[first[name]] for name in ("gold_class", "prediction")}
    first["prefix_mass"] = {other[name]: mass for name, mass in first["prefix_mass"].items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "row 0 of emotion, en, english has the gold classes negative and positive" in refused(*folders)


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


def test_runs_on_other_cells_or_given_twice_are_refused(folders: tuple[Path, Path]) -> None:
    fewer = dict(list(EMOTION.items())[:2])
    other = write_evaluation(folders[0].parent / "other", fewer, adapter="run", tuned_on=["zh", "en"])
    assert "the choice of cells is 'emotion en sw zh' in one and 'emotion en zh'" in refused(*folders, other)
    assert "given twice" in refused(*folders, folders[1])


def test_a_cell_that_failed_in_one_run_leaves_the_others(folders: tuple[Path, Path]) -> None:
    fewer = dict(list(EMOTION.items())[:2])
    failure = {"task": "emotion", "language": "sw", "variant": "english", "error": "out of memory"}
    other = write_evaluation(
        folders[0].parent / "other", fewer, adapter="run", tuned_on=["zh", "en"], failures=[failure]
    )
    comparison = compare(*folders, other)
    assert [row.language for row in comparison.rows] == ["en", "zh"]
    [(folder, failed)] = comparison.failures
    assert (folder, failed.key, failed.error) == (other, ("emotion", "sw", "english"), "out of memory")


def changed_prediction(folder: Path, **changes: object) -> None:
    """Changes fields of the third record."""
    path = folder / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[2] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_prediction_that_contradicts_its_masses_or_its_mark_is_refused(folders: tuple[Path, Path]) -> None:
    masses = {"positive": 0.2, "negative": 0.3}
    wrong = {"prefix_mass": masses, "prediction": "positive", "gold_class": "positive", "correct_corrected": True}
    changed_prediction(folders[0], **wrong)
    assert "row 2, field 'prediction': 'positive' has not the largest prefix_mass" in refused(*folders)
    changed_prediction(folders[0], prediction="negative")
    assert "row 2, field 'correct_corrected': true, but predicted is 'negative' and right is 'positive'" in (
        refused(*folders)
    )
    # Of equal masses either is the largest.
    changed_prediction(folders[0], prefix_mass={"positive": 0.3, "negative": 0.3}, correct_corrected=False)
    assert "'prediction'" not in refused(*folders)  # but the accuracy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probes_that_hold_what_is_no_number_are_refused(folders: tuple[Path, Path], value: float) -> None:
    write_pca(folders[0], LANGUAGES, ["en", "zh"])
    write_lens(folders[0], ["en", "de"])
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


def test_results_under_other_names_of_their_languages_are_the_same(folders: tuple[Path, Path]) -> None:
    write_lens(folders[0], LANGUAGES)
    write_pca(folders[0], LANGUAGES, ["en", "zh"])
    expected = compare(*folders)
    results = [folder / name for folder in folders for name in ("results.json", "predictions.jsonl")]
    for path in (*results, folders[0] / "pca.json", folders[0].parent / "run" / "run.json"):
        path.write_text(path.read_text().replace('"zh"', '"zh-CN"').replace('"en"', '"eng_Latn"'))
    lens = folders[0] / "logit_lens.json"
    lens.write_text(lens.read_text().replace('"sw"', '"Swahili"'))
    found = compare(*folders)
    assert found.rows == expected.rows and found.after.tuned_on == ["zh", "en"]
    assert found.run is not None and found.run.languages == ("zh", "en")
    probes, as_written = found.before.probes, expected.before.probes
    assert probes.pca is not None and probes.pca.languages == LANGUAGES
    assert probes.logit_lens is not None and as_written.logit_lens is not None
    for name in ("language", "rows", "surviving_rows", "unshared_surviving_rows"):
        assert probes.logit_lens.document[name] == as_written.logit_lens.document[name]
