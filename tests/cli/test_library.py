"""`import jaxalign as ja`: the verbs from Python, on a tiny model and the mini set."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxalign as ja
from jaxalign.configuration import config_with
from jaxalign.data.pairs import QuestionPair
from jaxalign.errors import InputError
from jaxalign.training import loop
from jaxalign.verbs.evaluate import heldout_pairs
from tests.cli.conftest import save_model
from tests.two_processes import end_of, start_two

HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "torch", "peft"),
    *("transformers", "tokenizers", "huggingface_hub", "datasets", "matplotlib", "numpy", "scipy", "gguf", "sacrebleu"),
}
"""What is loaded when it is used."""
CELLS: dict[str, Any] = {"tasks": "emotion", "languages": "en,de,zh", "rows": "0:6"}
TUNING: dict[str, Any] = {"steps": 3, "optimizer": {"learning_rate": 1e-2}, "batch": {"length": 64}}
PAIRS = [QuestionPair(f"Frage {number}, bitte übersetzen", f"question {number}", "de", "en") for number in range(20)]


@pytest.fixture(scope="module")
def base(model_folder: Path) -> ja.LoadedModel:
    return ja.load(model_folder)


@pytest.fixture(scope="module")
def folder(base: ja.LoadedModel, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """before/, run/ and after/."""
    folder = tmp_path_factory.mktemp("library")
    ja.evaluate(base, folder / "before", **CELLS)
    ja.train(base, PAIRS, folder / "run", **TUNING)
    ja.evaluate(ja.load(model_folder, adapter=folder / "run"), folder / "after", **CELLS)
    return folder


@pytest.mark.parametrize(
    "code", ["import jaxalign", "from jaxalign.cli import main; sys.argv = ['jaxalign', '--help']; main()"]
)
def test_import_loads_nothing_heavy(code: str):
    """Neither does the command line before it knows its verb; jax alone takes a second."""
    code = f"import sys; {code}; print({HEAVY!r} & {{name.partition('.')[0] for name in sys.modules}})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_the_demo_returns_its_report(model_folder, tmp_path):
    report = ja.demo(tmp_path, model=str(model_folder), languages="en,zh", rows="0:12", steps=1)
    assert report == tmp_path / "report.html" and "Chinese" in report.read_text()


def test_the_demo_starts_from_its_own_config(tmp_path):
    with pytest.raises(InputError, match="lenguages: no such key"):
        ja.demo(tmp_path / "out", lenguages="en")
    assert config_with({"steps": 5}, "demo").build.sources == "zh,de" and config_with({}).epochs == 3


def test_what_is_written_is_what_the_verb_writes(ok, model_folder, folder, tmp_path):
    flags = [f"--config.{key}={value}" for key, value in CELLS.items()]
    ok("evaluate", f"--config.model={model_folder}", *flags, f"--config.out={tmp_path}")
    assert (tmp_path / "predictions.jsonl").read_bytes() == (folder / "before" / "predictions.jsonl").read_bytes()


def test_a_run_is_returned_as_it_was_recorded(base, folder):
    assert json.loads((folder / "run" / "run.json").read_text())["steps"] == 3
    again = ja.train(base, iter(PAIRS), folder / "run", **TUNING)
    assert [step for step, _ in again.training] == [1, 3] and set(again.languages) == {"de", "en"}


def test_pairs_from_python_are_recorded_as_such(base, folder):
    document = json.loads((folder / "run" / "run.json").read_text())
    assert (document["records"], document["files"]) == (len(PAIRS), [])
    with pytest.raises(InputError, match=f"{len(PAIRS)} of its pairs were given from Python"):
        heldout_pairs(folder / "run", base.model.tokenizer)


def test_pairs_from_python_are_read_as_those_of_files_are(base, tmp_path):
    """A record, or a row with the fields of a file's."""
    rows = [
        *PAIRS[:18],
        {"source": "Wo?", "target": "Where?\r", "source_language": "de", "target_language": "en", "answer": "", "x": 1},
        {"question": "How many?", "answer": "2"},
    ]
    run = ja.train(base, rows, tmp_path / "run", **TUNING)
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["records"] == 20 and set(run.languages) == {"de", "en"}
    refused: list[tuple[Any, str]] = [
        (QuestionPair("x", "\u200b", "de", "en"), "pairs, item 1, field 'response': no visible character"),
        (QuestionPair("x\ud800", "y", "de", "en"), "pairs, item 1, field 'prompt': '\\ud800' is half a character"),
        (QuestionPair("x", "y", "de", "xx"), "pairs, item 1, field 'target_language': unknown language 'xx'"),
        (
            {"question": "Wo?", "answer": "2", "source_language": "de"},
            "item 1: question and answer are read as en into en, an English question",
        ),
        (("x", "y"), 'pairs, item 1: an object is needed, found ["x", "y"]'),
    ]
    for bad, message in refused:
        with pytest.raises(InputError) as error:
            ja.train(base, [PAIRS[0], bad], tmp_path / "bad", **TUNING)
        assert message in str(error.value) and not (tmp_path / "bad").exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_a_list_of_one(base, folder, tmp_path, kind):
    with pytest.raises(InputError, match=r"pairs\.jsonl: no such file"):
        ja.train(base, kind(tmp_path / "pairs.jsonl"), tmp_path / "run", **TUNING)
    with pytest.raises(InputError, match="absent"):
        ja.export(folder / "run", tmp_path / "export", kind(tmp_path / "absent"))


def test_before_and_after_compare(folder):
    gains = ja.compare(folder / "before", folder / "after")
    assert [cell.language for cell in gains.cells] == ["en", "de", "zh"]
    page = ja.report(folder / "before", folder / "after", out=folder / "report.html")
    assert "Chinese" in page.read_text()


def test_an_export_s_card_shows_the_evaluations(folder, tmp_path):
    out = ja.export(folder / "run", tmp_path / "adapter", [folder / "before", folder / "after"])
    card = (out / "README.md").read_text()
    assert (out / "adapter_model.safetensors").is_file() and "Not evaluated" not in card
    assert f"given from Python: {len(PAIRS)} pairs" in card and "built from" not in card


def test_probes_come_back_as_arrays(base, tmp_path):
    probes = ja.probe(base, tmp_path, probes="pca", languages="en,de", rows="0:4")
    assert list(probes) == ["pca"] and probes["pca"].languages == ["en", "de"]
    assert np.isfinite(probes["pca"].arrays["correlations"]).all()
    assert "variance on two components" in ja.report(tmp_path, out=tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lenguages": "en"}, "lenguages: no such key; did you mean config.languages"),
        ({"batch": {"length": "long"}}, "batch.length = 'long': int is needed"),
        ({"dtype": "bfloat16"}, "dtype is a setting of ja.load"),
    ],
)
def test_wrong_settings_are_refused(base, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        ja.evaluate(base, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_tuned_on_the_base_as_it_is_stored(tmp_path, monkeypatch):
    """As `jaxalign train` does, which quantises each leaf as it is read."""
    model = save_model(tmp_path / "model", width=64)
    seen: list[Any] = []
    real = loop.run_training
    monkeypatch.setattr(
        loop, "run_training", lambda decoder, params, *a, **k: (seen.append(params), real(decoder, params, *a, **k))
    )
    ja.train(ja.load(model, param_dtype="int8"), PAIRS, tmp_path / "run", **TUNING)
    assert seen[0]["layers"]["self_attn"]["q_proj"]["codes"].dtype.name == "int8"


def test_several_tunings_in_one_call_are_refused(base, tmp_path):
    with pytest.raises(InputError, match=r"stages: ja\.train tunes once"):
        ja.train(base, PAIRS, tmp_path / "run", stages=({"epochs": 1}, {"epochs": 2}))
    assert not (tmp_path / "run").exists()


def test_open_answers_come_back_too(base, tmp_path):
    """Of pairs that training read, too."""
    languages = {"source_language": "de", "target_language": "en"}
    rows = [{"source": pair.prompt, "target": pair.response, **languages} for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ja.train(base, [tmp_path / "pairs.jsonl"], tmp_path / "run", steps=1, batch={"length": 128})
    assert run.document["pairs"] > 0
    chosen: dict[str, Any] = {"tasks": "translation", "pairs": str(tmp_path / "pairs.jsonl"), "languages": "de"}
    found = ja.evaluate(base, tmp_path / "out", **chosen, rows="0:2", generate={"max_tokens": 2})
    assert found.labels is None and found.open_answers is not None
    assert len(found.open_answers["open_cells"]) == 1


TOGETHER = """
import json
import sys
import time
from pathlib import Path

import jax

import jaxalign as ja
from jaxalign.evaluation import grid

model, out, pairs, cells = json.loads(sys.argv[1])
out, base = Path(out), ja.load(model)
if jax.process_index() == 0:
    write = grid.write_json
    grid.write_json = lambda *content: (time.sleep(1), write(*content))  # the other process gets ahead
evaluation = ja.evaluate(base, out / "results", **cells)
run = ja.train(base, [pairs], out / "run", steps=2, heldout=0.0, batch={"length": 64})
tuned = ja.evaluate(ja.load(model, adapter=out / "run"), out / "tuned", **cells)
probe = ja.probe(base, out / "probes", **cells, probes="pca")["pca"]
right = [cell.accuracy for each in (evaluation, tuned) for cell in each.labels.cells.values()]
told = [right, run.training, probe.arrays["points"].tolist()]
(out / f"{jax.process_index()}.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_every_one_of_several_processes_gets_what_was_written(model_folder, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target,source_language,target_language\n" + "Frage,question,de,en\n" * 16)
    codes, said = end_of(start_two("-c", TOGETHER, json.dumps([str(model_folder), str(tmp_path), str(pairs), CELLS])))
    assert codes == [0, 0], said
    one, other = ((tmp_path / f"{process}.json").read_text() for process in (0, 1))
    assert one == other and len(json.loads(one)[0]) == 6
