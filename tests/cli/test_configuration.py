"""Configs: every shipped file loads, overrides keep their type, and only known keys are taken."""

import pytest

from jaxalign.configuration import config_from_flags, key_comments, leaves, load_config, shipped_configs
from jaxalign.errors import InputError

SHIPPED = sorted(path.stem for path in shipped_configs().glob("*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_loads_and_adds_no_key(name):
    assert dict(leaves(load_config(name))).keys() == dict(leaves(load_config("base"))).keys()
    assert (shipped_configs() / f"{name}.py").read_text().startswith('"""')
    if name != "base":
        assert len((shipped_configs() / f"{name}.py").read_text().splitlines()) <= 40


def test_overrides_take_the_type_of_the_key():
    flags = ["--config.seed=7", "--config.batch.packed=false", "--config.heldout=0.1", "--config.out=a=b"]
    config = config_from_flags(flags, "base")
    assert (config.seed, config.batch.packed, config.heldout, config.out) == (7, False, 0.1, "a=b")


def test_the_config_is_locked():
    with pytest.raises(AttributeError):
        config_from_flags([], "base").sead = 1


def test_a_config_file_of_one_s_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxalign.configuration import load_config\n\n\n"
        "def get_config():\n    config = load_config('base')\n    config.seed = 5\n    return config\n"
    )
    assert config_from_flags([f"--config={file}"], "base").seed == 5


def test_unknown_key_names_the_nearest():
    with pytest.raises(InputError, match=r"config\.languages"):
        config_from_flags(["--config.langauges=en"], "base")
    with pytest.raises(InputError, match="no such config"):
        config_from_flags(["--config=nothing_like_it"], "base")


def test_help_has_a_line_for_every_key():
    assert key_comments().keys() == dict(leaves(load_config("base"))).keys()
    assert key_comments()["lora.alpha"] == "the update is scaled by alpha / rank"


def a_config_with(stages, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxalign.configuration import load_config\n\n\n"
        f"def get_config():\n    config = load_config('base')\n    config.stages = {stages}\n    return config\n"
    )
    return [f"--config={file}"]


def test_stages_change_keys(tmp_path):
    config = config_from_flags(a_config_with('({"build.instruction": "before"}, {})', tmp_path), "base")
    assert config.stages == ({"build.instruction": "before"}, {})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ('({}, {"epoch": 1})', r"mine\.py, stage 2: epoch: no such key; did you mean config\.epochs"),
        ('({"epochs": "1"},)', r"stage 1: epochs = '1': int is needed"),
        ('({"mesh.fsdp": 1},)', r"stage 1: mesh\.fsdp is the same in all stages"),
        ("(3,)", "stage 1: 3: a dict"),
    ],
)
def test_bad_stages_are_named(stages, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config_from_flags(a_config_with(stages, tmp_path), "base")


def test_stages_stand_in_a_file():
    with pytest.raises(InputError, match=r"--config\.stages=2: set it in a config file"):
        config_from_flags(["--config.stages=2"], "base")
