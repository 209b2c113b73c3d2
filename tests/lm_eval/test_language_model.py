"""Every type of request against lm-eval's `hf` model, one text at a time there."""

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.model import CachingLM
from tokenizers.processors import TemplateProcessing

from jaxalign import chat_templates
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.evaluation import score as scoring
from jaxalign.evaluation.generate import Answer
from jaxalign.lm_eval import JaxalignLM
from tests.lm_eval.conftest import Both, requests_of
from tests.training.tiny_runs import mesh_of

# Float32 sums of a few log-probabilities of about -5 on both sides.
RTOL = 1e-5

CONTEXTS = ("", "Question: who?\nAnswer:", "Question: where?\nAnswer: ", "Question: who?", "x" * 200)
"""One without text, one that ends in a space, one that another begins with, one of more than the 128 positions."""
CONTINUATIONS = (" a", " bb", " a longer one", "!")
MOST = 16


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of letters and spaces."""
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("abcde  "), random.integers(20, 60))) for _ in range(count)]


def test_log_likelihoods_are_those_of_hf(both: Both):
    asked = requests_of("loglikelihood", *[(context, word) for context in CONTEXTS for word in CONTINUATIONS])
    asked += asked[3:5]
    found, expected = both.ours.loglikelihood(asked), both.hf.loglikelihood(asked)
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=RTOL)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_greedy_continuation_is_called_so(both: Both):
    context = both.ours.tok_encode("Who is it")
    ids = both.hf.model.generate(
        torch.tensor([context]), do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    answer = ids[len(context) :]
    other = [*answer[:2], (answer[2] + 1) % 50, answer[3]]
    asked = [(("", ""), context, answer[:1]), (("", ""), context, answer), (("", ""), context, other)]
    found: Any = both.ours._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in found] == [True, True, False]
    assert [greedy for _, greedy in both.hf._loglikelihood_tokens(asked)] == [True, True, False]


def test_whole_texts_are_read_through_the_windows_of_hf(both: Both):
    # 600 tokens are five windows of 128.
    asked = requests_of("loglikelihood_rolling", ("abc",), ("Some text, and more. " * 30,), ("",), ("abc",))
    np.testing.assert_allclose(both.ours.loglikelihood_rolling(asked), both.hf.loglikelihood_rolling(asked), rtol=RTOL)


def test_generated_texts_are_those_of_hf(both: Both):
    """Texts that a string ends, that the end of text may end, that nothing ends; behind a prompt that is cut too."""
    prompts = ["y" * 200, *texts(4)]
    free = both.hf.generate_until(requests_of("generate_until", *[(text, {"max_gen_toks": MOST}) for text in prompts]))
    asked = requests_of("generate_until", *[(text, {"max_new_tokens": MOST}) for text in prompts])
    assert both.ours.generate_until(asked) == free
    # Strings of the texts themselves: one of a few characters in the middle, and one late.
    settings = {"until": [free[0][5:8], free[2][3:5], free[3][-1:]], "max_gen_toks": MOST, "temperature": 0}
    requests = requests_of("generate_until", *[(text, settings) for text in prompts])
    found = both.ours.generate_until(requests)
    assert found == both.hf.generate_until(requests)
    assert sum(len(text) < len(whole) for text, whole in zip(found, free, strict=True)) >= 3


def test_the_first_string_that_comes_ends_a_text(both: Both):
    """Though another string begins earlier and would be whole a few tokens later."""
    ours = both.ours
    assert ours.text_until(ours.tokenizer.encode("...xyz", add_special_tokens=False), ["xyz", "y"]) in ("...x", " ...x")


def test_an_empty_string_ends_no_text(both: Both):
    assert both.ours.decoding({"until": ["", "?"], "max_gen_toks": 8})[1][:1] == ("?",)


def test_special_tokens_end_a_text_and_are_not_in_it(both: Both):
    eos = both.ours.eot_token_id
    ids = [*both.ours.tokenizer.encode("ab", add_special_tokens=False), eos, eos]
    assert both.ours.text_until(ids, [both.ours.tokenizer.decode([eos])]).strip() == "ab"


def test_what_is_answered_outlasts_an_interruption(both: Both, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "BATCHES", 0)
    asked = requests_of("loglikelihood", *[(text, " a") for text in texts(6)])
    cached: Any = CachingLM(both.ours, str(tmp_path / "answers.db"))
    run = both.ours.scorer.run

    def breaks_off(*arguments):
        if len(cached.dbdict) == 4:
            raise KeyboardInterrupt
        return run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(both.ours.scorer, "run", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            cached.loglikelihood(asked)
    left: list[int] = []
    monkeypatch.setattr(both.ours.scorer, "run", lambda *arguments: left.append(1) or run(*arguments))
    answers = cached.loglikelihood(asked)
    assert len(left) == 2
    assert [tuple(answer) for answer in answers] == both.ours.loglikelihood(asked)


def test_generated_batches_outlast_an_interruption(both: Both, tmp_path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def generate(generator, variables, prompts, stops, max_tokens, has_ended):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [Answer(prompt[:3], False, 0) for prompt in prompts]

    monkeypatch.setattr(type(both.ours.generator), "__call__", generate)
    asked = requests_of("generate_until", *[(text, {"until": ["?"], "max_gen_toks": 8}) for text in texts(11)])
    cached: Any = CachingLM(both.ours, str(tmp_path / "answers.db"))
    with pytest.raises(KeyboardInterrupt):
        cached.generate_until(asked)
    answers = cached.generate_until(asked)
    # Eight, the longest; three that were interrupted, and those once more.
    assert calls == [8, 3, 3]
    starts = [both.ours.tok_encode(request.args[0])[:3] for request in asked]
    assert answers == [both.ours.text_until(ids, ["?"]) for ids in starts]


def test_chat_templates_are_the_tokenizers(both: Both, monkeypatch: pytest.MonkeyPatch):
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It"}]
    with pytest.raises(InputError, match="no chat template"):
        both.ours.apply_chat_template(messages)
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    for tokenizer in (both.ours.tokenizer, both.hf.tokenizer):
        monkeypatch.setattr(tokenizer, "chat_template", template)
    for prompt in (True, False):
        text = both.ours.apply_chat_template(messages, prompt)
        assert text == both.hf.apply_chat_template(messages, prompt) and text.startswith("<user>Who?")
    assert both.ours.chat_template(True) == template
    monkeypatch.setattr(both.ours.tokenizer, "chat_template", "{{ raise_exception('no such role') }}")
    with pytest.raises(InputError, match=r"refuses messages of user, assistant \(no such role\)"):
        both.ours.apply_chat_template(messages)
    monkeypatch.setattr(both.ours.tokenizer, "chat_template", template)
    # A text that spells the begin-of-text token out gets no second one.
    spelt = both.ours.tokenizer.decode([both.ours.prefix_token_id]) + "Who?"
    assert both.ours.tok_encode(spelt) == both.hf.tok_encode(spelt)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample=True"),
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"max_gen_toks": 128}, "max_gen_toks=128"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
    ],
)
def test_other_decoding_is_refused_by_name(both: Both, settings: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        both.ours.generate_until(requests_of("generate_until", ("Who?", settings)))


def test_a_request_without_a_token_is_told_of_and_ends_nothing(both: Both, capsys: pytest.CaptureFixture):
    ours = both.ours
    usual = requests_of("loglikelihood", ("Who?", " a"), ("Who?", " bb"))
    odd = requests_of("loglikelihood", ("Who?", ""), ("", ""), ("  ", "It"))
    expected = ours.loglikelihood(usual)
    assert "warning" not in capsys.readouterr().err
    found = ours.loglikelihood([odd[0], usual[0], odd[1], odd[2], usual[1]])
    np.testing.assert_allclose([found[1][0], found[4][0]], [score for score, _ in expected], rtol=RTOL)
    assert found[0] == found[2] == (0.0, True)
    said = [line for line in capsys.readouterr().err.splitlines() if "a continuation without a token" in line]
    assert len(said) == 2 and "'' -> ''" in said[0] and "'Who?' -> ''" in said[1]
    # What lm-eval makes of white space is a context without a token: scored as behind an empty one.
    asked: Any = [(("  ", "It"), [], ours.tok_encode("  It", add_special_tokens=False))]
    assert ours._loglikelihood_tokens(asked) == ours.loglikelihood(requests_of("loglikelihood", ("", "  It")))
    assert "a context without a token" in capsys.readouterr().err


def test_a_prompt_without_a_token_is_answered(
    both: Both, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    asked: list[list[int]] = []

    def generate(generator, variables, prompts, *_, **__):
        asked.extend(prompts)
        return [Answer([], True, 0)] * len(prompts)

    monkeypatch.setattr(type(both.ours.generator), "__call__", generate)
    settings = {"until": ["?"], "max_gen_toks": 4}
    texts_found = both.ours.generate_until(requests_of("generate_until", ("", settings), ("Who", settings)))
    assert texts_found == ["", ""] and [both.ours.prefix_token_id] in asked
    without = both.ours.tok_encode("") == []
    assert ("a context without a token" in capsys.readouterr().err) is without


def test_a_continuation_of_too_many_tokens_names_itself(both: Both):
    with pytest.raises(InputError, match=r"'Who\?' -> 'x{60}': a continuation of 13"):
        both.ours.loglikelihood(requests_of("loglikelihood", ("Who?", "x" * 130)))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ 10 ** (10 ** 9) }}"])
def test_a_chat_template_that_does_not_end_is_ended(both: Both, monkeypatch: pytest.MonkeyPatch, template: str):
    """Whether it runs in a loop or in one long operation; the next one is rendered as ever."""
    monkeypatch.setattr(chat_templates, "SECONDS", 1)
    monkeypatch.setattr(both.ours.tokenizer, "chat_template", template)
    with pytest.raises(InputError, match=r"chat template refuses messages of user .*not done after 1 seconds"):
        both.ours.apply_chat_template([{"role": "user", "content": "Who?"}])
    monkeypatch.setattr(both.ours.tokenizer, "chat_template", "<{{ messages[0].content }}>")
    assert both.ours.apply_chat_template([{"role": "user", "content": "Who?"}]) == "<Who?>"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "path= is needed"),
        ({"path": "nowhere", "pretrained": "gpt2"}, "pretrained and path are one argument"),
        ({"pretrained": "nowhere"}, "nowhere"),
        ({"pretrained": "nowhere", "peft": "a", "adapter": "b"}, "peft and adapter are one argument"),
        ({"path": "nowhere", "self": 1}, "self: no such argument"),
        ({"path": "nowhere", "load_in_8bit": True}, "load_in_8bit: no such argument; there are .*param_dtype"),
        ({"path": "nowhere", "batch_size": "automatic"}, "batch_size=automatic"),
        ({"path": "nowhere", "batch_tokens": 0}, "batch_tokens=0"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"param_dtype": "int4"}, "nf4"),
        ({"max_length": 129}, "max_length=129"),
        ({"max_length": "long"}, "max_length=long"),
        ({"adapter": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_arguments(folders, arguments: dict[str, Any], named: str):
    # A wrong setting is found in a model that is there; a wrong argument before one is looked for.
    there = {} if {"path", "pretrained"} & set(arguments) or not arguments else {"path": str(folders["qwen2"])}
    with pytest.raises(InputError, match=named):
        JaxalignLM.create_from_arg_obj({**there, **arguments})


@pytest.mark.parametrize(
    ("given", "most", "size"), [("auto", None, 8), ("auto:4", None, 8), ("auto", 3, 3), (5, None, 5)]
)
def test_a_batch_size_may_be_left_to_us(
    folders, monkeypatch: pytest.MonkeyPatch, given: Any, most: int | None, size: int
):
    monkeypatch.setattr("jaxalign.runtime.make_mesh", lambda *sizes: mesh_of())
    ours = JaxalignLM.create_from_arg_obj(
        {"pretrained": str(folders["qwen2"])}, {"batch_size": given, "max_batch_size": most}
    )
    assert ours.generator.runner.batch_size == size


def test_a_shorter_length_is_kept_to(folders, caplog: pytest.LogCaptureFixture):
    from lm_eval.models.huggingface import HFLM

    folder = str(folders["qwen2"])
    caplog.set_level(logging.ERROR)
    hf = HFLM(pretrained=folder, dtype="float32", device="cpu", max_length=40)
    ours = JaxalignLM(path=folder, adapter=None, max_length=40)
    whole = requests_of("loglikelihood_rolling", ("Some text, and more. " * 5,))
    np.testing.assert_allclose(ours.loglikelihood_rolling(whole), hf.loglikelihood_rolling(whole), rtol=RTOL)
    asked = requests_of("loglikelihood", ("z" * 60, " abc"))
    np.testing.assert_allclose(ours.loglikelihood(asked)[0][0], hf.loglikelihood(asked)[0][0], rtol=RTOL)


def test_control_tokens_in_a_text_are_those_of_hf(both: Both):
    """Few-shot texts and chat templates come as one text, so what spells a control token is one, as in `hf`."""
    end = both.hf.tokenizer.eos_token
    for text in (f"a{end} b", f"{end}a", both.hf.tokenizer.decode(both.hf.prefix_token_id) + "a", "a"):
        for added in (None, True, False):
            assert both.ours.tok_encode(text, added) == both.hf.tok_encode(text, added)


def test_nothing_stands_behind_a_context(both: Both, monkeypatch: pytest.MonkeyPatch):
    """A tokenizer with add_eos_token ends every context with an end of text, in `hf`."""
    plain = [both.ours.tok_encode("a b", added) for added in (None, True, False)]
    tokenizer = copy.deepcopy(both.ours.tokenizer)
    end, begin = str(tokenizer.eos_token), both.ours.model.tokenizer.bos or ""
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end) if token]
    single = f"{begin} $A {end}".strip()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    assert tokenizer.encode("a b")[-1] == tokenizer.eos_token_id
    monkeypatch.setattr(both.ours, "model", replace(both.ours.model, tokenizer=Tokenizer(tokenizer)))
    assert [both.ours.tok_encode("a b", added) for added in (None, True, False)] == plain
