import json

import numpy as np

PROBE = ("probe", "--config.languages=en,th", "--config.rows=0:3", "--config.probes=logit_lens,attribution")


def test_lens_and_attribution_leave_arrays_and_figures(ok, model_folder, tmp_path):
    ok(*PROBE, f"--config.model={model_folder}", "--config.attribution_positions=2", f"--config.out={tmp_path}")
    for probe in ("logit_lens", "attribution"):
        document = json.loads((tmp_path / f"{probe}.json").read_text())
        with np.load(tmp_path / f"{probe}.npz", allow_pickle=False) as arrays:
            assert set(arrays) == set(document["axes"])
    assert document["position"] == [-2, -1] and len(document["token_language"]) == 21
    for figure in ("logit_lens", "logit_lens_unshared", "attribution", "attribution_scripts"):
        assert (tmp_path / f"{figure}.svg").read_text().count("<svg") == 1
        assert (tmp_path / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


def test_prompts_shorter_than_the_positions_are_refused(refused, model_folder):
    only = ("--config.probes=attribution", "--config.attribution_positions=4000")
    error = refused(*PROBE, f"--config.model={model_folder}", *only)
    assert "fewer than the 4000 positions" in error
