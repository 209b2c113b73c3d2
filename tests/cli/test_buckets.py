"""`gs://` on the command line: a run there is trained, exported and evaluated; results are refused a place there."""

import pytest

from jaxalign import files
from jaxalign.configuration import load_config
from jaxalign.errors import InputError
from jaxalign.verbs.train import stage_configs
from tests.cli.conftest import TRAIN
from tests.fake_storage import ABSENT
from tests.reporting.folders import write_evaluation


def test_a_run_in_a_bucket_is_exported_and_evaluated(ok, model_folder, adapter, run, storage, tmp_path, monkeypatch):
    remote = "gs://bucket/test_cli/run"
    monkeypatch.chdir(tmp_path)
    ok(*TRAIN, model=model_folder, out=remote)
    written = files.read_json(files.path_of(remote) / "run.json")
    assert written["languages"] == files.read_json(run / "run.json")["languages"]
    ok("export", remote, out="adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (adapter / name).read_bytes()
    common = (f"--config.model={model_folder}", "--config.tasks=paws", "--config.languages=en", "--config.rows=0:4")
    for out, tuned in (("ours", run), ("theirs", remote)):
        ok("evaluate", *common, adapter=tuned, out=out)
    ours, theirs = ((tmp_path / out / "predictions.jsonl").read_text() for out in ("ours", "theirs"))
    assert ours == theirs
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--config.languages=en", "--config.rows=0:2"),
        ("probe", "--config.languages=en", "--config.rows=0:2"),
        ("data", "build", "--config.tasks=paws"),
        ("plan", "--config.topology=v5e:2x2"),
        ("demo",),
        ("report", "before", "before"),
        ("compare", "before", "before"),
    ],
)
def test_results_are_refused_a_bucket(jaxalign, model_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "before", {("emotion", "en"): 0.6})
    code, _, err = jaxalign(*command, model=model_folder, out="gs://bucket/results")
    assert code == 2 and err.count("\n") == 1
    assert "gs://bucket/results: only training runs are written to gs://" in err
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_what_is_no_run_in_a_bucket_is_refused(refused, model_folder, storage):
    evaluate = ("evaluate", f"--config.model={model_folder}", "--config.languages=en", "--config.rows=0:2")
    for verb in (("export", "gs://bucket/nowhere"), (*evaluate, "--config.adapter=gs://bucket/nowhere")):
        said = refused(*verb)
        assert "gs://bucket/nowhere: no" in said and "no checkpoints/ in it" in said


def test_a_bucket_that_is_not_there_is_noticed_first(jaxalign, tmp_path, storage):
    # Nor is the model, which would be looked for next.
    said = jaxalign(*TRAIN, f"--config.out=gs://{ABSENT}/run", model=tmp_path / "none")
    assert said[0] == 2 and said[2] == f"jaxalign: gs://{ABSENT}: no such bucket, or none that this account may " + (
        "list; create it first\n"
    )


def test_stages_in_a_bucket(storage):
    config = load_config("base")
    config.update(out="gs://bucket/stages", stages=({}, {}))
    first, second = stage_configs(config)
    assert (first.out, second.out) == ("gs://bucket/stages/stage1", "gs://bucket/stages/stage2")
    assert second.adapter == first.out


def test_without_the_packages_the_error_names_them(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'jaxalign\[gs\]'"):
        files.path_of("gs://bucket/run")
