"""Help texts, and errors as a developer wants them."""

from jaxalign.cli.main import VERBS


def test_help_names_every_verb_and_key(ok):
    assert all(verb in ok("--help") for verb in VERBS)
    assert ok() == ok("--help")
    assert "--config.lora.rank=8" in ok("train", "--help")
    assert "--config.model=packaged" in ok("demo", "--help")


def test_debug_shows_the_traceback(jaxalign):
    code, _, err = jaxalign("evaluate", "--config.nosuchkey=1", "--debug")
    assert code == 2 and err.startswith("Traceback") and err.splitlines()[-1].startswith("jaxalign: --config.nosuchkey")


def test_what_steers_a_terminal_is_shown(jaxalign):
    code, _, err = jaxalign("evaluate", "--config.seed=\x1b[31mred\ud800")
    assert code == 2 and "seed=[U+001B][31mred[U+D800]: a whole number is needed" in err
