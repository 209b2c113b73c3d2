"""Whatever stands in the files of results, probes and runs, it is read, or refused in one line."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.probing.neurons import check_fits, read_counts, read_selection, specific_neurons
from jaxalign.reporting.folders import read_probes, read_results, read_run
from tests.any_input import VALUES, quick, spoilt_bytes, spoilt_document, thorough, value_or_one_line, written
from tests.reporting.folders import (
    write_attribution,
    write_effect,
    write_evaluation,
    write_geometry,
    write_lens,
    write_pca,
    write_run,
    write_selection,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation of three rows, a run and all probes, as they are written."""
    folder = tmp_path_factory.mktemp("whole")
    write_evaluation(folder, {("snli", "en"): 0.6}, rows=range(3))
    write_run(folder)
    languages = ["en", "de"]
    for write in (write_lens, write_geometry, write_attribution):
        write(folder, languages, layers=2)
    write_effect(folder, "masking", languages)
    write_pca(folder, languages, ["en"], layers=2)
    write_selection(folder, [(0, 1)])
    return folder


def write_spoilt(data, folder, place, name):
    """The JSON file of that name, or the first three of its lines, but for a value or a few bytes."""
    text = (folder / name).read_text()
    if name.endswith(".json"):
        document = data.draw(spoilt_document(json.loads(text)) | VALUES)
        written(place / name, json.dumps(document))
        return
    rows = data.draw(spoilt_document(list(map(json.loads, text.splitlines()[:3]))) | st.lists(VALUES, max_size=2))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    written(place / name, data.draw(st.sampled_from([lines, TOO_DEEP, TOO_LONG]) | spoilt_bytes(f"{lines}\n".encode())))


TOO_DEEP, TOO_LONG = "[" * 3000 + "\n", "9" * 5000 + "\n"


def copy(folder, place, *names):
    """These files as they are."""
    for name in names:
        written(place / name, (folder / name).read_bytes())


@thorough
@given(data=st.data(), name=st.sampled_from(["results.json", "predictions.jsonl", "timing.json"]))
def test_results_of_any_shape(tmp_path, folder, data, name):
    copy(folder, tmp_path, "results.json", "predictions.jsonl", "timing.json")
    write_spoilt(data, folder, tmp_path, name)
    results = value_or_one_line(read_results, tmp_path)
    for cell in results.cells.values() if results else []:
        assert 0 <= cell.accuracy <= 1 and cell.mean_gold_mass >= 0


@thorough
@given(data=st.data(), name=st.sampled_from(["run.json", "metrics.jsonl"]))
def test_runs_of_any_shape(tmp_path, folder, data, name):
    copy(folder, tmp_path, "run.json", "metrics.jsonl")
    write_spoilt(data, folder, tmp_path, name)
    run = value_or_one_line(read_run, tmp_path)
    assert run is None or all(isinstance(code, str) for code in (*run.languages, *run.sources, *run.targets))


PROBES = ("logit_lens", "pca", "geometry", "attribution", "masking")


@thorough
@given(data=st.data(), name=st.sampled_from(PROBES))
def test_descriptions_of_probes_of_any_shape(tmp_path, folder, data, name):
    for file in tmp_path.iterdir():
        file.unlink()
    copy(folder, tmp_path, f"{name}.npz")
    write_spoilt(data, folder, tmp_path, f"{name}.json")
    value_or_one_line(read_probes, tmp_path)


HEADERS = st.builds(
    lambda descr, order, shape: repr({"descr": descr, "fortran_order": order, "shape": shape}),
    st.sampled_from(["<i4", "<f4", "|O", "<U2", "<U", "<U100000000", "x", [("a", "<i4")], [], "<M8[s]"]) | VALUES,
    st.booleans(),
    st.lists(st.sampled_from([0, 1, 2, 10**6, 10**11, 2**63, -1]), max_size=3).map(tuple),
) | st.sampled_from(["{", "(" * 200, "{'descr': [}", "{[]: 1}", "{1: 2, 'a': 3}", "  1\n 2", "'\ud800'"])
NAMES = st.sampled_from(
    ["en", "languages", "active", "tokens", "prefix_active", "explained_variance_ratio", "two\nlines", "ä/b"]
)


def npy(header: str, data: bytes = bytes(32)) -> bytes:
    """An .npy file with any header."""
    encoded = header.encode("latin-1", "replace")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded) % 2**16) + encoded + data


def zipped(files: dict[str, bytes]) -> bytes:
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as file:
        for name, content in files.items():
            file.writestr(f"{name}.npy", content)
    return blob.getvalue()


LARGEST = "{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000, 100)}"
ARRAYS = st.dictionaries(NAMES, HEADERS.map(npy) | st.binary(max_size=60), max_size=3).map(zipped)


@thorough
@given(data=st.data())
def test_arrays_of_any_bytes(tmp_path, folder, data):
    whole = (folder / "selection.npz").read_bytes()
    path = written(tmp_path / "arrays.npz", data.draw(st.one_of(ARRAYS, spoilt_bytes(whole), st.binary(max_size=60))))
    own = value_or_one_line(read_selection, path, ["en"])
    if own is not None:
        value_or_one_line(check_fits, own, 2, 10)
        specific_neurons(own)
    value_or_one_line(read_counts, path)
    copy(folder, tmp_path, "pca.json")
    written(tmp_path / "pca.npz", path.read_bytes())
    value_or_one_line(read_probes, tmp_path)


COUNTS = st.fixed_dictionaries(
    {
        "languages": st.lists(st.sampled_from(["en", "de", "x y", "", "EN"]), max_size=3).map(np.array),
    },
    optional={
        name: st.builds(
            lambda shape, kind, value: np.full(shape, value).astype(kind),
            st.lists(st.integers(0, 3), max_size=4),
            st.sampled_from(["i1", "u1", "i8", "u8", "f4", "?", "U3"]),
            st.sampled_from([-1, 0, 1, 100]),
        )
        for name in ("active", "tokens", "prefix_active", "prefix_tokens")
    },
)


@pytest.mark.parametrize(
    "content",
    [b"x", npy("{"), npy("{[]: 1}"), npy("{1: 2, 'a': 3}"), npy(LARGEST)],
    ids=["no array", "cut off", "a list as key", "keys of two types", "terabytes"],
)
def test_what_numpy_trips_over(tmp_path, content):
    with pytest.raises(InputError, match=r"not a whole \.npz file"):
        read_selection(written(tmp_path / "arrays.npz", zipped({"en": content})), ["en"])


@quick
@given(COUNTS)
def test_counts_of_any_shape(tmp_path, arrays):
    np.savez(tmp_path / "counts.npz", **arrays)
    counts = value_or_one_line(read_counts, tmp_path / "counts.npz")
    if counts is not None:
        assert counts.active.shape[:1] == counts.tokens.shape == (len(counts.languages),) and counts.tokens.min() > 0
