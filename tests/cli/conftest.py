"""Tiny Hugging Face model folders, the command line run in this process, and one finished run of it."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import transformers

from jaxalign import cli
from tests.data.tiny_tokenizers import byte_level

Command = Callable[..., tuple[int, str, str]]

TRAIN = (
    "train",
    "--config.build.sources=zh,th",
    "--config.epochs=2",
    "--config.optimizer.learning_rate=1e-2",
    "--config.log_every=1",
    "--config.heldout_every=4",
)
"""The command that makes `run`, without its model and its folder."""


def save_model(
    folder: Path, width: int, mlp: int = 24, make: Callable[[], transformers.PreTrainedTokenizerFast] = byte_level
) -> Path:
    """A random Llama of two layers over single bytes, or another tokenizer's tokens, as transformers saves it."""
    tokenizer = make()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), width=16)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory) -> Path:
    """A model that an adapter of the first does not fit."""
    return save_model(tmp_path_factory.mktemp("other_model"), width=32)


@pytest.fixture(scope="session")
def jaxalign(tmp_path_factory) -> Command:
    """Runs a command: (exit code, stdout, stderr); `key=value` is `--config.key=value`, behind the other arguments.

    The user's cache is a folder of the tests.
    """
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments: object, **settings: object) -> tuple[int, str, str]:
        words = [*map(str, arguments), *(f"--config.{key}={value}" for key, value in settings.items())]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("XDG_CACHE_HOME", str(cache))
            patch.setattr("sys.argv", ["jaxalign", *words])
            code = cli.main()
        return code, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="session")
def ok(jaxalign) -> Callable[..., str]:
    """Runs a command that must succeed; returns its stdout."""

    def call(*arguments: object, **settings: object) -> str:
        code, out, err = jaxalign(*arguments, **settings)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(jaxalign, tmp_path) -> Callable[..., str]:
    """Runs a command that must be refused; returns its one line of stderr."""

    def call(*arguments: object, **settings: object) -> str:
        out = tmp_path / "out"
        code, _, err = jaxalign(*arguments, **settings, out=out)
        assert code == 2, err
        assert err.count("\n") == 1 and err.startswith("jaxalign: ") and "Traceback" not in err
        left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
        assert left == []
        return err

    return call


@pytest.fixture
def config_file(tmp_path) -> Callable[[str], Path]:
    """Writes a config file whose `get_config` has this body."""

    def write(body: str) -> Path:
        file = tmp_path / "mine.py"
        file.write_text(
            f"from jaxalign.configuration import load_config\n\n\ndef get_config():\n    {body}\n", encoding="utf-8"
        )
        return file

    return write


@pytest.fixture(scope="session")
def run(ok, model_folder, tmp_path_factory) -> Path:
    """A finished training run on the mini set, ten steps."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    ok(*TRAIN, model=model_folder, out=folder)
    return folder


@pytest.fixture(scope="session")
def adapter(ok, run) -> Path:
    """The PEFT folder exported from `run`."""
    folder = run.parent / "adapter"
    ok("export", run, out=folder)
    return folder
