"""Models and adapters that are none, or not each other's: the line names the folder, and nothing is written."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

VERBS = {
    "evaluate": ("evaluate", "--config.languages=en,de", "--config.rows=0:2"),
    "probe": ("probe", "--config.languages=en,de", "--config.rows=0:4"),
    "train": ("train", "--config.tasks=paws", "--config.build.sources=de", "--config.steps=2"),
}
with_every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@with_every_verb
def test_no_model(refused, verb):
    assert "config.model" in refused(*verb)
    assert "nowhere" in refused(*verb, "--config.model=nowhere")


@with_every_verb
@pytest.mark.parametrize(
    "content",
    [b"", b"GG", b"no such thing" * 10, b"GGUF", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + b"\1" + bytes(15)],
    ids=["empty", "half a magic", "other", "magic alone", "no counts", "no entries"],
)
def test_a_file_that_is_no_gguf(refused, tmp_path, verb, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert str(file) in refused(*verb, f"--config.model={file}")


def without(pattern):
    """The folder lacks the files of the pattern."""

    def spoil(folder):
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def write(name, content):
    def spoil(folder):
        (folder / name).write_text(content)

    return spoil


def change_config(**values):
    def spoil(folder):
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**document, **values}))

    return spoil


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


@with_every_verb
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(without("tokenizer*"), "tokenizer", id="no tokenizer"),
        pytest.param(write("tokenizer.json", "[]"), "tokenizer", id="a tokenizer that is a list"),
        pytest.param(write("tokenizer.json", ""), "tokenizer", id="an empty tokenizer"),
        pytest.param(without("config.json"), "config.json", id="no config"),
        pytest.param(write("config.json", "{"), "config.json", id="a truncated config"),
        pytest.param(write("config.json", "[]"), "config.json", id="a config that is a list"),
        pytest.param(change_config(frobnicate=1), "frobnicate", id="an unknown key"),
        pytest.param(change_config(model_type="mamba"), "mamba", id="another family"),
        pytest.param(change_config(hidden_size="16"), "hidden_size", id="a text for a number"),
        pytest.param(change_config(vocab_size=200), "embedding of 200", id="a smaller vocabulary"),
        pytest.param(without("model.safetensors"), "model.safetensors", id="no weights"),
        pytest.param(cut_weights, "model.safetensors", id="truncated weights"),
        pytest.param(drop_a_tensor, "model.norm.weight", id="a missing tensor"),
    ],
)
def test_a_folder_that_is_no_model(refused, tmp_path, model_folder, verb, spoil, named):
    folder = shutil.copytree(model_folder, tmp_path / "spoilt")
    spoil(folder)
    message = refused(*verb, f"--config.model={folder}")
    assert str(folder) in message and named in message


@with_every_verb
def test_a_folder_that_is_no_adapter(refused, tmp_path, model_folder, adapter, verb):
    command = (*verb, f"--config.model={model_folder}")
    assert "absent" in refused(*command, f"--config.adapter={tmp_path / 'absent'}")
    assert "adapter_config.json" in refused(*command, f"--config.adapter={model_folder}")
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint yet" in refused(*command, f"--config.adapter={tmp_path / 'started'}")
    cut = shutil.copytree(adapter, tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert str(weights) in refused(*command, f"--config.adapter={cut}")
    weights.unlink()
    assert str(weights) in refused(*command, f"--config.adapter={cut}")


@with_every_verb
def test_an_adapter_of_another_model(refused, other_model_folder, run, adapter, verb):
    for other in (run, adapter):
        message = refused(*verb, f"--config.model={other_model_folder}", f"--config.adapter={other}")
        assert str(other) in message and "model" in message
