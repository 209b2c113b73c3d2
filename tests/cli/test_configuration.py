"""Configs: shipped files and one's own, other values over them, and what results say of the command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.cli import VERBS, attempt
from jaxalign.configuration import (
    command,
    config_from_flags,
    config_with,
    key_comments,
    leaves,
    load_config,
    recorded_config,
    shipped_configs,
)
from jaxalign.errors import InputError
from tests.any_input import TEXTS, VALUES, quick, spoilt_document, thorough, value_or_one_line

BASE = dict(leaves(load_config("base")))


@pytest.mark.parametrize("file", sorted(shipped_configs().glob("*.py")), ids=lambda file: file.stem)
def test_shipped_config_loads_and_adds_no_key(file):
    assert dict(leaves(load_config(file.stem))).keys() == BASE.keys()
    assert file.read_text().startswith('"""')
    if file.stem != "base":
        assert len(file.read_text().splitlines()) <= 40


def test_other_values_take_the_type_of_the_key(config_file):
    flags = ["--config.seed=7", "--config.batch.packed=false", "--config.heldout=0.1", "--config.out=a=b"]
    config = config_from_flags(flags, "base")
    assert (config.seed, config.batch.packed, config.heldout, config.out) == (7, False, 0.1, "a=b")
    with pytest.raises(AttributeError):
        config.sead = 1
    file = config_file("config = load_config('base')\n    config.seed = 5\n    return config")
    assert config_from_flags([f"--config={file}"], "base").seed == 5
    assert config_with({"lora": {"alpha": 4}}).lora.alpha == 4.0


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.langauges=en", r"did you mean config\.languages"),
        ("--config=nothing_like_it", "no such config"),
        ("--config.stages=2", r"--config\.stages=2: set it in a config file"),
    ],
)
def test_wrong_flags(flag, said):
    with pytest.raises(InputError, match=said):
        config_from_flags([flag], "base")


def test_help_has_a_line_for_every_key():
    assert key_comments().keys() == BASE.keys()
    assert key_comments()["lora.alpha"] == "the update is scaled by alpha / rank"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ('({"build.instruction": "before"}, {})', None),
        ('({}, {"epoch": 1})', r"mine\.py, stage 2: epoch: no such key; did you mean config\.epochs"),
        ('({"epochs": "1"},)', r"stage 1: epochs = '1': int is needed"),
        ('({"mesh.fsdp": 1},)', r"stage 1: mesh\.fsdp is the same in all stages"),
        ("(3,)", "stage 1: 3: a dict"),
    ],
)
def test_stages_change_keys(stages, message, config_file):
    file = config_file(f"config = load_config('base')\n    config.stages = {stages}\n    return config")
    flags = [f"--config={file}"]
    if message is None:
        assert config_from_flags(flags, "base").stages == ({"build.instruction": "before"}, {})
    else:
        with pytest.raises(InputError, match=message):
            config_from_flags(flags, "base")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/usr/bin/jaxalign", "jaxalign train 'my pairs.csv'"),
        ("/site-packages/jaxalign/__main__.py", "jaxalign train 'my pairs.csv'"),
        ("/home/me/tune.py", "tune.py train 'my pairs.csv'"),
    ],
)
def test_the_command_is_that_of_the_program_that_ran(monkeypatch: pytest.MonkeyPatch, program: str, said: str):
    monkeypatch.setattr("sys.argv", [program, "train", "my pairs.csv"])
    assert command() == said


# Whatever stands on the command line or in a call's settings, it is understood, or refused in one line.

GROUPS = sorted({key.split(".")[0] for key in BASE if "." in key})
# Names that a ConfigDict has itself among them.
NAMES = st.sampled_from([*GROUPS, "seed", "stages", "rank", "items", "lock", "", ".", "a.b", "_fields"])
KEYS = st.sampled_from([*BASE, *GROUPS]) | NAMES | TEXTS | st.lists(NAMES | TEXTS, max_size=3).map(".".join)
TYPED = st.sampled_from(
    ["1", "-1", "1e400", "nan", "-inf", "true", "False", "0x1", "1_0", "٣", "9" * 5000, "1" * 400, "(1,)", "a=b", " 1 "]
)
FLAGS = st.one_of(
    st.builds("--config.{}={}".format, KEYS, TYPED | TEXTS),
    st.builds("--config={}".format, TEXTS | st.sampled_from(["demo", "base", "..", "/", "demo.py", "*", "__init__"])),
    st.builds("-{}".format, KEYS),
)


def check_types(config):
    if config is not None:
        assert {key: type(value) for key, value in leaves(config)} == {key: type(value) for key, value in BASE.items()}


@pytest.mark.filterwarnings("error")
@thorough
@given(st.lists(FLAGS, max_size=3))
def test_flags_of_any_text(flags):
    check_types(value_or_one_line(config_from_flags, flags, "base"))


@pytest.mark.filterwarnings("error")
@quick
@given(
    st.dictionaries(st.sampled_from(list(BASE)) | NAMES | TEXTS, VALUES | st.dictionaries(NAMES, VALUES), max_size=3)
)
def test_settings_of_any_value(settings):
    check_types(value_or_one_line(config_with, settings))


@pytest.mark.filterwarnings("error")
@quick
@given(spoilt_document(load_config("base").to_dict()) | st.dictionaries(NAMES | TEXTS, VALUES, max_size=3))
def test_recorded_configs_of_any_value(recorded):
    check_types(value_or_one_line(recorded_config, recorded, "run.json"))


@quick
@given(st.lists(st.sampled_from(" ".join(VERBS).split()) | TEXTS, max_size=4))
def test_words_of_any_text(capsys, words):
    """The last flag is refused where all else is a command."""
    code = attempt([*words, "--config.nosuchkey=1"])
    out, err = capsys.readouterr()
    if not code:  # no words, or a call for help
        assert out.startswith(("usage: ", "jaxalign ")) and not err
    else:
        assert code == 2 and err.startswith("jaxalign: ") and len(err.splitlines()) == 1
