"""`jaxalign evaluate` beyond the English answers of the whole path: variants, styles, 4 bits, open answers."""

import json

import numpy as np
import pytest

from tests.cli.conftest import TRAIN, save_model

FEW = ("--config.languages=de,th", "--config.rows=0:2")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def cells(folder):
    return [(cell["task"], cell["language"], cell["variant"], cell["prompts"]) for cell in results(folder)["cells"]]


def test_all_variants_with_mended_prompts(ok, model_folder, tmp_path):
    tasks = ("--config.tasks=paws,emotion", "--config.variants=all", "--config.prompts=mended")
    ok("evaluate", *FEW, *tasks, model=model_folder, out=tmp_path)
    assert cells(tmp_path) == [
        *(("paws", language, "english", "mended") for language in ("de", "th")),
        *(("emotion", language, "english", "mended") for language in ("de", "th")),
        *(("emotion", language, "in_language", "mended") for language in ("de", "th")),
        *(("emotion", language, "irrelevant", "mended") for language in ("de", "th")),
    ]
    assert all(np.isfinite(list(record["whole_word"].values())).all() for record in records(tmp_path))
    assert "| task | language | where | study | mended |" in (tmp_path / "mended_prompts.md").read_text()


def test_labels_that_share_candidates_are_told(ok, model_folder, tmp_path):
    english = ok("evaluate", *FEW, model=model_folder, out=tmp_path / "english")
    assert "share candidate" not in english
    # One token a byte: both German words begin with letters of their own, both Japanese ones with the same byte.
    flags = ("--config.languages=de,ja", "--config.rows=0:2", "--config.variants=in_language")
    out = ok("evaluate", *flags, model=model_folder, out=tmp_path / "own")
    german, japanese = out.splitlines()[:2]
    assert "share candidate" not in german and "positive and negative share candidate tokens" in japanese
    assert [len(cell["shared_candidates"]) for cell in results(tmp_path / "own")["cells"]] == [0, 1]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """A model whose projections take whole blocks of 64 inputs."""
    return save_model(tmp_path_factory.mktemp("wide"), width=64, mlp=128)


@pytest.mark.slow
def test_four_bits_with_an_adapter_and_without(ok, refused, wide_model, model_folder, tmp_path):
    model, nf4 = f"--config.model={wide_model}", "--config.param_dtype=nf4"
    run = tmp_path / "run"
    ok(*TRAIN, model, steps="2", out=run)
    masses = {}
    for name, flags in {
        "float32": (),
        "nf4": (nf4,),
        "tuned": (nf4, f"--config.adapter={run}"),
        "float16": (nf4, "--config.dtype=float16"),
    }.items():
        ok("evaluate", model, *FEW, *flags, out=tmp_path / name)
        masses[name] = np.array([list(record["prefix_mass"].values()) for record in records(tmp_path / name)])
    assert results(tmp_path / "tuned")["param_dtype"] == "nf4"
    assert 1e-6 < np.abs(masses["nf4"] - masses["float32"]).max() < 0.1
    assert np.abs(masses["tuned"] - masses["nf4"]).max() > 1e-6
    # Half-precision arithmetic, eleven bits, on nearly the same quantised weights.
    np.testing.assert_allclose(masses["float16"], masses["nf4"], atol=2e-3)
    ok("probe", model, nf4, languages="en,zh", rows="0:3", out=tmp_path / "probes")
    assert "no multiple" in refused("evaluate", *FEW, nf4, model=model_folder)


def test_label_tasks_and_open_tasks_together(ok, model_folder, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target,source_language,target_language\nWo?,Where?,de,en\nไหน?,Where?,th,en\n")
    tasks = ("--config.tasks=emotion,translation", f"--config.pairs={pairs}", "--config.generate.max_tokens=3")
    out = ok("evaluate", *FEW, *tasks, model=model_folder, out=tmp_path / "out")
    assert len(results(tmp_path / "out")["cells"]) == 2
    document = json.loads((tmp_path / "out" / "open_results.json").read_text())
    assert [(cell["language"], cell["target"], cell["count"]) for cell in document["open_cells"]] == [
        ("de", "en", 1),
        ("th", "en", 1),
    ]
    assert "translation de→en chrF" in " ".join(out.split())
