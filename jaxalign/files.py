"""Reading and writing files: errors that name the place, and writes that are whole or absent.

What a training run writes may lie in a bucket of Google Cloud Storage, `gs://BUCKET/...`; all else is on this machine.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
from etils import epath
from safetensors.numpy import save_file

from jaxalign.errors import InputError, InputErrors

AnyPath = Path | epath.Path
"""A path on this machine or, always an `epath.Path`, one in a bucket."""
# The folders of an absolute path, at the beginning of a word, in quotes or behind the = of a setting.
FOLDERS = re.compile(r"(?<![^\s=,'\"`(\[])(?:\\?~)?/(?:[^\s,'\"`]*/)?(?=[^\s/])")


def is_remote(path: str | AnyPath) -> bool:
    """Whether a path lies in a bucket."""
    return str(path).startswith("gs://")


def path_of(text: str) -> AnyPath:
    """The path that a user or a record names, on this machine or in a bucket."""
    if not is_remote(text):
        return Path(text).expanduser()
    if find_spec("gcsfs") is None:
        raise InputError(f"{text}: gs:// needs more packages; pip install 'jaxalign[gs]'")
    # A listing that is kept goes stale: other processes, and Orbax past fsspec, write and delete there too.
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}
    return epath.Path(text)


def check_bucket(path: AnyPath) -> None:
    """Refuses a path in a bucket that is not there, before anything is computed."""
    if is_remote(path):
        bucket = epath.Path("/".join(str(path).split("/")[:3]))
        if not bucket.exists():
            raise InputError(f"{bucket}: no such bucket, or none that this account may list; create it first")


def local_path(text: str) -> Path:
    """The path that a user names for what is written on this machine only; gs:// raises InputError."""
    if is_remote(text):
        raise InputError(f"{text}: only training runs are written to gs://; name a folder on this machine")
    return Path(text).expanduser()


def recorded(value: Any) -> Any:
    """A JSON value as records keep it: `~` for the home folder, whose name is its owner's."""
    if isinstance(value, dict):
        return {key: recorded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [recorded(each) for each in value]
    home = os.path.expanduser("~")
    if not isinstance(value, str) or home in ("/", "~"):
        return value
    return re.sub(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])", "~", value)


def published(text: str) -> str:
    """The text as others may see it: of a place on this machine the name alone; relative paths stay."""
    return FOLDERS.sub("", recorded(text))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: AnyPath) -> str:
    """The file's text, UTF-8, with its newlines as they are, but without a byte-order mark, which is no text."""
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, where a file is needed") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if 4 * text.count("\0") > len(text):  # without its byte-order mark, English text in UTF-16 is UTF-8, too
        raise InputError(f"{path}: UTF-16, as it seems by its NUL characters; save it as UTF-8")
    return text


def read_json(path: AnyPath) -> Any:
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        return parse_json(text, str(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno} ({error.msg}); is it cut off?"
        ) from None


def parse_json(text: str, where: str) -> Any:
    """The JSON document in a text; JSONDecodeError where it is none, InputError where Python's reader gives up.

    So does a key that stands twice in one object, of which Python's reader keeps the last.
    """
    repeated: list[str] = []

    def object_of(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            name = Counter(name for name, _ in items).most_common(1)[0][0]
            begin = json.dumps(found, ensure_ascii=False)[:60]
            repeated.append(f"{where}: the key {name!r} stands there twice; keep one (in {begin} ...)")
        return found

    try:
        document = json.loads(text, object_pairs_hook=object_of)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):
        raise InputError(f"{where}: JSON nested too deeply, or a number of too many digits") from None
    if repeated:
        raise InputErrors(repeated)
    return document


def json_line(line: str, where: str) -> Any:
    try:
        return parse_json(line, where)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON at column {error.colno} ({error.msg})") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Pairs of (row, object), rows counted from 0 and blank lines passed over."""
    for row, line in enumerate(filled_lines(path)):
        yield row, json_line(line, f"{path}, row {row}")


def filled_lines(path: Path) -> Iterator[str]:
    """The lines of a file, but for blank ones; files that were joined may leave a byte-order mark before any."""
    return (line for line in lines_of(read_text(path).replace("\n\ufeff", "\n")) if line.strip())


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends: \\n, \\r\\n or, where there is no \\n at all, \\r.

    A \\r inside a line stays. str.splitlines would also break at U+2028 and U+0085, which occur inside texts.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
        # A member of the archive that is no array comes as bytes.
        if all(isinstance(array, np.ndarray) for array in arrays.values()):
            return arrays
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception:  # whatever a broken archive, or what an array in it says of its type and size, makes of NumPy
        pass
    raise InputError(f"{path}: not a whole .npz file of named, plain arrays (pickled objects are never read)")


FULL = ("No space left on device", "Disk quota exceeded", "File too large")
"""What the system says where no more can be written, whatever library passes it on."""


def full_disk(error: BaseException | None) -> str | None:
    """What an error, or one that it comes from, says of a full disk; None where it says nothing of that."""
    while error is not None:
        if said := [words for words in FULL if words in str(error)]:
            return said[0]
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def full_disk_told(path: AnyPath) -> Iterator[None]:
    """Turns an error that comes of a full disk into InputError that names `path`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or (said := full_disk(error)) is None:
            raise
        raise InputError(
            f"{path}: it cannot be written whole ({said}); free space on its disk, and give the same command again"
        ) from error


def check_writable(folder: Path) -> None:
    """Refuses a folder in which nothing can be written, before anything is computed; it is made if need be."""
    probe = folder / partial_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
    except OSError as error:
        free = "free space on its disk, or " if full_disk(error) else ""
        raise InputError(f"{folder}: nothing can be written there ({error.strerror}); {free}choose another") from None
    finally:
        with suppress(OSError):
            probe.unlink()


@contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the name `path` only if the block ends without an error.

    For a `path` in a bucket it yields one on this machine. What is uploaded appears there whole, or not at all.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / path.name
            yield partial
            path.write_bytes(partial.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(path.with_name(partial_name(path)))
    try:
        with full_disk_told(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path` to fill; it takes the name `path` only if the block ends without an error.

    What lies at `path` is never replaced: unless that is nothing, or an empty folder, it raises InputError.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: there is something already; choose another folder, or remove it")
    partial = path.with_name(partial_name(path))
    try:
        check_writable(partial)
        with full_disk_told(path):
            yield partial
            os.replace(partial, path)
    except InputError as error:
        if str(partial) not in str(error):
            raise
        raise InputError(str(error).replace(str(partial), str(path))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_name(path: AnyPath) -> str:
    """What is no other process's: hosts that share a folder may have processes of one number."""
    return f".{path.name}.{platform.node()}.{os.getpid()}.partial"


def write_text(path: AnyPath, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8"))


def write_json(path: AnyPath, document: Any) -> None:
    """Writes one JSON document, readable: indented, native script as it is."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def write_json_lines(path: AnyPath, rows: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, as transformers reads it."""
    with whole_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        # transformers reads a file only if it says which framework's layout it has.
        save_file(dict(tensors), partial, metadata={"format": "pt"})
        partial.chmod(mode)  # safetensors lets nobody else read what it writes


MINI = Path(__file__).parent / "data" / "mini"


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
