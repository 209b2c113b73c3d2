"""`jaxalign neurons`: files of counts, good and bad."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxalign.configuration import config_from_flags
from jaxalign.verbs.probe import neurons_to_change

COUNTS = {
    "languages": np.array(["en", "de", "zh"]),
    "active": np.arange(3 * 2 * 40, dtype=np.int32).reshape(3, 2, 40) % 7,
    "tokens": np.array([9, 8, 7]),
    "prefix_active": np.ones((3, 2, 40), np.int32),
    "prefix_tokens": np.array([2, 1, 1]),
}


def write(folder: Path, **changes: np.ndarray | None) -> Path:
    """A file of COUNTS, some arrays changed or (None) left out."""
    arrays: dict[str, Any] = {name: array for name, array in {**COUNTS, **changes}.items() if array is not None}
    np.savez(folder / "counts.npz", **arrays)
    return folder / "counts.npz"


def test_files_of_a_selection(ok, tmp_path):
    out = ok("neurons", write(tmp_path), f"--config.out={tmp_path / 'out'}", "--config.neurons.top_rate=0.25")
    document = json.loads((tmp_path / "out/selection.json").read_text())
    assert document["language"] == ["en", "de", "zh"] and document["tokens"] == {"en": 7, "de": 7, "zh": 6}
    assert document["selected"] == sum(document["histogram"]) == 20 and document["top_rate"] == 0.25
    assert f"lambda {document['lambda_star']}" in out
    with np.load(tmp_path / "out/selection.npz") as own:
        assert {code: len(own[code]) for code in own} == document["neurons"]
    with np.load(tmp_path / "out/general_neurons.npz") as of_all:
        assert list(of_all) == ["general"]
        assert len(of_all["general"]) == sum(document["general_of_all_neurons_per_layer"])


def test_a_prefix_need_not_be_there(ok, tmp_path):
    file = write(tmp_path, prefix_active=None, prefix_tokens=None)
    ok("neurons", file, f"--config.out={tmp_path / 'out'}", "--config.neurons.top_rate=0.25")
    assert json.loads((tmp_path / "out/selection.json").read_text())["tokens"] == {"en": 9, "de": 8, "zh": 7}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"active": None}, "no array 'active'"),
        ({"languages": np.array(["en", "de", "file"])}, "'file'"),
        ({"languages": np.array(["en", "de", "en"])}, "each once"),
        ({"languages": np.array(["en", "de"])}, "active is (3, 2, 40)"),
        ({"active": np.zeros((3, 2, 40))}, "active is float64"),
        ({"active": np.full((3, 2, 40), -1)}, "active of en reaches from -1"),
        ({"prefix_active": np.ones((3, 2, 39), np.int32)}, "prefix_active is (3, 2, 39)"),
        ({"prefix_active": np.full((3, 2, 40), 2)}, "prefix_active of de reaches from 2"),
        ({"prefix_tokens": np.array([2, 8, 1])}, "no tokens of de"),
        ({"active": np.array([{}, {}, {}])}, "pickled"),
    ],
)
def test_what_cannot_be_counts(refused, tmp_path, changes, named):
    message = refused("neurons", write(tmp_path, **changes))
    assert "counts.npz" in message and named in message


@pytest.mark.parametrize(("cut", "named"), [(True, "not a whole"), (False, "no such file")])
def test_what_is_no_npz_file(refused, tmp_path, cut: bool, named: str):
    file = write(tmp_path)
    content = file.read_bytes()
    file.unlink()
    if cut:
        file.write_bytes(content[:2000])
    message = refused("neurons", file)
    assert "counts.npz" in message and named in message


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.neurons.score=papper", "papper"),
        ("--config.neurons.top_rate=0", "top_rate"),
        ("--config.neurons.top_rate=0.001", "none of 80"),
    ],
)
def test_wrong_settings(refused, tmp_path, flag, named):
    assert named in refused("neurons", write(tmp_path), flag)


def test_one_file_is_needed(refused, tmp_path):
    assert "one argument" in refused("neurons")
    assert "one argument" in refused("neurons", write(tmp_path), write(tmp_path))


def test_a_selection_names_the_model_of_its_counts(ok, tmp_path):
    counts, selection = write(tmp_path), tmp_path / "selection.json"
    flags = (f"--config.out={tmp_path}", "--config.neurons.top_rate=0.25")
    ok("neurons", counts, *flags)
    assert "model" not in json.loads(selection.read_text())
    (tmp_path / "counts.json").write_text(json.dumps({"model": "org/name@1", "adapter": "run", "task": "emotion"}))
    ok("neurons", counts, *flags)
    document = json.loads(selection.read_text())
    assert (document["model"], document["adapter"]) == ("org/name@1", "run")


def test_masks_are_nested(tmp_path):
    related = {"en": [[0, 1], [0, 3]], "de": [[0, 1], [1, 2]], "zh": [[1, 5]]}
    arrays: dict[str, Any] = {code: np.array(pairs) for code, pairs in related.items()}
    np.savez(tmp_path / "selection.npz", **arrays)
    np.savez(tmp_path / "general_neurons.npz", allow_pickle=False, general=np.array([[0, 0], [1, 9]]))
    expected = {
        "specific": {"en": [[0, 3]], "de": [[1, 2]], "zh": [[1, 5]]},
        "related": related,
        "general": {
            "en": [[0, 0], [0, 1], [0, 3], [1, 9]],
            "de": [[0, 0], [0, 1], [1, 2], [1, 9]],
            "zh": [[0, 0], [1, 5], [1, 9]],
        },
    }
    for masked, pairs in expected.items():
        flags = ("languages=en,de,zh", f"neurons.masked={masked}", f"neurons.selection={tmp_path / 'selection.npz'}")
        config = config_from_flags([f"--config.{flag}" for flag in flags], "base")
        own = neurons_to_change(config, ["en", "de", "zh"])
        assert {code: found.tolist() for code, found in own.items()} == pairs


CELLS = ("--config.languages=en,de", "--config.rows=0:2")


@pytest.fixture(scope="module")
def probed(ok, model_folder, tmp_path_factory) -> Path:
    """Counts, selection and masking of a tiny model on the mini set, as a user makes them."""
    folder = tmp_path_factory.mktemp("neurons")
    probe = ("probe", f"--config.model={model_folder}", *CELLS, f"--config.out={folder}")
    ok(*probe, "--config.probes=neurons")
    ok("neurons", folder / "neuron_counts.npz", f"--config.out={folder}", "--config.neurons.top_rate=0.5")
    ok(*probe, "--config.probes=masking,masked_accuracy", f"--config.neurons.selection={folder / 'selection.npz'}")
    return folder


def test_counts_selection_and_masking(probed):
    selection, masking = (json.loads((probed / f"{name}.json").read_text()) for name in ("selection", "masking"))
    assert (probed / "masking.svg").read_text().count("<svg") == 1
    assert selection["model"] == masking["model"] and selection["adapter"] == ""
    assert selection["selected"] == 24 and selection["language"] == masking["language"] == ["en", "de"]
    assert masking["neurons"] == selection["neurons"] and sum(selection["neurons"].values()) > 0
    with np.load(probed / "masking.npz") as arrays:
        assert set(arrays) == set(masking["axes"])
        assert arrays["log_perplexity_change"].shape == (3, 2, 2, 3) and np.isfinite(arrays["perplexity"]).all()


def test_accuracy_without_a_mask_is_that_of_evaluate(ok, probed, model_folder, tmp_path):
    document = json.loads((probed / "masked_accuracy.json").read_text())
    with np.load(probed / "masked_accuracy.npz") as stored:
        arrays = dict(stored)
    assert set(arrays) == set(document["axes"]) and arrays["right"].shape == (5, 2, 2)
    np.testing.assert_allclose(
        arrays["accuracy_change"][0, ..., 0], arrays["accuracy"][1:3] - arrays["accuracy"][0], atol=1e-12
    )
    ok("evaluate", f"--config.model={model_folder}", *CELLS, f"--config.out={tmp_path}")
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert arrays["accuracy"][0].tolist() == [cell["accuracy_corrected"] for cell in cells]


@pytest.mark.parametrize(
    ("own", "flag", "named"),
    [
        ({"en": [[0, 1]]}, "", "no neurons of de"),
        ({"en": [[0, 1]], "de": [0, 1]}, "", "de is int64 (2,)"),
        ({"en": [[0, 24]], "de": [[0, 1]]}, "", "index 24, the model has 2 layers of 24"),
        ({"en": [[0, 1]], "de": [[0, 1]]}, "--config.neurons.masked=all", "specific, related or general"),
        ({"en": [[0, 1]], "de": [[0, 1]]}, "--config.neurons.masked=general", "general_neurons.npz: no such file"),
    ],
)
def test_what_cannot_be_masked(refused, model_folder, tmp_path, own, flag, named):
    arrays: dict[str, Any] = {code: np.array(pairs) for code, pairs in own.items()}
    np.savez(tmp_path / "selection.npz", **arrays)
    chosen = ("--config.probes=masking", f"--config.neurons.selection={tmp_path / 'selection.npz'}")
    message = refused("probe", f"--config.model={model_folder}", *CELLS, *chosen, flag or "--config.seed=1")
    assert named in message


@pytest.mark.parametrize(
    ("probe", "model", "flag", "named"),
    [
        ("masked_accuracy", "", "--config.param_dtype=nf4", "param_dtype=nf4"),
        ("masking", "org/other", "--config.seed=1", "neurons of org/other, the model is"),
    ],
)
def test_what_cannot_be_masked_in_this_model(refused, model_folder, tmp_path, probe, model, flag, named):
    """Quantised weights; and a selection of another model's counts."""
    np.savez(tmp_path / "selection.npz", en=np.array([[0, 1]]), de=np.array([[0, 1]]))
    if model:
        (tmp_path / "selection.json").write_text(json.dumps({"model": model, "adapter": ""}))
    chosen = (f"--config.probes={probe}", f"--config.neurons.selection={tmp_path / 'selection.npz'}")
    assert named in refused("probe", f"--config.model={model_folder}", *CELLS, *chosen, flag)
