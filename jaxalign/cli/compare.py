"""`jaxalign compare`: what the differences between evaluations are worth."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.configuration import command
from jaxalign.files import local_path
from jaxalign.reporting.gain_files import plain_text, write_files
from jaxalign.reporting.gains import measure_gains
from jaxalign.reporting.tables import compare as pair


def compare(config: ConfigDict, paths: Sequence[str]) -> None:
    """Prints the comparison of result folders and writes it to the folder `config.out`; by default the first AFTER."""
    before, *afters = map(Path, paths)
    gains = measure_gains(pair(before, *afters))
    written = write_files(gains, local_path(config.out) if config.out else afters[0], command())
    print(plain_text(gains))
    print(f"\nwritten: {', '.join(map(str, written))}")
