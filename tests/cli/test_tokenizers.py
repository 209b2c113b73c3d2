"""What a command says and records of its model's tokenizer; and texts that spell control tokens, on their way in."""

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.cli.conftest import save_model
from tests.data.tiny_tokenizers import sentencepiece_style

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
    code, _, err = jaxalign(
        "evaluate", *ROWS, "--config.tasks=emotion", f"--config.model={model}", f"--config.out={out}"
    )
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    assert [says in line and str(model) in line for line in warnings] == ([True] if says else [])
    assert json.loads((out / "results.json").read_text())["bos"] == bos


def test_a_run_records_the_begin_of_text_of_its_template(run: Path):
    assert json.loads((run / "run.json").read_text())["bos"] is None
