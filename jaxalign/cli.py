"""The command line: `jaxalign VERB [files and runs] [--config=NAME_OR_FILE] [--config.key=value ...]`."""

import difflib
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from jaxalign.errors import InputError, Preempted
from jaxalign.reporting.words import one_line


class Verb(NamedTuple):
    """A module of jaxalign.verbs and its function; the verb's arguments, and how many at least; a line of help."""

    call: str
    arguments: str
    least: int
    help_line: str


VERBS = {
    "demo": Verb(
        "demo.demo", "", 0, "the whole path on the shipped set: evaluate, tune, evaluate, probe, report, export"
    ),
    "data build": Verb("data.build", "", 0, "write translation examples made from a task's parallel rows"),
    "data validate": Verb("data.validate", "FILE...", 1, "every error of files of pairs, task files and data folders"),
    "data describe": Verb("data.describe", "FILE...", 1, "lengths, scripts, doubles and test rows of question pairs"),
    "data import": Verb("data.import_clone", "CLONE OUT", 2, "take the study's data from a clone of its repository"),
    "train": Verb("train.train", "[PAIRS ...]", 0, "tune on question pairs, of files or built from --config.data"),
    "evaluate": Verb("evaluate.evaluate", "", 0, "score labels on the tasks' test rows"),
    "probe": Verb("probe.probe", "", 0, "logit lens, PCA, neurons and more on the emotion task's test rows"),
    "neurons": Verb("probe.neurons", "FILE", 1, "language neurons from the counts of --config.probes=neurons"),
    "compare": Verb("compare.compare", "BEFORE AFTER...", 2, "gains with tests and intervals, from result folders"),
    "report": Verb(
        "report.report", "FOLDER | BEFORE AFTER...", 1, "one HTML file of results before and after, of probes"
    ),
    "plan": Verb("plan.plan", "", 0, "whether a step fits the TPU slices of --config.topology, without a chip"),
    "export": Verb("export.export", "RUN [RESULTS ...]", 1, "an adapter or tuned model, with certificate and card"),
    "verify": Verb("export.verify", "PATH", 1, "compare an exported folder with transformers and peft"),
}
FROM_FILES = ("compare", "report")
"""The verbs that compute nothing with jax, whose import takes a second."""
TOGETHER = ("train", "evaluate", "probe")
"""The verbs that several processes do together, one a host."""


def usage() -> str:
    rows = [(f"{name} {verb.arguments}".strip(), verb.help_line) for name, verb in VERBS.items()]
    width = max(len(call) for call, _ in rows)
    lines = "\n".join(f"  {call:{width}}  {help_line}" for call, help_line in rows)
    return (
        "usage: jaxalign VERB [files and runs] [--config=NAME_OR_FILE] [--config.key=value ...]\n\n"
        f"{lines}\n\n"
        "Files and runs are positional, settings are config keys; `jaxalign VERB --help` lists them with values.\n"
        "Results go to --config.out; those of compare and report, where it is not set, to AFTER.\n"
        "--debug shows the traceback of an error, --version which jaxalign this is."
    )


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that the words begin with, and the words after it."""
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in VERBS), None)
    if name is None:
        if family := [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]:
            raise InputError(f"{' '.join(words[:2])}: no such verb; there are {', '.join(family)}")
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{words[0]}: no such verb; {hint}jaxalign --help lists them")
    return name, list(words[len(name.split()) :])


def run(arguments: Sequence[str]) -> None:
    """Runs one command; raises InputError where it cannot."""
    words = [word for word in arguments if not word.startswith("-")]
    flags = [word for word in arguments if word.startswith("-")]
    if "-V" in flags or "--version" in flags:
        print(f"jaxalign {metadata.version('jaxalign')}")
        return
    wants_help = "-h" in flags or "--help" in flags or words[:1] == ["help"]
    words = words[1:] if words[:1] == ["help"] else words
    flags = [flag for flag in flags if flag not in ("-h", "--help", "--debug")]
    if not words and flags:
        raise InputError(f"{flags[0]}: a verb is missing; jaxalign --help lists them")
    if not words or (wants_help and words == ["data"]):
        print(usage())
        return
    name, paths = split_verb(words)
    from jaxalign.configuration import config_from_flags, key_comments, leaves

    config, verb = config_from_flags(flags, "demo" if name == "demo" else "base"), VERBS[name]
    if wants_help:
        values = dict(leaves(config))
        settings = {f"--config.{key}={values[key]}": comment for key, comment in key_comments().items()}
        width = max(map(len, settings))
        keys = "\n".join(f"  {setting:{width}}  {comment}".rstrip() for setting, comment in settings.items())
        print(f"jaxalign {name} {verb.arguments}".strip() + f"\n  {verb.help_line}\n\n{keys}")
        return
    if len(paths) < verb.least or (len(paths) > verb.least and "..." not in verb.arguments):
        raise InputError(
            f"{' '.join(paths) or name}: {name} takes {verb.arguments or 'no arguments'}, and --config.key=value"
        )
    module, function = verb.call.split(".")
    paths = [os.path.expanduser(path) for path in paths]  # as records name them
    if name in FROM_FILES:
        getattr(importlib.import_module(f"jaxalign.verbs.{module}"), function)(config, paths)
        return
    from jaxalign import runtime

    if "--debug" not in arguments:
        # Libraries print errors of their threads, page after page, and raise them, too.
        for logger in ("absl", "asyncio", "concurrent.futures"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        # Of no object: what tensorstore's threads tell an event loop that is closed.
        sys.unraisablehook = lambda told: None if told.object is None else sys.__unraisablehook__(told)
    runtime.start(waits_for_notice=name == "train")
    if name not in TOGETHER:
        runtime.require_one_process(f"jaxalign {name}")
    getattr(importlib.import_module(f"jaxalign.verbs.{module}"), function)(config, paths)
    runtime.wait_for_all()


def main() -> int:
    """Entry point. The exit code is 0; 1 for a fault of ours, 2 for bad input, 75 where a run was told to stop
    (SIGTERM) and has saved, 130 when interrupted."""
    open_standard_streams()
    exit_code = attempt(sys.argv[1:])
    if exit_code not in (0, 75) and "jax" in sys.modules:
        # Of several processes only this one may have failed.
        importlib.import_module("jaxalign.runtime").leave(exit_code)
    return exit_code


def attempt(arguments: Sequence[str]) -> int:
    """Runs one command and says in one line what went wrong; the exit code."""
    try:
        run(arguments)
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues", 130)
    except Preempted as error:
        return complain(str(error), 75)
    except Exception as error:  # one line for the user; --debug shows where it came from
        if "--debug" in arguments:
            traceback.print_exception(error)
        if isinstance(error, InputError | OSError):
            return complain(str(error), 2)
        if isinstance(error, MemoryError) or "Out of memory" in str(error):
            less = "compute less at once (--config.batch.rows_at_once, --config.batch_size, --config.batch_tokens)"
            return complain(f"memory ran out ({error}); {less}, or take a machine with more", 2)
        return complain(f"{type(error).__name__}: {error}; this is a fault of jaxalign: run it again with --debug", 1)
    return 0


def complain(message: str, exit_code: int) -> int:
    """Prints one line on stderr; what files say in it cannot steer the terminal."""
    print(f"jaxalign: {one_line(message)}", file=sys.stderr)
    return exit_code


class StandardStream(io.FileIO):
    """Standard output or error, which may fail before the command ends.

    A reader that is gone (`| head`) is no fault: the results of a command are files, and it goes on. What else keeps
    standard output from being written is raised once. What standard error cannot take, nobody can be told.
    """

    _is_lost = False

    def write(self, data: Any, /) -> int | None:
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                    raise OSError(error.errno, error.strerror, "standard output") from None
        return len(data)


def open_standard_streams() -> None:
    """Puts StandardStreams under Python's own stdout and stderr, whose encodings may lack a character."""
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:  # one was closed: the next file would take its place
        pass
    os.close(spare)
    for number, name in ((1, "stdout"), (2, "stderr")):
        given = getattr(sys, name)
        if given is getattr(sys, f"__{name}__"):  # nobody has put another in its place
            buffer, encoding = io.BufferedWriter(StandardStream(number, "w", closefd=False)), given and given.encoding
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))
