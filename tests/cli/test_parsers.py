"""Whatever stands on the command line or in a call's settings, it is understood, or refused in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.cli.main import VERBS, attempt
from jaxalign.configuration import config_from_flags, config_with, leaves, load_config, recorded_config
from tests.any_input import TEXTS, VALUES, quick, spoilt_document, thorough, value_or_one_line

pytestmark = pytest.mark.filterwarnings("error")
BASE = dict(leaves(load_config("base")))
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


@thorough
@given(st.lists(FLAGS, max_size=3))
def test_flags_of_any_text(flags):
    check_types(value_or_one_line(config_from_flags, flags, "base"))


@quick
@given(
    st.dictionaries(st.sampled_from(list(BASE)) | NAMES | TEXTS, VALUES | st.dictionaries(NAMES, VALUES), max_size=3)
)
def test_settings_of_any_value(settings):
    check_types(value_or_one_line(config_with, settings))


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
