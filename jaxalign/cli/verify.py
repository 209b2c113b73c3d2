"""`jaxalign verify`: an exported folder against the independent path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.cli.certificate import NOT_CHECKED, certify
from jaxalign.errors import InputError
from jaxalign.files import check_writable, local_path, write_json
from jaxalign.load import refuse_changed


def verify(config: ConfigDict, paths: Sequence[str]) -> None:
    """Writes certificate.json of a PEFT folder or a model folder into it, or to `config.out`; faults are an error, and
    so are files that are not those of the certificate that lies there, which stays where nothing can be compared."""
    if len(paths) != 1:
        raise InputError("verify takes one argument: a PEFT folder or a model folder, as export writes them")
    folder = Path(paths[0])
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise InputError(f"{folder}: no adapter_config.json and no config.json; name a PEFT folder or a model folder")
    refuse_changed(folder)
    written = (local_path(config.out) if config.out else folder) / "certificate.json"
    check_writable(written.parent)
    certificate = certify(folder, config)
    if certificate["holds"] == NOT_CHECKED and written.is_file():
        print(f"{verdict(certificate)}; {written} stays as it is")
        return
    write_json(written, certificate)
    refuse_faults(certificate, folder, f"see {written}")
    print(f"{verdict(certificate)}\ncertificate: {written}")


def refuse_faults(certificate: Mapping[str, Any], folder: Path, advice: str) -> None:
    """InputError where a certificate does not hold."""
    if certificate["holds"] is False:
        raise InputError(f"{folder}: does not hold: {'; '.join(certificate['faults'])}; {advice}")


def verdict(certificate: Mapping[str, Any]) -> str:
    """A certificate in one line."""
    if certificate["holds"] == NOT_CHECKED:
        return f"{NOT_CHECKED}: {certificate['reason']}"
    found = certificate["logits"]
    libraries = ", ".join(f"{name} {version}" for name, version in certificate["independent"].items())
    return (
        f"logits differ from those of {libraries} by {found['largest_difference']:.2g} at most "
        f"({found['mean_difference']:.2g} on average; {found['bound']:.2g} is allowed)"
    )
