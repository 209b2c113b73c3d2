"""Bad input ends with one line that says what, where and what to do, exit code 2, and nothing half-written."""

import json
import shutil

import pytest

EVALUATE = ("evaluate", "--config.languages=en,de", "--config.rows=0:2")


@pytest.fixture
def refused(jaxalign, tmp_path):
    """Runs a command that must be refused; returns its one line of stderr."""

    def call(*arguments):
        out = tmp_path / "out"
        code, _, err = jaxalign(*arguments, f"--config.out={out}")
        assert code == 2, err
        assert err.count("\n") == 1 and err.startswith("jaxalign: ") and "Traceback" not in err
        left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
        assert left == []
        return err

    return call


@pytest.fixture
def data(tmp_path):
    """A copy of the mini set to spoil."""
    from jaxalign.data.folders import MINI

    return shutil.copytree(MINI, tmp_path / "data")


def spoil(data, change):
    """Rewrites the rows of the German emotion file."""
    file = data / "ap_emotion" / "emotion_de40_test.json"
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def test_truncated_json(refused, data, model_folder):
    file = data / "ap_emotion" / "emotion_de40_test.json"
    file.write_text(file.read_text()[:500])
    assert str(file) in refused(*EVALUATE, f"--config.model={model_folder}", f"--config.data={data}")


def test_missing_field(refused, data, model_folder):
    spoil(data, lambda rows: rows[1].pop("input"))
    message = refused(*EVALUATE, f"--config.model={model_folder}", f"--config.data={data}")
    assert "row 1" in message and "'input'" in message


def test_label_that_is_no_label(refused, data, model_folder):
    spoil(data, lambda rows: rows[0].update(answer="gut"))
    message = refused(*EVALUATE, f"--config.model={model_folder}", f"--config.data={data}")
    assert "row 0" in message and "gut" in message


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl", "pairs.csv", "train.de"])
def test_empty_file(refused, tmp_path, model_folder, name):
    (tmp_path / name).touch()
    (tmp_path / "train.en").touch()
    assert name in refused("train", tmp_path / name, f"--config.model={model_folder}")


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.languages=en,dee", "'de'"),
        ("--config.rows=5:2", "5:2"),
        ("--config.tasks=emotoin", "'emotion'"),
        ("--config.batchsize=2", "batch_size"),
        ("--config.optimizer.learning_rte=1", "learning_rate"),
        ("--config.batch_size=two", "whole number"),
        ("--config.dtype=float16", "bfloat16"),
        ("--config=demmo", "demo"),
        ("--languages=en", "--config.key=value"),
        ("--config.data=nowhere", "nowhere"),
        ("--config.exemplars=nowhere.json", "nowhere.json"),
    ],
)
def test_wrong_settings(refused, model_folder, flag, named):
    assert named in refused(*EVALUATE, f"--config.model={model_folder}", flag)


def test_model_that_is_none(refused, tmp_path, model_folder):
    assert "--config.model=" in refused(*EVALUATE)
    assert "nowhere" in refused(*EVALUATE, "--config.model=nowhere")
    not_gguf = tmp_path / "model.gguf"
    not_gguf.write_bytes(b"no such thing" * 10)
    assert "model.gguf" in refused(*EVALUATE, f"--config.model={not_gguf}")
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "tokenizer" in refused(*EVALUATE, f"--config.model={bare}")


def test_wrong_arguments(refused, tmp_path):
    for words in (
        ("report", tmp_path),
        ("report", tmp_path, tmp_path / "b"),
        ("export",),
        ("export", tmp_path),
        ("evaluate", "x"),
        ("data", "import", tmp_path),
        ("data", "import", tmp_path, tmp_path / "imported"),
        ("evalute",),
    ):
        refused(*words)
    assert not (tmp_path / "imported").exists()


def test_help_names_every_verb_and_key(jaxalign):
    from jaxalign.cli.main import VERBS

    code, out, _ = jaxalign("--help")
    assert code == 0 and all(verb in out for verb in VERBS)
    code, out, _ = jaxalign("train", "--help")
    assert code == 0 and "--config.lora.rank=8" in out
    code, out, _ = jaxalign("demo", "--help")
    assert "--config.model=packaged" in out


def test_debug_shows_the_traceback(jaxalign):
    from jaxalign.errors import InputError

    with pytest.raises(InputError):
        jaxalign("evaluate", "--config.nosuchkey=1", "--debug")
