import pytest

from jaxalign.data.pairs import QuestionPair
from jaxalign.data.tokenizer import AT_ONCE, TEMPLATES, Tokenizer, render_all, resolve_template
from jaxalign.errors import InputError
from tests.data.tiny_tokenizers import byte_level, render, sentencepiece_style

PAIR = QuestionPair('Frage: "\nTranslate the input from German to English:\n', 'Question: "', "de", "en")
MISTRAL = Tokenizer(sentencepiece_style())
QWEN = Tokenizer(byte_level(special=("<|im_start|>", "<|im_end|>")))


@pytest.mark.parametrize(
    ("template", "tokenizer", "prompt", "response"),
    [
        (
            "default",
            MISTRAL,
            'Human: Frage: "\nTranslate the input from German to English:\n\nAssistant: ',
            'Question: "</s>',
        ),
        (
            "mistral",
            MISTRAL,
            '<s>[INST] Frage: "\nTranslate the input from German to English:\n [/INST]',
            'Question: "</s>',
        ),
        (
            "qwen",
            QWEN,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            'Frage: "\nTranslate the input from German to English:\n<|im_end|>\n<|im_start|>assistant\n',
            'Question: "<|im_end|>',
        ),
        (
            "alpaca",
            QWEN,
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\n"
            'Frage: "\nTranslate the input from German to English:\n\n\n### Response:',
            'Question: "<|endoftext|>',
        ),
        ("none", MISTRAL, '<s>Frage: "\nTranslate the input from German to English:\n', 'Question: "</s>'),
        ("none", QWEN, 'Frage: "\nTranslate the input from German to English:\n', 'Question: "<|endoftext|>'),
    ],
)
def test_text_of_each_template(template, tokenizer, prompt, response):
    prompt_ids, response_ids = render(PAIR, template, tokenizer)
    # The ▁ that a SentencePiece-style tokenizer puts before each side decodes to a space.
    space = " " if tokenizer is MISTRAL else ""
    opening = "<s>" if prompt.startswith("<s>") else ""
    decode = tokenizer.backend.backend_tokenizer.decode
    assert decode(prompt_ids, skip_special_tokens=False) == opening + space + prompt.removeprefix(opening)
    assert decode(response_ids, skip_special_tokens=False) == space + response


@pytest.mark.parametrize("template", TEMPLATES)
def test_many_pairs_are_rendered_as_each_alone(template: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = QWEN if template == "qwen" else MISTRAL
    texts = ["a", "", " two  blanks", "积极", "<|im_end|> and </s> as text", "\n"]
    pairs = [QuestionPair(f"{number} {text}", text[::-1] + "x", "de", "en") for number, text in enumerate(3 * texts)]
    each = [render(pair, template, tokenizer) for pair in pairs]
    monkeypatch.setattr("jaxalign.data.tokenizer.AT_ONCE", 7)
    assert list(render_all(iter(pairs), template, tokenizer)) == each


def test_many_pairs_take_few_calls(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    encoded = Tokenizer._encoded
    monkeypatch.setattr(Tokenizer, "_encoded", lambda self, texts, **kw: calls.append(1) or encoded(self, texts, **kw))
    assert len(list(render_all([PAIR] * (2 * AT_ONCE), "none", MISTRAL))) == 2 * AT_ONCE
    assert len(calls) == 4


def test_sides_are_tokenised_alone():
    prompt_ids, response_ids = render(PAIR, "mistral", MISTRAL)
    v = MISTRAL.vocabulary
    assert prompt_ids[:5] == [v["<s>"], v["▁"], v["["], v["I"], v["N"]]
    assert response_ids[:2] == [v["▁"], v["Q"]]
    assert response_ids[-2:] == [v['"'], v["</s>"]]


def test_no_token_spans_the_seam():
    pair = QuestionPair("ab", "cd", "de", "en")
    tokenizer = Tokenizer(byte_level(merges=(("b", "c"),)))
    v = tokenizer.vocabulary
    assert tokenizer.ids("abcd") == [v["a"], v["bc"], v["d"]]
    assert render(pair, "none", tokenizer) == ([v["a"], v["b"]], [v["c"], v["d"], v["<|endoftext|>"]])


def test_alpaca_is_tokenised_as_one_text():
    prompt_ids, response_ids = render(PAIR, "alpaca", MISTRAL)
    prompt = TEMPLATES["alpaca"].around(PAIR.prompt)
    assert prompt_ids + response_ids == [*MISTRAL.prompt_ids(prompt + PAIR.response), MISTRAL.eos_id]
    assert prompt_ids == MISTRAL.prompt_ids(prompt)
    # No ▁ before the response, other than where it is tokenised alone.
    assert response_ids[0] == MISTRAL.vocabulary["Q"]


def test_special_tokens_of_chatml_are_single_ids():
    prompt_ids, response_ids = render(PAIR, "qwen", QWEN)
    start, end = QWEN.vocabulary["<|im_start|>"], QWEN.vocabulary["<|im_end|>"]
    assert (prompt_ids.count(start), prompt_ids.count(end)) == (3, 2)
    assert response_ids[-1] == end and QWEN.eos_id not in response_ids


def test_a_missing_special_token_is_named():
    with pytest.raises(InputError, match=r"qwen needs '<\|im_start\|>', which the tokenizer lacks"):
        render(PAIR, "qwen", MISTRAL)
    with pytest.raises(InputError, match="mistral needs a begin-of-text token"):
        render(PAIR, "mistral", QWEN)


def test_auto_follows_the_family():
    assert [resolve_template("auto", family) for family in ("mistral", "qwen2", "llama", "gemma3_text")] == [
        "mistral",
        "qwen",
        "none",
        "none",
    ]
    assert [resolve_template(name, "llama") for name in TEMPLATES] == list(TEMPLATES)
    with pytest.raises(InputError, match="no template 'mistrall'; did you mean 'mistral'"):
        resolve_template("mistrall", "mistral")


MARKED = Tokenizer(sentencepiece_style())
"""As MISTRAL, with control tokens for its turns, as later ones of Mistral's and ChatML fine-tunes have."""
MARKED.backend.add_special_tokens({"extra_special_tokens": ["[INST]", "[/INST]", "<|im_start|>", "<|im_end|>"]})
MARKED = Tokenizer(MARKED.backend)


@pytest.mark.parametrize("tokenizer", [QWEN, MARKED], ids=["byte-level", "SentencePiece"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_template_makes_control_tokens(template, tokenizer):
    """A source text that spells the end of a turn does not end it."""
    if template == "mistral" and tokenizer is QWEN:
        return  # no BOS
    spelt = "".join(tokenizer.control_tokens)
    shape, decode = TEMPLATES[template], tokenizer.backend.backend_tokenizer.decode
    controls = []
    for prompt, response in (("ab", "cd"), (f"a{spelt}b", f"cd {spelt}"), (f"{spelt} cd", f"a{spelt}b")):
        ids = render(QuestionPair(prompt, response, "de", "en"), template, tokenizer)
        controls.append([[id for id in side if id in tokenizer.control_ids] for side in ids])
        # A SentencePiece-style tokenizer may put a space wherever a text begins.
        whole, answer = (decode(side, skip_special_tokens=False).replace(" ", "") for side in (ids[0], ids[1][:-1]))
        assert whole.removeprefix("<s>") == shape.around(prompt).replace(" ", "")
        assert answer == response.replace(" ", "")
    assert controls[0] == controls[1] == controls[2]


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_without_control_tokens_are_tokenised_as_one_call_does(template):
    shape = TEMPLATES[template]
    whole = MARKED.backend(shape.around("Frage é: "), add_special_tokens=False)["input_ids"]
    prompt, _ = render(QuestionPair("Frage é: ", "R", "de", "en"), template, MARKED)
    assert prompt[len(prompt) - len(whole) :] == whole
