"""A tiny Hugging Face model folder, and the command line run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxalign.cli import main

EOS = "<eos>"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A random Llama of two layers over single bytes, as transformers saves it."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**alphabet, EOS: len(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def jaxalign(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: (exit code, stdout, stderr). The user's cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["jaxalign", *map(str, arguments)])
        capsys.readouterr()
        code = main.main()
        return code, *capsys.readouterr()

    return call
