"""Models fetched from a hub on this machine by huggingface_hub itself, over HTTP."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from jaxalign.errors import InputError
from jaxalign.model.hub import CONFIG_FILES, HubId, hub_id, local_model, model_name
from tests.any_input import TEXTS, quick, value_or_one_line
from tests.fake_hub import COMMIT, FakeHub, served_hub

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{ }",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    SHARDS[0]: save({"first": np.arange(50_000, dtype=np.float32)}),
    SHARDS[1]: save({"second": np.arange(60_000, dtype=np.float32)}),
}
"""What is fetched of `ORG`."""
OTHERS = {
    "README.md": b"about",
    "modeling_own.py": b"import os",
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": save({"all": np.zeros(3)}),
    "onnx/model.safetensors": save({"other": np.zeros(3)}),
    "original/config.json": b"{}",
    "tokenizer/tokenizer.json": b"{}",
}
"""What lies beside it."""


@pytest.fixture
def endpoint(monkeypatch):
    """Sets what HF_ENDPOINT sets: huggingface_hub reads the environment once a process, when it is imported."""

    def set_to(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    return set_to


@pytest.fixture
def hub(tmp_path, monkeypatch, endpoint):
    """A hub with one model, and an empty cache."""
    with served_hub() as hub:
        hub.models["org/model"] = MODEL | OTHERS
        endpoint(hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "")
        yield hub


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        local_model(text)
    message = str(caught.value)
    assert message.startswith(f"model={text}: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/model", HubId("org/model", None)),
        ("org/model@v1.0", HubId("org/model", "v1.0")),
        ("org/model@refs/pr/3", HubId("org/model", "refs/pr/3")),
        ("Qwen/Qwen2.5-7B", HubId("Qwen/Qwen2.5-7B", None)),
        *((text, None) for text in ("nowhere", "/org/model", "./org/model", "../org/model", "~/model", "", "a/b/c")),
        *((text, None) for text in ("org/model.gguf", "org/model.GGUF", "org/model@", "org/model@../../main")),
        *((text, None) for text in ("org/model@main\n", "gs://org/model")),
    ],
)
def test_what_is_taken_for_an_id(text, found):
    assert hub_id(text) == found


PARTS = st.sampled_from(
    ["org", "model", "a--b", "a..b", "-", "_", ".", "x." * 60, "v.git", "é", "\0", "\n", "..", "v1.0", "%2e%2e"]
)


@quick
@given(
    st.builds("{}/{}{}".format, PARTS, PARTS, PARTS.map("@{}".format) | st.just("")),
    st.lists(PARTS | st.sampled_from("/@") | TEXTS, max_size=5).map("".join),
)
def test_names_of_any_text(hub, id_like, text):
    for name in (id_like, text):
        path = value_or_one_line(local_model, name)
        assert path is None or path == Path(name) or path.name == COMMIT


def test_a_path_that_is_there_is_no_id(tmp_path, monkeypatch, hub):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_model("org/model") == Path("org/model")
    assert hub.requests == []


def test_a_sharded_model_is_fetched_once_and_nothing_else_of_it(hub):
    folder = local_model("org/model")
    assert files_in(folder) == MODEL
    assert model_name(folder) == f"org/model@{COMMIT}"
    assert model_name(Path("models/snapshots/x")) == "models/snapshots/x"
    assert set(hub.gets()) == set(MODEL)
    hub.requests.clear()
    assert local_model("org/model@v1.0") == folder
    assert hub.gets() == {}


def test_a_plan_fetches_the_config_alone(hub):
    folder = local_model("org/model", CONFIG_FILES)
    assert set(files_in(folder)) == {"config.json"} == set(hub.gets())
    assert files_in(local_model("org/model")) == MODEL  # and what is missing later


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(hub, monkeypatch):
    piece = 2**12  # what came of a piece is asked for again
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece)
    hub.cut[SHARDS[1]] = 2
    assert files_in(local_model("org/model")) == MODEL
    size = len(MODEL[SHARDS[1]])
    first = size // 2 // piece * piece
    second = first + (size - first) // 2 // piece * piece
    ranges = [asked for _, path, asked in hub.requests if path.endswith(f"content/org/model/{SHARDS[1]}")]
    assert ranges == [None, f"bytes={first}-", f"bytes={second}-"]


def test_a_download_that_failed_goes_on_with_what_is_missing(hub):
    hub.broken.add(SHARDS[1])
    message = refusal("org/model")
    assert "500" in message and SHARDS[1] in message
    hub.broken.clear()
    hub.requests.clear()
    assert files_in(local_model("org/model")) == MODEL
    assert SHARDS[0] not in hub.gets() and hub.gets()[SHARDS[1]] > 0


def test_what_the_hub_has_not(hub):
    """Its library's own words, and what to do."""
    assert "Repository Not Found" in refusal("org/absent") and "log in" in refusal("org/absent")
    assert "Revision Not Found" in refusal("org/model@v9")
    assert "Cannot have -- or .." in refusal("org/a--b")
    hub.listed_only.add(SHARDS[0])
    assert f"Entry Not Found for url: {hub.url}/org/model/resolve/{COMMIT}/{SHARDS[0]}" in refusal("org/model")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_needs_a_token(hub, status, monkeypatch):
    hub.gated, hub.gated_status = "org/model", status
    message = refusal("org/model")
    assert "gated" in message and f"{hub.url}/api/models/org/model" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert files_in(local_model("org/model")) == MODEL


def test_pickled_weights_are_refused_and_not_fetched(hub):
    kept = {name: content for name, content in (MODEL | OTHERS).items() if not name.endswith(".safetensors")}
    hub.models["org/pickled"] = kept
    message = refusal("org/pickled")
    assert "pytorch_model.bin" in message and "run code" in message
    assert "pytorch_model.bin" not in hub.gets()
    hub.models["org/gguf"] = {"config.json": b"{}", "model-q4.gguf": b"GGUF"}
    assert "model-q4.gguf" in refusal("org/gguf") and "model-q4.gguf" not in hub.gets()
    hub.models["org/empty"] = {"config.json": b"{}"}
    assert "no model*.safetensors in it" in refusal("org/empty")


def test_no_network(hub, endpoint):
    with served_hub() as other:
        gone = other.url
    local_model("org/model", CONFIG_FILES)
    endpoint(gone)
    assert "Connection refused" in refusal("org/model")
    endpoint(hub.url)
    folder = local_model("org/model")
    endpoint(gone)
    assert local_model("org/model") == folder
    message = refusal("org/other")
    assert "Connection refused" in message and constants.HF_HUB_CACHE in message and "no such folder here" in message


# The same in processes of their own, which read the environment.

FETCH = """
import sys
from jaxalign.errors import InputError
from jaxalign.model.hub import local_model
try:
    print(local_model(sys.argv[1]))
except InputError as error:
    sys.exit(str(error))
"""


def process(hub: FakeHub, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """`local_model("org/model")` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, "org/model"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_TOKEN": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_in_the_middle_and_started_again(tmp_path):
    with served_hub() as hub:
        hub.models["org/model"] = MODEL
        hub.held.add(SHARDS[1])
        killed = process(hub, tmp_path)
        assert hub.half_sent.wait(60)
        folder = tmp_path / "hub" / "models--org--model" / "snapshots" / COMMIT
        # Files come side by side: the first shard may be a moment later than half of the second.
        for _ in range(600):
            if (folder / SHARDS[0]).exists():
                break
            assert killed.poll() is None
            hub.released.wait(0.1)
        killed.kill()
        killed.communicate()
        hub.held.clear()
        hub.requests.clear()
        second = process(hub, tmp_path)
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0 and err == "", err
        assert out.strip() == str(folder) and files_in(folder) == MODEL
        assert SHARDS[0] not in hub.gets()

        hub.requests.clear()
        offline = process(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert offline.communicate(timeout=120)[0].strip() == str(folder)
        empty = process(hub, tmp_path / "empty", HF_HUB_OFFLINE="1")
        _, err = empty.communicate(timeout=120)
        assert empty.returncode == 1 and "HF_HUB_OFFLINE" in err and err.count("\n") == 1
        assert hub.requests == []
