"""The GGUF container: metadata and a table of tensors, read from a memory map; values through the gguf package.

Layout (github.com/ggml-org/ggml, docs/gguf.md), little-endian: magic, version, number of tensors, number of metadata
entries; the entries; the tensor table; then, aligned, the tensors. The gguf package's own reader makes several NumPy
arrays for each of a vocabulary's 260 000 strings, ten seconds where this takes well under one.
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from jaxalign.errors import InputError

_VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


_TYPES = {GGMLQuantizationType.F16: jnp.float16, GGMLQuantizationType.BF16: jnp.bfloat16}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What llama.cpp calls the parts of a split file (gguf-split)."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file and how it is stored."""

    shape: tuple[int, ...]
    """Slowest axis first, as NumPy and Hugging Face count: [out, in] for a projection."""
    kind: GGMLQuantizationType
    start: int
    size: int
    """In bytes."""
    blob: np.ndarray
    """The bytes of its file."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers; float32 of those that are quantised."""
        return jnp.dtype(_TYPES.get(self.kind, jnp.float32))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or all parts of a split one: its metadata in memory, its tensors on disk."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def array(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32."""
        tensor = self.tensors[name]
        elements, size = GGML_QUANT_SIZES[tensor.kind]
        raw = tensor.blob[tensor.start : tensor.start + tensor.size]
        rows = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        try:
            return np.asarray(dequantize(rows, tensor.kind)).reshape(tensor.shape)
        except NotImplementedError:
            raise InputError(f"{self.path}: {name} is stored as {tensor.kind.name}, which is not supported") from None


def open_gguf(path: Path) -> GgufFile:
    """Reads metadata and tensor table; of a split file, any of whose parts `path` may be, those of all parts.

    InputError: no such file, not GGUF, of another version, cut off, or not all parts of one model.
    """
    file = _open_part(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return file
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise InputError(f"{path}: one of {count} parts of a model; name the parts ...-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise InputError(f"{path}: one of {count} parts of a model, and {', '.join(missing[:5])} is not beside it")
    parts = [_open_part(part) for part in paths]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    numbers = [part.metadata.get("split.no") for part in parts]
    expected, held = parts[0].metadata.get("split.tensors.count"), sum(len(part.tensors) for part in parts)
    if numbers != list(range(count)) or not expected == held == len(tensors):
        raise InputError(
            f"{paths[0]}: its {count} parts are numbered {numbers} and hold {held} tensors, where {expected} belong to "
            "the model; are they parts of one model?"
        )
    return replace(parts[0], path=path, tensors=tensors)


def _open_part(path: Path) -> GgufFile:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path}: not a GGUF file (it does not start with the letters GGUF)")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    blob = np.frombuffer(mapped, np.uint8)
    try:
        metadata, tensors = _read_tables(_Cursor(memoryview(mapped)), path, blob)
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{path}: the GGUF file is cut off or broken") from None
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > blob.size:
            raise InputError(f"{path}: the GGUF file is cut off: {name} ends beyond its {blob.size} bytes")
    return GgufFile(path, metadata, tensors)


class _Cursor:
    """A position in the file, moved on by each read."""

    def __init__(self, blob: memoryview):
        self.blob, self.position = blob, 0

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.blob, self.position)
        self.position += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        (length,) = self.unpack("Q")
        raw = self.blob[self.position : self.position + length]
        if len(raw) < length:
            raise EOFError
        self.position += length
        return str(raw, "utf-8")

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            item_kind, count = self.unpack("IQ")
            if count > len(self.blob):
                raise EOFError
            if item_kind in _SCALARS:
                return list(self.unpack(f"{count}{_SCALARS[item_kind]}"))
            return [self.value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise EOFError
        return self.unpack(_SCALARS[GGUFValueType(kind)])[0]


def _read_tables(cursor: _Cursor, path: Path, blob: np.ndarray) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    _, version, tensor_count, entry_count = cursor.unpack("4sIQQ")
    if version not in _VERSIONS:
        raise InputError(f"{path}: GGUF version {version} (or big-endian) is not supported, only versions 2 and 3")
    metadata = {}
    for _ in range(entry_count):
        key = cursor.text()
        metadata[key] = cursor.value(*cursor.unpack("I"))

    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        (axes,) = cursor.unpack("I")
        shape = cursor.unpack(f"{axes}Q")[::-1]
        kind, offset = cursor.unpack("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise InputError(f"{path}: {name} is of GGML type {kind}, which this gguf package does not know")
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or 0 in shape or shape[-1] % elements:
            raise InputError(f"{path}: {name} has shape {list(shape)}, which does not go with blocks of {elements}")
        size = math.prod(shape) // elements * size
        tensors[name] = StoredTensor(shape, GGMLQuantizationType(kind), offset, size, blob)

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment {alignment} is no number of bytes")
    data = -(-cursor.position // alignment) * alignment
    return metadata, {name: replace(tensor, start=data + tensor.start) for name, tensor in tensors.items()}
