"""`jaxalign export`: a run's adapter for other libraries."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.cli.loading import out_folder
from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.model.peft_adapters import save_adapter
from jaxalign.training.checkpoint import read_adapter


def export(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes the newest adapter of a run as a PEFT folder, `config.out`."""
    if len(paths) != 1:
        raise InputError("export takes one argument: the run that train wrote")
    if config.format != "peft":
        raise InputError(f"--config.format={config.format}: only peft is written")
    run, out = Path(paths[0]), out_folder(config)
    lora, tree = read_adapter(run)
    save_adapter(out, tree, lora, read_json(run / "run.json")["model"])
    print(f"adapter: {out}")
