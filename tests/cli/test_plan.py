"""`jaxalign plan`: the true step of a toy model compiled for TPU slices, on this machine's CPU."""

import json
import re
from pathlib import Path

import pytest

from jaxalign.model import architectures
from jaxalign.planning import compile

TOY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SETTINGS = (
    "--config.dtype=bfloat16",
    "--config.param_dtype=bfloat16",
    "--config.remat=full",
    "--config.batch.length=128",
    "--config.batch.pairs_per_step=8",
)


@pytest.fixture
def play(monkeypatch):
    """Plays the compiler: of each job it finds what `facts_of` says, and else what would fit anywhere."""

    def call(facts_of):
        def facts(job):
            sizes = {"argument": 0, "output": 0, "alias": 0, "temp": 2**30, "generated_code": 0}
            costs = {"flops": 1e9, "bfloat16_flops": 1e9, "bytes": 1000, "collectives": {}}
            known = {"mesh": list(job.mesh), "arguments": {"parameters": 1000}, "compile_seconds": 1.0}
            found = facts_of(job)
            return known | ({} if "refused" in found else {"costs": costs, "memory": sizes}) | found

        monkeypatch.setattr(compile, "compiled_elsewhere", facts)

    return call


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A model folder without weights."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text(json.dumps(TOY))
    return folder


def test_a_toy_step_on_eight_chips(ok, toy, tmp_path, monkeypatch):
    command = ("plan", f"--config.model={toy}", "--config.topology=v5e:2x4", *SETTINGS, f"--config.out={tmp_path}")
    said = ok(*command)
    assert "fits" in said and "does not fit" not in said
    document = json.loads((tmp_path / "plan.json").read_text())
    (plan,) = document["plans"]
    assert plan["fits"] and plan["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    # The compiled products against the analytic count: 1.000 when this was written.
    assert plan["flops"]["per_step"] == pytest.approx(plan["flops"]["analytic_per_step"], rel=0.05)
    # Sharded bfloat16 weights, an eighth each, and the norms whole.
    weights = 2 * 512 * 256 + 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
    norms = 256 * (2 * 4 + 1)
    assert plan["memory"]["parameters"] == 2 * (weights / 8 + norms)
    # Every layer's weights are gathered at least in the forward and in the backward pass.
    assert plan["collectives"]["all-gather"]["bytes"] > 2 * 2 * weights
    assert document["versions"].keys() >= {"jax", "libtpu"}

    # The same again is read, not compiled.
    monkeypatch.setattr(compile, "compiled_elsewhere", lambda job: pytest.fail("compiled again"))
    assert ok(*command) == said


def test_every_stage_is_planned_and_full_tuning_keeps_the_model(ok, toy, tmp_path, play):
    """Of three stages two are one job."""
    config = tmp_path / "staged.py"
    config.write_text(
        "from jaxalign.configuration import load_config\n\n\ndef get_config():\n    config = load_config('base')\n"
        "    config.stages = ({'batch.length': 64}, {}, {'epochs': 1})\n    config.tune = 'all'\n    return config\n"
    )

    def facts(job):
        sizes = {"argument": 0, "output": 0, "alias": 0, "temp": job.length, "generated_code": 0}
        return {"mesh": [1, 1, 1], "arguments": {"parameters": 4000, "optimizer": 8000}, "memory": sizes}

    play(facts)
    flags = (f"--config.model={toy}", "--config.topology=v5e:1x1", f"--config.out={tmp_path}", "--config.seed=2")
    ok("plan", f"--config={config}", *flags, "--config.batch.length=128", param_dtype="bfloat16")
    plans = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert [plan["batch"]["length"] for plan in plans] == [64, 128]
    # The tuned parameters are float32, the model that they were copied from bfloat16.
    assert [plan["memory"]["model"] for plan in plans] == [2000, 2000]
    assert [plan["memory"]["peak"] for plan in plans] == [4000 + 8000 + 2000 + length for length in (64, 128)]


def test_several_slices_make_a_table(ok, toy, tmp_path, play):
    """The small one is too small."""

    def facts(job):
        chips = {"v5e:1x1": 1, "v5e:2x4": 8, "v5e:4x4": 16}[job.topology]
        refused = {"refused": "HLO temporaries (20.00G) exceeds available HBM (15.75G)"} if chips == 1 else {}
        return {"mesh": [1, chips, 1], **refused}

    play(facts)
    slices = "v5e:1x1,v5e:4x4,v5e:2x4"
    said = ok("plan", model=toy, topology=slices, out=tmp_path, seed="1")
    assert "does not fit: peak 20.00 GiB" in said and "--config.param_dtype=nf4 saves about" in said
    assert [line.split(" | ")[5].split(",")[0] for line in said.splitlines() if line.startswith("| /")] == [
        "no",
        "yes",
        "yes",
    ]
    assert said.endswith("smallest that fits: v5e:2x4\n")
    assert json.loads((tmp_path / "plan.json").read_text())["smallest_that_fits"] == "v5e:2x4"


def test_what_a_search_finds_is_said_as_flags(ok, toy, play):
    compiled = []
    play(lambda job: compiled.append(job) or {})
    command = ("plan", f"--config.model={toy}", "--config.topology=v5e:2x4", "--config.seed=2")
    said = ok(*command, fit="true")
    flags = re.findall(r"--config\.[a-z_.]+=\w+", said)
    searched = len(compiled)
    ok(*command, *flags)
    # What is known of a job is kept, so the same job is not compiled again.
    assert searched > 0 and compiled[searched:] == [] and "found; to train so: --config.batch.pairs_per_step=0" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "--config.topology= is needed"),
        (("--config.topology=v5e:4by4",), "give a chip (v5e, v5p, v6e, tpu7x) and its grid"),
        (("--config.topology=v5e:2x4", "--config.mesh.tensor=3"), "does not divide into the 8 devices"),
        (("--config.topology=v5e:2x4", "--config.plan.programs=sing"), "choose among train, score, lens"),
        (("--config.topology=v5e:2x4", "--config.param_dtype=int3"), "param_dtype=int3: choose"),
        (("--config.topology=v5e:2x4", "--config.model=mistral"), "mistral: no such architecture; known are gemma"),
    ],
)
def test_bad_settings_are_named(refused, toy, settings, message):
    assert message in refused("plan", f"--config.model={toy}", *settings)


def test_a_file_in_the_place_of_the_folder_is_noticed_before_the_compiler_runs(refused, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(compile, "compiled_elsewhere", lambda job: pytest.fail("compiled"))
    (tmp_path / "out").touch()
    assert "a file is there; name a folder" in refused("plan", model=toy, topology="v5e:2x4")


def test_a_slice_that_libtpu_does_not_know(refused, toy):
    assert "libtpu has no such slice" in refused("plan", model=toy, topology="v5e:3x5")


def test_a_compiler_that_crashes_is_one_line(refused, toy, monkeypatch):
    monkeypatch.setattr(compile.sys, "executable", "/bin/false")
    said = refused("plan", model=toy, topology="v5e:4x8")
    assert "v5e:4x8: the compiler ended with code 1" in said


@pytest.mark.full_size
@pytest.mark.parametrize("name", architectures.names())
def test_full_sizes_on_a_pod(ok, name, tmp_path):
    """Minutes each: every architecture's adapter step compiled for v5e:16x16."""
    mesh = ("--config.mesh.data=2",) if name == "gemma-3-1b" else ()  # whose width divides by 128, and not by 256
    ok("plan", "--config.topology=v5e:16x16", *SETTINGS, *mesh, model=name, out=tmp_path)
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert plan["fits"]
    assert plan["flops"]["per_step"] == pytest.approx(plan["flops"]["analytic_per_step"], rel=0.05)
