"""Where data lies: the shipped mini set, or a folder of the study's layout (ap_emotion/, snli/, paws/)."""

from pathlib import Path

from jaxalign.errors import InputError

MINI = Path(__file__).parent / "mini"


def data_folder(name: str) -> Path:
    """The folder that `--config.data` names: `mini`, or a path."""
    if name == "mini":
        return MINI
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"data={name}: no such folder; it holds ap_emotion/, snli/ and paws/, or is 'mini'")
    return folder


def exemplars_file(data: Path, name: str) -> Path:
    """The few-shot exemplars that `--config.exemplars` names (`mini`: the shipped); the data folder's own if none."""
    if name == "mini":
        return MINI / "exemplars.json"
    return Path(name) if name else data / "exemplars.json"
