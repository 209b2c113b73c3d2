"""`jaxalign compare`: what the differences between evaluations are worth."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.configuration import command
from jaxalign.files import local_path
from jaxalign.reporting.compare import compare as compared
from jaxalign.reporting.text import plain_text, write_files


def compare(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints the comparison of result folders and writes it to the folder `config.out`; by default the first AFTER."""
    before, *afters = map(Path, paths)
    comparison = compared(before, *afters)
    written = write_files(comparison, local_path(config.out) if config.out else afters[0], command())
    print(plain_text(comparison))
    print(f"\nwritten: {', '.join(map(str, written))}")
