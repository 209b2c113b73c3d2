"""Bad settings and arguments: one line that says what, where and what to do, exit code 2, and nothing half-written."""

import pytest

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
        ("c = load_config('base')\n    del c.seed\n    return c", "seed"),
        ("c = load_config('base'", "SyntaxError"),
        ("c = load_config('bsae')\n    return c", "bsae"),
        ("return load_config('base').to_dict()", "ConfigDict"),
        ("return 1 / 0", "division by zero"),
    ],
)
def test_wrong_config_files(refused, tmp_path, model_folder, source, named):
    file = tmp_path / "mine.py"
    file.write_text(f"from jaxalign.cli.configuration import load_config\n\n\ndef get_config():\n    {source}\n")
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
        assert code == 2 and "--config.out=" in err and err.count("\n") == 1
