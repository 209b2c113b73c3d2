"""A model on the hub by its id: one command in a process of its own, through HF_ENDPOINT, and the rest in this one."""

import json
import os
import subprocess
import sys

import pytest
import transformers
from huggingface_hub import constants

from jaxalign.verbs.plan import architecture_named
from tests.fake_hub import COMMIT, model_files, served_hub

MAIN = "import sys; from jaxalign.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def hub(model_folder, tmp_path_factory):
    """A hub that holds the tiny model as `org/tiny`, in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    model.save_pretrained(folder, max_shard_size="12KB")
    files = model_files(model_folder)
    del files["model.safetensors"]
    with served_hub() as hub:
        hub.models["org/tiny"] = files | model_files(folder)
        assert sum(name.endswith(".safetensors") for name in hub.models["org/tiny"]) > 1
        yield hub


def test_evaluate_takes_an_id(hub, tmp_path):
    command = ("evaluate", "--config.model=org/tiny", "--config.languages=en", "--config.rows=0:2")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *command, f"--config.out={tmp_path / 'out'}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"] == f"org/tiny@{COMMIT}"


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """The same hub for commands in this process."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.requests.clear()
    return hub


def test_what_the_hub_refuses_is_one_line(here, refused):
    command = ("evaluate", "--config.languages=en", "--config.rows=0:2")
    assert "Repository Not Found" in refused(*command, model="org/absent")
    assert "Revision Not Found" in refused(*command, model="org/tiny@v9")
    assert "no such folder or file" in refused(*command, model="./org/tiny")
    assert "no such folder or file" in refused(*command, model="org/tiny.gguf")


def test_adapters_lie_on_the_hub_too(here, ok, adapter, run, model_folder, tmp_path):
    """At the top of a repository or in a folder of it, as trainers push their checkpoints."""
    files = model_files(adapter)
    here.models["org/adapter"] = {"README.md": b"mine"} | files
    steps = {f"checkpoint-{step}/{name}": content for step in (100, 300) for name, content in files.items()}
    here.models["org/steps"] = {"README.md": b"mine"} | steps
    command = ("evaluate", f"--config.model={model_folder}", "--config.languages=en", "--config.rows=0:2")
    ok(*command, adapter=run, out=tmp_path / "run")
    for name, recorded in (
        ("org/adapter", f"org/adapter@{COMMIT}"),
        ("org/steps/checkpoint-300", f"org/steps/checkpoint-300@{COMMIT}"),
        ("org/steps/checkpoint-100/@v1.0", f"org/steps/checkpoint-100@{COMMIT}"),
    ):
        out = tmp_path / recorded.replace("/", "-")
        ok(*command, adapter=name, out=out)
        results = json.loads((out / "results.json").read_text())
        assert results["adapter"] == recorded
        assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "run" / "predictions.jsonl").read_bytes()
    assert here.gets().keys() == {"adapter_config.json", "adapter_model.safetensors", "certificate.json"}


def test_what_is_no_adapter_on_the_hub_is_one_line(here, refused, adapter, model_folder):
    files = model_files(adapter)
    here.models["org/steps"] = {f"checkpoint-{step}/{name}": files[name] for step in (100, 300) for name in files}
    here.models["org/pickled"] = {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"x"}
    here.models["org/adapter"] = files
    command = ("evaluate", f"--config.model={model_folder}", "--config.languages=en", "--config.rows=0:2")
    message = refused(*command, adapter="org/steps")
    assert "checkpoint-100, checkpoint-300: name org/steps/checkpoint-300" in message
    assert "no x/adapter_config.json in it" in refused(*command, adapter="org/adapter/x")
    assert "it holds adapter_model.bin. Pickled" in refused(*command, adapter="org/pickled")
    assert "adapter=org/absent: no such folder here" in refused(*command, adapter="org/absent")
    assert "--config.adapter=org/adapter" in refused("evaluate", *command[2:], model="org/adapter")


def test_an_export_names_its_base_on_the_hub(here, jaxalign, run, tmp_path):
    """The hub's shards hold the same weights as the folder that was tuned."""
    code, _, err = jaxalign("export", run, model="org/tiny", out=tmp_path / "adapter")
    assert code == 0, err
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (named["base_model_name_or_path"], named["revision"]) == ("org/tiny", COMMIT)
    assert 'base_model: "org/tiny"' in (tmp_path / "adapter" / "README.md").read_text()
    assert json.loads((tmp_path / "adapter" / "certificate.json").read_text())["base_model"] == f"org/tiny@{COMMIT}"
    assert "others do not have" not in err


def test_a_plan_reads_the_config_alone(here):
    assert architecture_named("org/tiny").width == 16
    assert set(here.gets()) == {"config.json"}
