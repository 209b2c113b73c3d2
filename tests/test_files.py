"""Files in a bucket: found as soon as they are there, and written whole or not at all. And who may read a file."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import files
from jaxalign.errors import InputError, InputErrors


def test_a_listing_shows_what_others_have_written_since(storage):
    folder = files.path_of("gs://bucket/listed")
    for name in ("a", "b"):
        storage.write(f"bucket/listed/{name}", b"")
        assert [path.name for path in folder.iterdir()][-1] == name
    del storage.objects["bucket/listed/a"]
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_file_that_fails_half_way_leaves_the_old_one(storage):
    path = files.path_of("gs://bucket/whole/file.json")
    files.write_json(path, {"ä": 1})
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert files.read_json(path) == {"ä": 1}
    assert [key for key in storage.objects if key.startswith("bucket/whole/")] == ["bucket/whole/file.json"]


def test_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path: Path):
    tensors = {"a": np.arange(3, dtype=np.float32)}
    files.write_text(tmp_path / "text", "")
    files.write_tensors(tmp_path / "a.safetensors", tensors)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "text").stat().st_mode
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], tensors["a"])


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    """Whatever JSON is read: configs, indices, results."""
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a":\r\n 1}\r\n')
    assert files.read_json(path) == {"a": 1} and files.read_text(path).startswith("{")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le"):
        path.write_bytes("How many?\nTwo.\n".encode(encoding))
        with pytest.raises(InputError, match=r"config.json: (not UTF-8 text|UTF-16, as it seems).*save it as UTF-8"):
            files.read_text(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": 2}\n\n')
    assert list(files.read_json_lines(path)) == [(0, {"a": 1}), (1, {"a": 2})]


def test_lines():
    assert files.lines_of("a\r\nb\u2028\x85\rc\n\r\r\n") == ["a", "b\u2028\x85\rc", ""]
    assert files.lines_of("a\rb\r") == files.lines_of("a\nb") == ["a", "b"]


def test_every_key_that_stands_twice_is_told_of(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 1, "b": [0, {"c": 1, "c": 1}], "a": {"d": 1, "d": 1}}, {"e": 0, "e": 0}]')
    with pytest.raises(InputErrors) as error:
        files.read_json(path)
    keys = [message.removeprefix(f"{path}: the key ").split(";")[0] for message in error.value.messages]
    assert keys == [f"{key!r} stands there twice" for key in "cdae"]
    assert error.value.messages[0].endswith('keep one (in {"c": 1} ...)')


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file takes more bytes, as on a disk that is full; inside the block only, as pytest may write to one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(tmp_path: Path):
    """By whatever writes: Python, NumPy, or safetensors, whose errors are its own."""
    with (
        largest_file(5000),
        pytest.raises(InputError, match=rf"{tmp_path}/text: it cannot be written whole \(File too large\); free space"),
    ):
        files.write_text(tmp_path / "text", "x" * 6000)
    with (
        largest_file(5000),
        pytest.raises(InputError, match=r"arrays\.npz: it cannot be written"),
        files.whole_file(tmp_path / "arrays.npz") as partial,
        partial.open("wb") as file,
    ):
        np.savez(file, a=np.zeros(2000))
    with (
        largest_file(5000),
        pytest.raises(InputError, match=rf"{tmp_path}/export/a.safetensors: it cannot be written"),
        files.whole_folder(tmp_path / "export") as folder,
    ):
        files.write_tensors(folder / "a.safetensors", {"a": np.zeros(2000, np.float32)})
    with largest_file(100), pytest.raises(InputError, match=rf"{tmp_path}/new: nothing can be written there"):
        files.check_writable(tmp_path / "new")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_full_disk_is_found_among_the_causes_of_an_error(tmp_path: Path):
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("RESOURCE_EXHAUSTED: the save thread failed") from error

    no_space = r"run: it cannot be written whole \(No space left on device\)"
    with pytest.raises(InputError, match=no_space), files.full_disk_told(tmp_path / "run"):
        fail()
    with pytest.raises(ValueError, match="another"), files.full_disk_told(tmp_path / "run"):
        raise ValueError("another")
