"""Which model the files of a folder are of."""

import json
from pathlib import Path

import pytest

from jaxalign.errors import InputError
from jaxalign.reporting.models import check_of_one_model, model_documents, model_of_all

MADE = {"model": "models/tiny", "adapter": "run"}


def write(folder: Path, name: str, **document: str | None) -> None:
    (folder / f"{name}.json").write_text(json.dumps(document))


def test_spellings_of_one_path_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    absolute = {"model": str(tmp_path / "models/tiny"), "adapter": "./run/"}
    assert model_of_all(tmp_path, {"pca": MADE, "geometry": absolute}) == ("models/tiny", "run")
    with pytest.raises(InputError, match="pca is of org/name@1, geometry of org/name@2; use a folder for each"):
        model_of_all(tmp_path, {name: {"model": f"org/name@{n}"} for n, name in enumerate(("pca", "geometry"), 1)})


def test_what_is_written_anew_may_be_of_another_model_and_of_any_form(tmp_path: Path):
    write(tmp_path, "pca", model="models/other")  # as an older version wrote it: without axes
    write(tmp_path, "selection", language="de")  # of another program's counts: names no model
    assert list(model_documents(tmp_path)) == ["pca"]
    check_of_one_model(tmp_path, MADE, ["pca"])
    with pytest.raises(InputError, match="pca is of models/other, what is asked for of models/tiny with run"):
        check_of_one_model(tmp_path, MADE, ["geometry"])


def test_results_and_counts_are_of_the_model_too(tmp_path: Path):
    write(tmp_path, "results", **MADE)
    write(tmp_path, "neuron_counts", **MADE)
    check_of_one_model(tmp_path, MADE, [])
    write(tmp_path, "results", model="models/tiny", adapter=None)
    with pytest.raises(InputError, match="neuron_counts is of models/tiny with run, results of models/tiny;"):
        check_of_one_model(tmp_path, MADE, [])
