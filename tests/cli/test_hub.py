"""A model on the hub by its id: one command in a process of its own, through HF_ENDPOINT, and the rest in this one."""

import json
import os
import subprocess
import sys

import pytest
import transformers
from huggingface_hub import constants

from jaxalign.cli.plan import architecture_named
from tests.fake_hub import COMMIT, model_files, served_hub

MAIN = "import sys; from jaxalign.cli.main import main; sys.exit(main())"


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
    assert "no such model" in refused(*command, "--config.model=org/absent")
    assert "no revision v9" in refused(*command, "--config.model=org/tiny@v9")
    assert "no such folder or file" in refused(*command, "--config.model=./org/tiny")
    assert "no such folder or file" in refused(*command, "--config.model=org/tiny.gguf")


def test_a_plan_reads_the_config_alone(here):
    assert architecture_named("org/tiny").width == 16
    assert set(here.gets()) == {"config.json"}
