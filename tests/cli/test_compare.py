"""`jaxalign compare`, on made-up results and on those of a tiny model."""

import json

import pytest

from tests.reporting.folders import write_evaluation, write_lens

CELLS = {("emotion", code): 0.5 for code in ("en", "zh", "sw")}
NAMES = ["compare.csv", "compare.json", "compare.md"]


@pytest.fixture
def folders(tmp_path):
    before = write_evaluation(tmp_path / "before", CELLS)
    better = dict.fromkeys(CELLS, 0.8)
    afters = [
        write_evaluation(tmp_path / f"after{seed}", better, seed=10 * seed, tuned_on=["en", "zh"]) for seed in (1, 2)
    ]
    return [before, *afters]


def written(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("compare"))


def test_it_prints_the_tables_and_writes_them_into_after(ok, folders):
    printed = ok("compare", *folders[:2])
    assert " ".join(printed.split()).startswith("emotion before after gain p Holm B-H detectable rows tuned on ")
    assert "mean over" in printed and "unseen" in printed and "** significant" in printed
    assert written(folders[1]) == NAMES and written(folders[0]) == []
    assert json.loads((folders[1] / "compare.json").read_text())["command"].startswith("jaxalign compare ")


def test_several_runs_and_a_folder_of_its_own(ok, folders, tmp_path):
    printed = ok("compare", *folders, out=tmp_path / "out")
    assert "Means over 2 runs" in printed
    assert written(tmp_path / "out") == NAMES and written(folders[1]) == []
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["after"]) == 2


def test_the_report_of_several_runs(ok, folders):
    ok("report", *folders)
    assert "2 runs of one recipe" in (folders[1] / "report.html").read_text()


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_what_cannot_be_compared_is_refused(refused, folders, tmp_path, verb):
    assert "absent: no results.json" in refused(verb, folders[0], tmp_path / "absent")
    assert "given twice" in refused(verb, folders[0], folders[1], folders[1])
    other = write_evaluation(tmp_path / "other", CELLS, tuned_on=["sw"])
    assert "what it was tuned on" in refused(verb, folders[0], folders[1], other)


def test_the_report_of_one_folder_is_of_its_probes(ok, refused, tmp_path):
    write_lens(tmp_path / "probed", ["en", "zh"], layers=3)
    ok("report", tmp_path / "probed")
    assert "zh Chinese" in (tmp_path / "probed" / "report.html").read_text()
    (tmp_path / "bare").mkdir()
    assert "bare: no probe in it" in refused("report", tmp_path / "bare")
    assert "absent: no such folder" in refused("report", tmp_path / "absent")


def test_what_evaluate_writes_is_read(ok, model_folder, run, tmp_path):
    flags = ("--config.languages=en,zh", "--config.rows=0:6", f"--config.model={model_folder}")
    before, after = tmp_path / "before", tmp_path / "after"
    ok("evaluate", *flags, out=before)
    ok("evaluate", *flags, adapter=run, out=after)
    ok("compare", before, after)
    told = json.loads((after / "compare.json").read_text())
    results = {folder: json.loads((folder / "results.json").read_text())["cells"] for folder in (before, after)}
    assert [cell["seen"] for cell in told["cells"]] == [True, True]
    for cell, was, now in zip(told["cells"], results[before], results[after], strict=True):
        for scoring in ("corrected", "reference"):
            # Exact up to rounding of float64.
            assert cell[scoring]["accuracy_before"] == pytest.approx(was[f"accuracy_{scoring}"], abs=1e-12)
            assert cell[scoring]["accuracy_after"] == pytest.approx(now[f"accuracy_{scoring}"], abs=1e-12)
