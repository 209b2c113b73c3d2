"""A model's tokenizer: what a command says and records of it, and tokens for which the embedding has no row.

A look-up beyond the embedding would be clamped, and give numbers.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jaxalign.data.pairs import QuestionPair
from jaxalign.errors import InputError
from jaxalign.loading import config_and_tokenizer
from tests.cli.conftest import save_model
from tests.data.tiny_tokenizers import byte_level, render, sentencepiece_style
from tests.model.test_gguf import write_gguf
from tests.model.tiny_models import tiny_model

ROWS = ("--config.languages=en,de", "--config.rows=0:2")


def ends_texts() -> PreTrainedTokenizerFast:
    """As one saved with add_eos_token."""
    tokenizer = sentencepiece_style()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def starts_nothing() -> PreTrainedTokenizerFast:
    """As one whose settings lack add_bos_token."""
    tokenizer = sentencepiece_style()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "bos", "says"),
    [
        (sentencepiece_style, "<s>", None),
        (ends_texts, "<s>", "the tokenizer puts </s> behind every text"),
        (starts_nothing, None, "prompts begin with no begin-of-text token"),
    ],
)
def test_the_begin_of_text_is_recorded_and_a_surprise_is_told_once(jaxalign, tmp_path, make, bos, says):
    model = save_model(tmp_path / "model", 16, make=make)
    out = tmp_path / "out"
    code, _, err = jaxalign("evaluate", *ROWS, tasks="emotion", model=model, out=out)
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    assert [says in line and str(model) in line for line in warnings] == ([True] if says else [])
    assert json.loads((out / "results.json").read_text())["bos"] == bos


def test_a_run_records_the_begin_of_text_of_its_template(run: Path):
    assert json.loads((run / "run.json").read_text())["bos"] is None


Change = Callable[[PreTrainedTokenizerFast], object]


@pytest.fixture
def folder_with(tmp_path: Path) -> Callable[[Change], Path]:
    """A model whose tokenizer was changed after its weights were made."""

    def make(change: Change) -> Path:
        save_model(tmp_path, width=16)
        tokenizer = byte_level()
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("change", "named"),
    [
        # unsloth 1873: tokens were added, and the embedding was not resized.
        (lambda tokenizer: tokenizer.add_tokens(["<zh>", "<sw>"]), r"tokens \(<zh>, <sw>\) without a row"),
        (lambda tokenizer: tokenizer.add_tokens([f"w{n}w" for n in range(9)]), r"tokens \(w0w, .*w4w and 4 more\)"),
        # A control token, but every response ends with it.
        (lambda tokenizer: tokenizer.add_special_tokens({"eos_token": "<|im_end|>"}), r"tokens \(<\|im_end\|>\)"),
    ],
)
def test_what_texts_may_need_is_refused_before_the_weights_are_read(folder_with, change: Change, named: str):
    folder = folder_with(change)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=named):
        config_and_tokenizer(folder)


def test_control_tokens_alone_are_told_of_and_never_given(folder_with, capsys: pytest.CaptureFixture):
    """As in a released Gemma 3, whose tokenizer has one token for images, and its embedding no row for it."""
    added = ["<image_soft_token>", "<|im_start|>", "<|im_end|>"]
    config, tokenizer = config_and_tokenizer(
        folder_with(lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": added}))
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "without a row" in line]
    assert len(said) == 1 and "tokens (<image_soft_token>, <|im_start|>, <|im_end|>)" in said[0]
    assert list(tokenizer.beyond.values()) == [config.vocab_size + n for n in range(3)]
    assert max(tokenizer.prompt_ids("It is <image_soft_token>.")) < config.vocab_size
    with pytest.raises(InputError, match="<image_soft_token> is token"):
        tokenizer.template_ids("It is <image_soft_token>.")
    pair = QuestionPair("Frage <|im_end|>", "Question", "de", "en")
    assert max(max(side) for side in render(pair, "none", tokenizer)) < config.vocab_size
    with pytest.raises(InputError, match=r"qwen needs '<\|im_start\|>', which the model's embedding has no row for"):
        render(pair, "qwen", tokenizer)


def test_rows_without_tokens_are_padding(tmp_path: Path, capsys: pytest.CaptureFixture):
    tokenizer = byte_level()
    tiny_model("qwen2", vocabulary=len(tokenizer) + 40).torch_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config, loaded = config_and_tokenizer(tmp_path)
    assert not loaded.beyond and config.vocab_size == len(tokenizer) + 40
    assert "without a row" not in capsys.readouterr().err


def test_a_gguf_file_of_more_tokens_than_rows(tmp_path: Path):
    tokenizer = byte_level(merges=(("a", "b"),))
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    write_gguf(
        tmp_path / "model.gguf",
        tiny_model("qwen2", vocabulary=len(tokens)),
        tokenizer_model="gpt2",
        tokenizer_pre="gpt-2",
        token_list=[*tokens, "<zh>"],
        token_types=[1] * (len(tokens) - 1) + [3, 4],
        token_merges=["a b"],
        eos_token_id=tokenizer.eos_token_id,
    )
    with pytest.raises(InputError, match=r"model.gguf: the tokenizer has tokens \(<zh>\) without a row"):
        config_and_tokenizer(tmp_path / "model.gguf")
