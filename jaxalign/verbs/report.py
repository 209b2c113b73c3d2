"""`jaxalign report`: one HTML file of before against after, or of one model's probes."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.configuration import command
from jaxalign.files import local_path
from jaxalign.reporting.page import write_report


def report(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the report to `config.out`, a .html file or a folder; by default into the first AFTER, or FOLDER."""
    before, *afters = map(Path, paths)
    out = local_path(config.out) if config.out else (afters or [before])[0]
    file = out if out.suffix == ".html" else out / "report.html"
    write_report(before, afters, file, command())
    print(f"report: {file}")
