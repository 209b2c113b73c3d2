"""What is watched while a model is tuned: what the verbs find on the same rows; what cannot be is refused."""

import json

import numpy as np
import pytest

from jaxalign.files import data_folder
from tests.cli.conftest import TRAIN

ROWS = ("--config.languages=en,zh", "--config.rows=0:3")
WATCHED = ("--config.watch_languages=en,zh", "--config.watch_rows=0:3", "--config.watch_every=50")
OPEN = ("--config.tasks=mgsm", "--config.generate.max_tokens=4")


@pytest.fixture
def data(tmp_path):
    """The mini set, and math problems beside it."""
    folder = tmp_path / "data"
    math = folder / "qalign/mgsm"
    math.mkdir(parents=True)
    for part in data_folder("mini").iterdir():
        (folder / part.name).symlink_to(part)
    for name in ("English", "Chinese"):
        rows = [{"query": f"{name} {number}?", "response": str(number)} for number in range(3)]
        (math / f"mgsm_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_open_answers_attribution_and_neurons_are_those_of_the_verbs(ok, model_folder, data, tmp_path):
    """Before the first step, where the model is the base model; it is tuned on pairs of a file."""
    model, data, rate = f"--config.model={model_folder}", f"--config.data={data}", "--config.neurons.top_rate=0.05"
    ok("evaluate", model, data, *ROWS, *OPEN, f"--config.out={tmp_path}/before")
    ok("probe", model, data, *ROWS, f"--config.out={tmp_path}/before", probes="attribution,neurons")
    ok("neurons", tmp_path / "before/neuron_counts.npz", rate, f"--config.out={tmp_path}/before")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target,source_language,target_language\n" + "frage,question,de,en\n" * 4)
    watch = ("--config.watch=open_answers,attribution,neurons", rate, *WATCHED)
    once = ("--config.epochs=1", "--config.heldout=0", "--config.steps=1")
    ok("train", pairs, model, data, *OPEN, *watch, *once, f"--config.out={tmp_path}/run")
    first, *_ = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())

    cells = json.loads((tmp_path / "before/open_results.json").read_text())["open_cells"]
    expected = {f"accuracy/mgsm_{cell['language']}": cell["accuracy_corrected"] for cell in cells}
    document = json.loads((tmp_path / "before/attribution.json").read_text())
    means = np.load(tmp_path / "before/attribution.npz")["language_mass_mean"]
    for index, language in enumerate(document["language"]):
        for name, code in (("english_mass", "en"), ("own_mass", language)):
            of_layers = means[index, :, -1, document["token_language"].index(code)]
            expected[f"{name}/{language}"] = of_layers.max().item()
    selection = json.loads((tmp_path / "before/selection.json").read_text())
    expected |= {f"neurons/{language}": number for language, number in selection["neurons"].items()}
    expected |= {f"neurons_{name}": number for name, number in selection["classes"].items()}
    assert any(selection["neurons"].values())
    assert {name for name in first if "/" in name or name.startswith("neurons")} == expected.keys()
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-5)  # float32 means


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.watch=accuracy,loss",), "cannot watch 'loss'; choose accuracy, open_answers, logit_lens"),
        (("--config.watch=pca", "--config.watch_languages=zh"), "pca compares with en"),
        (("--config.watch=geometry", "--config.watch_rows=0:2"), "--config.watch_rows=0:2: geometry: at least 3 rows"),
        (("--config.watch=accuracy", "--config.tasks=mgsm"), "none is scored by labels; watch open_answers"),
        (("--config.watch=neurons", "--config.watch_languages=zh"), "neurons compares languages, and zh is one"),
        (("--config.watch=neurons", "--config.neurons.score=best"), "--config.neurons.score=best: choose code"),
        (("--config.watch=open_answers",), "open_answers watches mgsm, msvamp, translation; name one"),
    ],
)
def test_what_could_not_be_watched_is_refused(refused, flags, said):
    """Before the model is looked for."""
    assert said in refused(*TRAIN, *flags, model="nowhere")
