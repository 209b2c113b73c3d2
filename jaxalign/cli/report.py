"""`jaxalign report`: one HTML file of before against after."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.cli.provenance import command
from jaxalign.errors import InputError
from jaxalign.reporting.html import write_report


def report(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the report of two result folders to `config.out`, a .html file or a folder; by default into AFTER."""
    if len(paths) != 2:
        raise InputError("report takes two arguments: the result folders BEFORE and AFTER")
    out = Path(config.out or paths[1])
    file = out if out.suffix == ".html" else out / "report.html"
    write_report(Path(paths[0]), Path(paths[1]), file, command())
    print(f"report: {file}")
