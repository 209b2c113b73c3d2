"""Bad settings and arguments: one line that says what, where and what to do, exit code 2, and nothing half-written."""

import json
import shutil
import subprocess
import sys

import pytest

from jaxalign.configuration import config_with
from jaxalign.errors import InputError
from tests.cli.test_bad_files import BUILD, EVALUATE, PROBE, TRAIN

OF_EVALUATE = [
    ("languages=en,dee", "unknown language 'dee'; known: en zh"),
    ("rows=5:2", "5:2"),
    ("tasks=emotoin", "'emotion'"),
    ("batchsize=2", "batch_size"),
    ("batch_size=two", "whole number"),
    ("batch_tokens=0", "batch_tokens"),
    ("variants=irelevant", "irrelevant"),
    ("prompts=fixed", "mended"),
    ("dtype=float8", "bfloat16"),
    ("mesh.tensor=7", "mesh"),  # of eight devices
    ("mesh.tensor=2", "mesh"),  # a vocabulary of 257
    ("data=nowhere", "nowhere"),
]
OF_PROBE = [
    ("probes=foo", "'foo'"),
    ("attribution_positions=0", "attribution_positions=0"),
    ("tasks=snli", "emotion"),
    ("rows=0:1", "rows"),
    ("probes=attribution --config.attribution_positions=4000", "fewer than the 4000 positions"),
    ("probes=masking", "neurons.selection"),
    ("capture.position=first", "query_mean"),
    ("capture.layers=0,x", "layers 0,x"),
]
OF_GEOMETRY = [
    ("capture.layers=0,3", "layer 3: the model has 0 (the embeddings) to 2"),
    ("capture.position=5000", "no position 5000"),
    ("languages=de,zh", "geometry compares with en"),
    ("rows=0:2", "geometry: at least 3 rows"),
]
# Of each key a value; of the numbers those below, above, and that are none.
OF_TRAIN = [
    *("param_dtype=nf4", "remat=foo", "template=foo", "loss.reduction=foo", "loss.chunk=0", "batch.too_long=foo"),
    *("lora.rank=0", "lora.targets=nothing_proj", "lora.targets=", "lora.alpha=1e300", "lora.alpha=nan"),
    *("batch.accumulation=0", "batch.length=0", "batch.pairs_per_step=0", "batch.pairs_per_step=-1"),
    *("batch.rows_at_once=-1", "batch.rows_at_once=1000000000", "epochs=1000000000000", "steps=-1", "epochs=0"),
    *("seed=-1", "seed=9223372036854775808", "heldout=-0.1", "heldout=1.0", "heldout=nan"),
    *("optimizer.learning_rate=abc", "optimizer.learning_rate=-1", "optimizer.learning_rate=1e400"),
    *("optimizer.warmup_fraction=2", "optimizer.weight_decay=-0.1", "optimizer.b1=0.9999999999", "optimizer.b2=-1"),
    *("optimizer.eps=1e-60", "optimizer.clip_norm=inf", "log_every=0", "heldout_every=0", "checkpoint_every=0"),
    *("watch_every=0", "keep_last=0", "keep_best=-1"),
]
OF_THE_PAIRS = [
    ("build.control=foo", "'foo'"),
    ("build.instruction=foo", "'foo'"),
    ("build.sources=dee", "build.sources: unknown language 'dee'"),
    ("build.sources=en", "sources"),
    ("build.target=de", "target"),
    ("rows=0:500", "up to 500, but"),
    ("data=nowhere", "nowhere"),
]


@pytest.mark.parametrize(
    ("command", "setting", "named"),
    [
        *((EVALUATE, *each) for each in OF_EVALUATE),
        *((PROBE, *each) for each in OF_PROBE),
        *(((*PROBE, "--config.probes=geometry"), *each) for each in OF_GEOMETRY),
        *((TRAIN, setting, setting.partition("=")[0].rpartition(".")[2]) for setting in OF_TRAIN),
        *((verb, *each) for each in OF_THE_PAIRS for verb in (BUILD, TRAIN)),
    ],
)
def test_wrong_settings(refused, model_folder, command, setting, named):
    steps = ("--config.steps=0",) if setting.startswith("epochs") else ()
    assert named in refused(*command, *steps, *f"--config.{setting}".split(), model=model_folder)


def test_whole_numbers_have_a_range_at_every_door(refused, config_file, model_folder):
    """On the command line, in a config file and in its stages, and from Python, for every verb."""
    said = refused("data", "build", "--config.build.control=mispaired", tasks="paws", seed="-1")
    assert "--config.seed=-1: set it to 0 or more" in said
    for lines, named in (
        (f"c.seed = {2**63}", "seed=9223372036854775808: set it to"),
        ("c.stages = ({'seed': -1}, {})", "stage 1: seed=-1: set it to 0 or more"),
        ("c.optimizer.b1 = float('nan')", "optimizer.b1=nan: a finite number"),
        ("c.epochs = 2**31", "epochs=2147483648: set it to 2147483647 or less"),
    ):
        file = config_file(f"c = load_config('base')\n    {lines}\n    return c")
        said = refused(*TRAIN, f"--config={file}", model=model_folder)
        assert str(file) in said and named in said
    with pytest.raises(InputError, match=r"batch_size=0: set it to 1 or more"):
        config_with({"batch_size": 0})
    with pytest.raises(InputError, match=r"optimizer\.learning_rate=inf: a finite number"):
        config_with({"optimizer": {"learning_rate": 10**400}})


def test_memory_that_runs_out_is_no_fault_of_ours(refused, model_folder, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 7 EiB")

    monkeypatch.setattr("jaxalign.data.batches.fit_pairs", fail)
    said = refused(*TRAIN, model=model_folder)
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
    code, _, err = jaxalign(*command, "--config.batch.length=200", out=tmp_path / "short")
    assert code == 0 and "2 too long and dropped" in err


@pytest.mark.parametrize("verb", [EVALUATE, PROBE, TRAIN])
def test_where_nothing_can_be_written_is_noticed_before_the_model_is_looked_for(jaxalign, tmp_path, verb):
    (tmp_path / "file").write_text("")
    command = (*verb, f"--config.model={tmp_path / 'none'}")
    code, _, err = jaxalign(*command, out=tmp_path / "file" / "out")
    assert code == 2 and "nothing can be written there" in err and err.count("\n") == 1
    holding = (
        "import sys, time; from pathlib import Path; from jaxalign.holding import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", holding, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        code, _, err = jaxalign(*command, out=tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert code == 2 and f"process {holder.pid} on " in err and "is at work there" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("c = load_config('base')\n    c.lora.rnak = 4\n    return c", "lora.rank"),
        ("c = load_config('base')\n    c.seed = 'seven'\n    return c", "seed"),
        ("c = load_config('base'", "SyntaxError"),
        ("return load_config('base').to_dict()", "ConfigDict"),
        ("return 1 / 0", "division by zero"),
    ],
)
def test_wrong_config_files(refused, config_file, model_folder, source, named):
    file = config_file(source)
    message = refused(*EVALUATE, f"--config={file}", model=model_folder)
    assert str(file) in message and named in message


def test_what_is_no_config_file(refused, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("config = {}\n")
    message = refused(*EVALUATE, f"--config={file}")
    assert str(file) in message and "get_config" in message
    assert "absent.py" in refused(*EVALUATE, f"--config={tmp_path / 'absent.py'}")
    assert "demo" in refused(*EVALUATE, "--config=demmo")
    assert "--config.key=value" in refused(*EVALUATE, "--languages=en")


def test_wrong_arguments(refused, tmp_path):
    for words, said in (
        (("report",), "report takes FOLDER | BEFORE AFTER..."),
        (("compare", tmp_path), "compare takes BEFORE AFTER..."),
        (("export",), "export takes RUN"),
        (("verify",), "verify takes PATH"),
        (("neurons", "a", "b"), "neurons takes FILE"),
        (("evaluate", "x"), "x: evaluate takes no arguments"),
        (("data", "build", "x"), "x: data build takes no arguments"),
        (("data", "import", tmp_path), "data import takes CLONE OUT"),
        (("data", "imprt", tmp_path, tmp_path), "there are data build"),
        (("data",), "there are data build"),
        (("evalute",), "did you mean evaluate?"),
    ):
        assert said in refused(*words)


def test_out_is_needed(jaxalign, model_folder):
    for words in (EVALUATE, PROBE, TRAIN, ("data", "build"), ("demo", "--config.out=")):
        code, _, err = jaxalign(*words, model=model_folder)
        assert code == 2 and "config.out is needed" in err and err.count("\n") == 1
