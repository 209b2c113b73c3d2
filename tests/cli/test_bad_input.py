"""Bad settings and arguments: one line that says what, where and what to do, exit code 2, and nothing half-written."""

import json
import shutil
import subprocess
import sys

import pytest

from jaxalign.configuration import config_with
from jaxalign.errors import InputError

EVALUATE = ("evaluate", "--config.languages=en,de", "--config.rows=0:2")
PROBE = ("probe", "--config.languages=en,de", "--config.rows=0:4")
TRAIN = ("train", "--config.tasks=paws", "--config.build.sources=de", "--config.steps=2")


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.languages=en,dee", "unknown language 'dee'; known: en zh"),
        ("--config.languages=en,en", "en"),
        ("--config.rows=5:2", "5:2"),
        ("--config.rows=5000:6000", "5000:6000"),
        ("--config.tasks=emotoin", "'emotion'"),
        ("--config.tasks=emotion,emotion", "emotion,emotion"),
        ("--config.batchsize=2", "batch_size"),
        ("--config.optimizer.learning_rte=1", "learning_rate"),
        ("--config.batch_size=two", "whole number"),
        ("--config.batch_tokens=0", "batch_tokens"),
        ("--config.variants=irelevant", "irrelevant"),
        ("--config.prompts=fixed", "mended"),
        ("--config.dtype=float8", "bfloat16"),
        ("--config.param_dtype=int4", "param_dtype"),
        ("--config.mesh.tensor=7", "mesh"),  # of eight devices
        ("--config.mesh.tensor=2", "mesh"),  # a vocabulary of 257
        ("--config.mesh.data=0", "mesh"),
        ("--config=demmo", "demo"),
        ("--languages=en", "--config.key=value"),
        ("--config.data=nowhere", "nowhere"),
        ("--config.exemplars=nowhere.json", "nowhere.json"),
    ],
)
def test_wrong_settings(refused, model_folder, flag, named):
    assert named in refused(*EVALUATE, f"--config.model={model_folder}", flag)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.probes=foo", "'foo'"),
        ("--config.probes=", "probes"),
        ("--config.attribution_positions=0", "attribution_positions=0"),
        ("--config.tasks=snli", "emotion"),
        ("--config.rows=0:1", "rows"),
        ("--config.batch_size=0", "batch_size"),
        ("--config.probes=masking", "--config.neurons.selection"),
        ("--config.probes=transplant", "--config.neurons.selection"),
        ("--config.capture.position=first", "query_mean"),
        ("--config.capture.layers=0,x", "layers 0,x"),
    ],
)
def test_wrong_probe_settings(refused, model_folder, flag, named):
    assert named in refused(*PROBE, f"--config.model={model_folder}", flag)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.capture.layers=0,3", "layer 3: the model has 0 (the embeddings) to 2"),
        ("--config.capture.position=5000", "no position 5000"),
        ("--config.languages=de,zh", "compared with en"),
        ("--config.rows=0:2", "geometry: at least 3 rows"),
    ],
)
def test_what_geometry_cannot_compare(refused, model_folder, flag, named):
    assert named in refused(*PROBE, "--config.probes=geometry", f"--config.model={model_folder}", flag)


@pytest.mark.parametrize(
    "flag",
    [
        "--config.param_dtype=nf4",
        "--config.remat=foo",
        "--config.lora.rank=0",
        "--config.lora.targets=nothing_proj",
        "--config.lora.targets=",
        "--config.batch.accumulation=0",
        "--config.batch.length=0",
        "--config.batch.too_long=foo",
        "--config.batch.pairs_per_step=0",
        "--config.batch.pairs_per_step=-1",
        "--config.steps=-1",
        "--config.seed=-1",
        "--config.heldout=-0.1",
        "--config.heldout=1.0",
        "--config.heldout=nan",
        "--config.optimizer.learning_rate=abc",
        "--config.optimizer.learning_rate=-1",
        "--config.optimizer.learning_rate=nan",
        "--config.optimizer.warmup_fraction=2",
        "--config.template=foo",
        "--config.loss.reduction=foo",
        "--config.loss.chunk=0",
        "--config.log_every=0",
        "--config.heldout_every=0",
        "--config.checkpoint_every=0",
        "--config.watch_every=0",
        "--config.keep_last=0",
        "--config.keep_best=-1",
        "--config.seed=9223372036854775808",
        "--config.epochs=1000000000000",
        "--config.batch.rows_at_once=-1",
        "--config.batch.rows_at_once=1000000000",
        "--config.optimizer.weight_decay=-0.1",
        "--config.optimizer.b1=1.5",
        "--config.optimizer.b2=-1",
        "--config.optimizer.eps=-1",
        "--config.optimizer.eps=1e-60",
        "--config.optimizer.b1=0.9999999999",
        "--config.optimizer.learning_rate=1e300",
        "--config.optimizer.learning_rate=1e400",
        "--config.lora.alpha=1e300",
        "--config.optimizer.clip_norm=inf",
        "--config.lora.alpha=inf",
        "--config.lora.alpha=nan",
    ],
)
def test_wrong_training_settings(refused, model_folder, flag):
    key = flag.partition("=")[0].rpartition(".")[2]
    assert key in refused(*TRAIN, f"--config.model={model_folder}", flag)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.build.sources=xx", "'xx'"),
        ("--config.build.sources=en", "sources"),
        ("--config.build.target=xx", "'xx'"),
        ("--config.build.control=foo", "control"),
        ("--config.build.instruction=foo", "instruction"),
        ("--config.rows=5000:6000", "5000:6000"),
        ("--config.mesh.tensor=7", "mesh"),
    ],
)
def test_wrong_settings_of_the_pairs_and_the_mesh(refused, model_folder, flag, named):
    assert named in refused(*TRAIN, f"--config.model={model_folder}", flag)


def test_whole_numbers_have_a_range_at_every_door(refused, tmp_path, model_folder):
    """On the command line, in a config file and in its stages, and from Python, for every verb."""
    said = refused("data", "build", "--config.tasks=paws", "--config.build.control=mispaired", "--config.seed=-1")
    assert "--config.seed=-1: set it to 0 or more" in said
    for lines, named in (
        (f"c.seed = {2**63}", "seed=9223372036854775808: set it to"),
        ("c.stages = ({'seed': -1}, {})", "stage 1: seed=-1: set it to 0 or more"),
        ("c.optimizer.b1 = float('nan')", "optimizer.b1=nan: a finite number"),
        ("c.epochs = 2**31", "epochs=2147483648: set it to 2147483647 or less"),
    ):
        file = tmp_path / "mine.py"
        file.write_text(
            "from jaxalign.configuration import load_config\n\n\n"
            f"def get_config():\n    c = load_config('base')\n    {lines}\n    return c\n"
        )
        said = refused(*TRAIN, f"--config.model={model_folder}", f"--config={file}")
        assert str(file) in said and named in said
    with pytest.raises(InputError, match=r"batch_size=0: set it to 1 or more"):
        config_with({"batch_size": 0})
    with pytest.raises(InputError, match=r"optimizer\.learning_rate=inf: a finite number"):
        config_with({"optimizer": {"learning_rate": 10**400}})


def test_memory_that_runs_out_is_no_fault_of_ours(refused, model_folder, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 7 EiB")

    monkeypatch.setattr("jaxalign.cli.train.fit_pairs", fail)
    said = refused(*TRAIN, f"--config.model={model_folder}")
    assert "memory ran out (Unable to allocate 7 EiB)" in said and "--config.batch.rows_at_once" in said


def test_pairs_longer_than_the_model_s_context(refused, jaxalign, model_folder, tmp_path):
    """Refused as evaluation refuses such prompts; by the setting that the line names they are dropped or cut."""
    model, file = tmp_path / "model", tmp_path / "pairs.jsonl"
    shutil.copytree(model_folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 200}))
    lengths = [3, 150, 5, 150, 4, 5]
    rows = [{"source": "ä" * n, "target": "a" * n, "source_language": "de", "target_language": "en"} for n in lengths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("train", file, f"--config.model={model}", "--config.steps=1", "--config.heldout=0")
    said = refused(*command)
    assert "2 pairs take more positions than the model's 200, first pair 1" in said
    code, _, err = jaxalign(*command, "--config.batch.length=200", f"--config.out={tmp_path / 'short'}")
    assert code == 0 and "2 too long and dropped" in err


@pytest.mark.parametrize("verb", [EVALUATE, PROBE, TRAIN])
def test_a_place_that_cannot_be_written_is_noticed_before_the_model_is_looked_for(jaxalign, tmp_path, verb):
    (tmp_path / "file").write_text("")
    code, _, err = jaxalign(*verb, f"--config.model={tmp_path / 'none'}", f"--config.out={tmp_path / 'file' / 'out'}")
    assert code == 2 and "nothing can be written there" in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", [EVALUATE, PROBE, TRAIN])
def test_a_folder_at_work_is_refused_before_the_model_is_looked_for(jaxalign, tmp_path, verb):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from jaxalign.holding import held\n"
            "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        code, _, err = jaxalign(*verb, f"--config.model={tmp_path / 'none'}", f"--config.out={tmp_path}")
    finally:
        holder.kill()
        holder.wait()
    assert code == 2 and f"process {holder.pid} on " in err and "is at work there" in err and err.count("\n") == 1


def test_a_run_of_no_steps(refused, model_folder):
    flags = ("--config.steps=0", "--config.epochs=0")
    assert "epochs" in refused(*TRAIN, f"--config.model={model_folder}", *flags)
    assert "epochs" in refused(*TRAIN, f"--config.model={model_folder}", "--config.steps=0", "--config.epochs=-1")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("c = load_config('base')\n    c.langauges = 'de'\n    return c", "languages"),
        ("c = load_config('base')\n    c.lora.rnak = 4\n    return c", "lora.rank"),
        ("c = load_config('base')\n    c.seed = 'seven'\n    return c", "seed"),
        ("c = load_config('base')\n    c.lora = 8\n    return c", "lora"),
        ("c = load_config('base'", "SyntaxError"),
        ("c = load_config('bsae')\n    return c", "bsae"),
        ("return load_config('base').to_dict()", "ConfigDict"),
        ("return 1 / 0", "division by zero"),
    ],
)
def test_wrong_config_files(refused, tmp_path, model_folder, source, named):
    file = tmp_path / "mine.py"
    file.write_text(f"from jaxalign.configuration import load_config\n\n\ndef get_config():\n    {source}\n")
    message = refused(*EVALUATE, f"--config.model={model_folder}", f"--config={file}")
    assert str(file) in message and named in message


def test_a_config_file_without_its_function(refused, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("config = {}\n")
    message = refused(*EVALUATE, f"--config={file}")
    assert str(file) in message and "get_config" in message
    assert "absent.py" in refused(*EVALUATE, f"--config={tmp_path / 'absent.py'}")


def test_wrong_arguments(refused, tmp_path):
    for words in (
        ("report", tmp_path),
        ("report", tmp_path, tmp_path, tmp_path),
        ("export",),
        ("export", tmp_path, tmp_path),
        ("evaluate", "x"),
        ("probe", "x"),
        ("demo", "x"),
        ("data", "build", "x"),
        ("data", "import", tmp_path),
        ("data", "imprt", tmp_path, tmp_path),
        ("data",),
        ("evalute",),
    ):
        refused(*words)


def test_out_is_needed(jaxalign, model_folder):
    for words in (EVALUATE, PROBE, TRAIN, ("data", "build"), ("demo", "--config.out=")):
        code, _, err = jaxalign(*words, f"--config.model={model_folder}")
        assert code == 2 and "config.out is needed" in err and err.count("\n") == 1
