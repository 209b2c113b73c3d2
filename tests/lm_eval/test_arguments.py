"""What `--model_args` names reaches the model, whatever it is; and what it may not be is refused in one line."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.configuration import config_with
from jaxalign.lm_eval import ARGUMENTS, JaxalignLM
from jaxalign.loading import merged
from jaxalign.model.lora import LoraConfig, lora_shapes
from jaxalign.model.peft import save_adapter
from jaxalign.verbs.export import logits_of
from jaxalign.verbs.settings import load_model
from tests.any_input import TEXTS, quick, value_or_one_line
from tests.data.tiny_tokenizers import byte_level
from tests.lm_eval.conftest import requests_of
from tests.model.test_gguf import write_gguf
from tests.model.tiny_models import tiny_model
from tests.training.tiny_runs import mesh_of

ASKED = [("Who is it?", " a"), ("Who is it? It is", " b."), ("x", "yz")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model as a folder and as a GGUF file, and an adapter of it."""
    root = tmp_path_factory.mktemp("places")
    tokenizer = byte_level(merges=(("a", "b"),))
    model = tiny_model("qwen2", vocabulary=len(tokenizer), times=4)
    model.torch_model.save_pretrained(root / "folder")
    tokenizer.save_pretrained(root / "folder")
    write_gguf(
        root / "model.gguf",
        model,
        tokenizer_model="gpt2",
        tokenizer_pre="gpt-2",
        token_list=sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__),
        token_types=[1] * (len(tokenizer) - 1) + [3],
        token_merges=["a b"],
        eos_token_id=tokenizer.eos_token_id,
    )
    lora, rng = LoraConfig(2, 4.0), np.random.default_rng(0)
    shapes = lora_shapes(model.config, lora)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes)
    save_adapter(root / "adapter", tree, lora, "base")
    return {name: root / name for name in ("folder", "model.gguf", "adapter")}


def of_the_library(arguments: dict[str, Any]) -> list[float]:
    """The log-likelihoods of ASKED by the logits of the model that a config of these arguments names."""
    config = config_with({"model": arguments["path"], **{k: v for k, v in arguments.items() if k != "path"}})
    model = merged(load_model(config), config.param_dtype)
    found = []
    for context, continuation in ASKED:
        ids, count = model.tokenizer.ids(context + continuation), len(model.tokenizer.ids(continuation))
        logits = logits_of(model, np.array([ids], np.int32))[0].astype(np.float64)
        scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found.append(sum(scores[place - 1, ids[place]] for place in range(len(ids) - count, len(ids))))
    return found


@pytest.mark.parametrize(
    ("path", "arguments", "differs"),
    [
        ("model.gguf", "", False),
        ("folder", "adapter={adapter},param_dtype=int8", True),
        ("model.gguf", "adapter={adapter},param_dtype=nf4", True),
    ],
)
def test_arguments_reach_the_model(places, monkeypatch, path, arguments, differs):
    monkeypatch.setattr("jaxalign.runtime.make_mesh", lambda *sizes: mesh_of())
    arguments = arguments.format(adapter=places["adapter"])
    ours = JaxalignLM.create_from_arg_string(f"path={places[path]},{arguments}")
    found = [score for score, _ in ours.loglikelihood(requests_of("loglikelihood", *ASKED))]
    named = dict(argument.split("=") for argument in arguments.split(",") if argument)
    # Float32 sums of a few log-probabilities of about -5.
    np.testing.assert_allclose(found, of_the_library({"path": str(places[path]), **named}), rtol=1e-5)
    plain = of_the_library({"path": str(places["folder"])})
    assert np.allclose(found, plain, rtol=1e-5) is not differs


NAMES = st.sampled_from([*ARGUMENTS, "batch_size", "max_batch_size", "device", "pretrained", "self"]) | TEXTS
WORDS = ["None", "true", "False", "0", "-1", "1.5", "1e400", "٣", "bfloat16", "nf4", "nowhere", "a=b", "[1]", "{}"]
GIVEN = TEXTS | st.sampled_from([*WORDS, "9" * 400])


@quick
@given(st.lists(st.builds("{}={}".format, NAMES, GIVEN) | NAMES, max_size=5).map(",".join))
def test_arguments_of_any_text(monkeypatch, arguments):
    """They are refused, or come as far as to a model, which is not there."""
    monkeypatch.setattr("jaxalign.lm_eval.load_model", lambda config: None)
    monkeypatch.setattr("jaxalign.lm_eval.merged", lambda model, param_dtype: stop())
    with suppress(Reached):
        assert value_or_one_line(JaxalignLM.create_from_arg_string, arguments) is None


class Reached(Exception):
    """The arguments are those of a model."""


def stop():
    raise Reached
