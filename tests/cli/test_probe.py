import json
from collections import Counter

import numpy as np

from jaxalign.data import tasks
from jaxalign.data.tasks import TASKS

PROBE = ("probe", "--config.languages=en,th", "--config.rows=0:3", "--config.probes=logit_lens,attribution")


def test_lens_and_attribution_leave_arrays_and_figures(ok, model_folder, tmp_path):
    ok(*PROBE, model=model_folder, attribution_positions="2", out=tmp_path)
    for probe in ("logit_lens", "attribution"):
        document = json.loads((tmp_path / f"{probe}.json").read_text())
        with np.load(tmp_path / f"{probe}.npz", allow_pickle=False) as arrays:
            assert set(arrays) == set(document["axes"])
    assert document["position"] == [-2, -1] and len(document["token_language"]) == 21
    for figure in ("logit_lens", "logit_lens_unshared", "attribution", "attribution_scripts"):
        assert (tmp_path / f"{figure}.svg").read_text().count("<svg") == 1
        assert (tmp_path / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


def test_five_probes_on_eight_languages_read_each_file_once(ok, model_folder, tmp_path, monkeypatch):
    """The map of tokens needs the files of every task and language; all else is among them."""
    reads, read = Counter(), tasks.read_task_file
    monkeypatch.setattr(tasks, "read_task_file", lambda file, *rest: reads.update([file.name]) or read(file, *rest))
    probes = "--config.probes=logit_lens,attribution,pca,geometry,neurons"
    languages = "--config.languages=en,zh,de,fr,ru,hi,th,sw"
    ok("probe", probes, languages, model=model_folder, rows="0:3", out=tmp_path)
    assert len(reads) == 20 * len(TASKS) and set(reads.values()) == {1}


def test_a_folder_holds_the_probes_of_one_model(jaxalign, ok, model_folder, adapter, tmp_path):
    command = ("probe", "--config.languages=en,th", "--config.rows=0:3", f"--config.model={model_folder}")
    ok(*command, probes="pca", out=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tuned = (*command, f"--config.adapter={adapter}", f"--config.out={tmp_path}")
    code, _, err = jaxalign(*tuned, probes="geometry")
    assert code == 2 and f"{tmp_path}: pca is of {model_folder}, what is asked for of {model_folder} with" in err
    assert err.endswith("use a folder for each\n")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    ok(*tuned, probes="pca")  # what is written anew may be of another
    assert json.loads((tmp_path / "pca.json").read_text())["adapter"] == str(adapter)
