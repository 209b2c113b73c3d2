"""Help texts, errors as a developer wants them, and what becomes of output that nobody can take."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jaxalign.cli import VERBS

FULL = Path("/dev/full")


def test_help_names_every_verb_and_key(ok):
    assert all(verb in ok("--help") for verb in VERBS)
    assert ok() == ok("--help")
    assert "--config.lora.rank=8" in ok("train", "--help")
    assert "--config.model=packaged" in ok("demo", "--help")
    assert ok("help", "train") == ok("train", "--help")
    assert ok() == ok("help") == ok("-h") == ok("data", "--help")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_it_says_which_version_it_is(ok, flag):
    assert ok(flag) == ok("train", flag) == f"jaxalign {metadata.version('jaxalign')}\n"


def test_a_flag_without_a_verb_is_no_question_for_help(jaxalign):
    code, out, err = jaxalign(seed="1")
    assert (code, out, err) == (2, "", "jaxalign: --config.seed=1: a verb is missing; jaxalign --help lists them\n")
    assert jaxalign("help", "trian")[0] == 2


def test_debug_shows_the_traceback(jaxalign):
    code, _, err = jaxalign("evaluate", "--debug", nosuchkey="1")
    assert code == 2 and err.startswith("Traceback") and err.splitlines()[-1].startswith("jaxalign: --config.nosuchkey")


def test_what_steers_a_terminal_is_shown(jaxalign):
    code, _, err = jaxalign("evaluate", seed="\x1b[31mred\ud800")
    assert code == 2 and "seed=[U+001B][31mred[U+D800]: a whole number is needed" in err


def start(*arguments: object, redirected: str = "", **streams) -> subprocess.Popen[str]:
    """`python -m jaxalign` as a process of its own, by a shell that redirects its output."""
    command = ["bash", "-c", f'exec "$@" {redirected}', "bash", sys.executable, "-m", "jaxalign", *map(str, arguments)]
    return subprocess.Popen(command, text=True, **streams)


@pytest.fixture
def bad_pairs(tmp_path) -> Path:
    """So many wrong rows that their errors are more than a pipe holds."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(20000 * '{"source": 1}\n')
    return file


@pytest.mark.parametrize(("lines", "code"), [(0, 0), (1, 2)], ids=["help", "validate"])
def test_a_reader_that_leaves_changes_nothing_else(bad_pairs, lines, code):
    """`| head`: no word about the pipe, and the exit code is the command's own."""
    command = ("data", "validate", bad_pairs) if lines else ("train", "--help")
    reading, writing = os.pipe()
    with start(*command, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        with open(reading) as pipe:
            for _ in range(lines):
                pipe.readline()
        _, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert err.count("\n") == lines and "pipe" not in err.lower()


def test_a_command_goes_on_when_nobody_listens_any_more(tmp_path):
    """Errors and progress in the same closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    out = tmp_path / "built"
    with start("data", "build", f"--config.out={out}", stdout=writing, stderr=writing) as process:
        os.close(writing)
    assert process.returncode == 0 and any(out.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_output_that_does_not_fit_is_one_line():
    with start("--help", redirected=f"> {FULL}", stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.startswith("jaxalign: ") and err.count("\n") == 1 and "standard output" in err
    with start("trian", redirected=f"2> {FULL}") as process:
        pass
    assert process.returncode == 2


def test_closed_streams_are_not_the_place_of_the_next_file(tmp_path):
    with start("data", "build", f"--config.out={tmp_path / 'built'}", redirected=">&- 2>&- <&-") as process:
        pass
    assert process.returncode == 0


def test_what_an_encoding_lacks_is_spelt_out():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with start("Zählen", env=environment, stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and err.startswith(r"jaxalign: Z\xe4hlen: no such verb")
