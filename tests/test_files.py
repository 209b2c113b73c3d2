"""Files in a bucket: found as soon as they are there, and written whole or not at all. And who may read a file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import files


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
