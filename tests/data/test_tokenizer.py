import json
import random
import subprocess
import sys
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as File

from jaxalign.data.pairs import QuestionPair
from jaxalign.data.prompts import candidate_ids
from jaxalign.data.tokenizer import TEMPLATES, Tokenizer, load_tokenizer, render_all, resolve_template
from jaxalign.errors import InputError
from tests.data.tiny_sentence_piece import USER_DEFINED, sentence_piece_model
from tests.data.tiny_tokenizers import byte_level, render, sentencepiece_style

TEXTS = ["a", "", " two  blanks and the end ", "the</s>", "<s> é 積\n==== <unk>"]
"""Some spell control tokens."""


def save(folder, tokenizer, family: str = "llama", **changes: Any):
    """A model folder's tokenizer files, with changes to tokenizer.json; config.json alone names the family."""
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


def save_sentence_piece(folder, model, family="llama", **settings):
    """A model folder with tokenizer.model alone."""
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **settings}))
    return folder


def test_a_bos_is_there_only_where_ordinary_calls_add_one():
    tokenizer = Tokenizer(sentencepiece_style())
    a, mark = tokenizer.vocabulary["a"], tokenizer.vocabulary["▁"]
    assert tokenizer.ids("a") == [mark, a]
    assert tokenizer.prompt_ids("a") == [1, mark, a]
    assert (tokenizer.opening, tokenizer.eos_id) == ([1], 2)

    backend = byte_level(special=("<|im_start|>",))
    backend.bos_token = "<|im_start|>"  # named, as SmolLM2's is, but never added
    tokenizer = Tokenizer(backend)
    assert tokenizer.prompt_ids("ab") == tokenizer.ids("ab")
    assert tokenizer.opening == [] and tokenizer.bos is None
    assert tokenizer.eos_id == tokenizer.vocabulary["<|endoftext|>"]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_a_batch_is_its_texts_one_by_one(make):
    tokenizer = Tokenizer(make(merges=(("p", "o"), ("po", "s"))))
    texts = ["pos", "a long one, po\n", "积极 é", "pos"]
    assert tokenizer.batch_prompt_ids(texts) == [tokenizer.prompt_ids(text) for text in texts]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_a_saved_tokenizer_loads_equal(tmp_path, make):
    tokenizer = Tokenizer(make(merges=(("p", "o"), ("po", "s"))))
    tokenizer.backend.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.prompt_ids("pos é 积") == tokenizer.prompt_ids("pos é 积")
    assert (loaded.opening, loaded.eos_id) == (tokenizer.opening, tokenizer.eos_id)


def test_fingerprint_is_of_what_a_tokenizer_does():
    """Not of how a version of tokenizers writes it down."""
    backend = byte_level(merges=(("p", "o"), ("o", "s")))
    whole = backend.backend_tokenizer
    whole.pre_tokenizer = pre_tokenizers.Sequence([whole.pre_tokenizer])
    plain = Tokenizer(byte_level(merges=(("p", "o"), ("o", "s"))))
    plain.backend(["a", "abc"], padding=False, truncation=True, max_length=2)  # nor of a call
    assert backend.backend_tokenizer.to_str() != plain.backend.backend_tokenizer.to_str()
    assert Tokenizer(backend).fingerprint == plain.fingerprint
    # One vocabulary, but another order of merges: "pos" is "po s" or "p os".
    other = byte_level(merges=(("p", "o"), ("o", "s")))
    model = json.loads(other.backend_tokenizer.to_str())["model"]
    other.backend_tokenizer.model = models.BPE(vocab=model["vocab"], merges=[("o", "s"), ("p", "o")])
    assert Tokenizer(other).vocabulary == plain.vocabulary
    assert Tokenizer(other).fingerprint != plain.fingerprint


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(InputError, match="does not load") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    backend = byte_level()
    backend.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        _ = Tokenizer(backend).eos_id


def closing(tokenizer, single):
    """A serialised post-processor that puts special tokens around a text."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in single.split() if token != "$A"]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return json.loads(backend.to_str())["post_processor"]


def with_eos_in_the_file(folder):
    tokenizer = sentencepiece_style()
    return save(folder, tokenizer, post_processor=closing(tokenizer, "<s> $A </s>"))


def with_eos_in_the_settings(folder):
    return save_sentence_piece(folder, sentence_piece_model(), add_bos_token=True, add_eos_token=True)


@pytest.mark.parametrize("make", [with_eos_in_the_file, with_eos_in_the_settings])
def test_nothing_stands_behind_a_prompt(tmp_path, make):
    """A tokenizer saved for training, with add_eos_token, ends every prompt: the next token is asked after the end."""
    tokenizer = load_tokenizer(make(tmp_path))
    assert tokenizer.backend("the end")["input_ids"][-1] == tokenizer.eos_id
    prompts = [[1, *tokenizer.ids(text)] for text in TEXTS]
    assert [tokenizer.prompt_ids(text) for text in TEXTS] == prompts == tokenizer.batch_prompt_ids(TEXTS)
    assert not any(tokenizer.eos_id in ids for ids in prompts)
    assert (tokenizer.opening, tokenizer.bos) == ([1], "<s>")
    [warning] = tokenizer.warnings("llama")
    assert "</s>" in warning and "add_eos_token" in warning


@pytest.mark.parametrize(
    ("family", "settings", "bos", "says"),
    [
        ("mistral", {}, None, "no begin-of-text token"),
        ("llama", {}, None, "no begin-of-text token"),
        ("gemma3_text", {"add_bos_token": False}, None, "no begin-of-text token"),
        ("mistral", {"add_bos_token": True}, "<s>", None),
        ("qwen2", {"add_bos_token": True}, "<s>", "<s>"),
        ("qwen2", {}, None, None),
    ],
)
def test_a_begin_of_text_that_is_not_the_familys_is_told(tmp_path, family, settings, bos, says):
    tokenizer = load_tokenizer(save_sentence_piece(tmp_path, sentence_piece_model(), family, **settings))
    assert tokenizer.bos == bos
    assert [says in warning and family in warning for warning in tokenizer.warnings(family)] == ([True] if says else [])


def test_a_begin_of_text_that_is_there_twice_is_told():
    """As of a post-processor that was saved with one when the tokenizer's class added another."""
    backend = sentencepiece_style()
    backend.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> <s> $A", special_tokens=[("<s>", 1)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.bos == "<s> <s>"
    [warning] = tokenizer.warnings("mistral")
    assert "prompts begin with <s> <s>" in warning and "with one" in warning
    # Of Llama's byte-level tokenizers only Llama 3's has a convention.
    assert Tokenizer(byte_level()).warnings("llama") == []
    backend = byte_level(special=("<|begin_of_text|>",))
    backend.bos_token = "<|begin_of_text|>"
    assert len(Tokenizer(backend).warnings("llama")) == 1


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_ids_are_those_without_truncation_padding_and_dropout(tmp_path, make):
    tokenizer = make(merges=(("p", "o"), ("po", "s")))
    plain = load_tokenizer(save(tmp_path, tokenizer))
    switched_on: dict[str, Any] = {
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 20},
            "direction": "Left",
            "pad_to_multiple_of": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    }
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "on").mkdir()
    on = load_tokenizer(save(tmp_path / "on", tokenizer, model=model | {"dropout": 0.9}, **switched_on))
    texts = ["pos pos pos", "a", "a rather long text, pos"]
    assert on.batch_prompt_ids(texts) == plain.batch_prompt_ids(texts)
    for text in texts:
        assert on.ids(text) == plain.ids(text)
        assert on.prompt_ids(text) == plain.prompt_ids(text)
        assert on.template_ids(text) == plain.template_ids(text)
    assert on.batch_ids(texts) == plain.batch_ids(texts)


@pytest.mark.parametrize(
    ("family", "make"), [("qwen2", byte_level), ("gemma3_text", sentencepiece_style), ("llama", byte_level)]
)
def test_the_file_decides_and_not_the_familys_class(tmp_path, capfd, family, make):
    tokenizer = make(merges=(("1", "2"), ("a", "b")))
    parts = File.from_str(tokenizer.backend_tokenizer.to_str())
    parts.normalizer = normalizers.Lowercase()
    parts.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    serialised = json.loads(parts.to_str())
    changed = {part: serialised[part] for part in ("normalizer", "pre_tokenizer")}
    loaded = load_tokenizer(save(tmp_path, tokenizer, family, **changed))
    own = File.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("AB 12 aB", "e\u0301 \u00c9", " 1212 "):
        assert loaded.ids(text) == own.encode(text, add_special_tokens=False).ids
    said = capfd.readouterr().err
    warned = [line for line in said.splitlines() if "normalizer, pre_tokenizer" in line]
    assert len(warned) == (family != "llama")


def test_another_format_beside_the_file_is_left_alone(tmp_path):
    """Where mistral-common is installed, transformers takes its tekken.json before tokenizer.json."""
    tokenizer = sentencepiece_style()
    (tmp_path / "tekken.json").write_text("{}")
    assert load_tokenizer(save(tmp_path, tokenizer, "mistral")).prompt_ids("a") == Tokenizer(tokenizer).prompt_ids("a")


CONTROLS = ["<|im_start|>", "<|im_end|>", "<pad>", "[INST]", "<end_of_turn>"]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
@pytest.mark.parametrize("special", [True, False])
def test_text_that_spells_control_tokens_stays_text(make, special):
    """Long-Context-Data-Engineering 14: speech marked up with <s> and </s>. Some files type markers as plain tokens."""
    backend = make()
    spelt = [token for token in CONTROLS if special or token != "<pad>"]
    if special:
        backend.add_special_tokens({"extra_special_tokens": spelt})
    else:
        backend.add_tokens(spelt)
    tokenizer = Tokenizer(backend)
    spelt = [*spelt, tokenizer.backend.eos_token]
    assert tokenizer.control_ids >= {tokenizer.vocabulary[token] for token in spelt}
    for token in spelt:
        text = f"so {token}{token} he said: {token}"
        for ids in (tokenizer.ids(text), tokenizer.prompt_ids(text)[len(tokenizer.opening) :]):
            assert tokenizer.control_ids.isdisjoint(ids)
            assert str(tokenizer.backend.decode(ids)).removeprefix(" ") == text
        assert tokenizer.batch_prompt_ids([text, "a"]) == [tokenizer.prompt_ids(text), tokenizer.prompt_ids("a")]
        assert tokenizer.template_ids(text).count(tokenizer.vocabulary[token]) == 3
        assert tokenizer.control_ids.isdisjoint(candidate_ids(token, tokenizer))


def test_a_control_token_that_text_would_be_merged_into_is_refused():
    tokenizer = Tokenizer(sentencepiece_style(merges=(("<", "/"), ("s", ">"), ("</", "s>"))))
    with pytest.raises(InputError, match=r"'ends in </s>'.*</s>"):
        tokenizer.batch_ids(["a", "ends in </s>"])


MODELS = {
    "plain": {},
    "the user's tokens": {"extra": [("<sep>", USER_DEFINED), ("[REF]", USER_DEFINED)]},
    "blanks taken away": {"remove_extra_whitespaces": True},
    "no space before": {"add_dummy_prefix": False},
}


@pytest.mark.parametrize("rules", MODELS.values(), ids=MODELS)
def test_ids_of_tokenizer_model_are_sentencepieces(tmp_path, rules):
    model = sentence_piece_model(**rules)
    ours = load_tokenizer(save_sentence_piece(tmp_path, model))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    words = ["the", " ", "  ", "   ", "==", "in", "g", "é", "π", "\n", "\t", "▁", "</s>", "<s>", "a<sep>", "[REF]b"]
    choice = random.Random(0)
    texts = [*TEXTS, *("".join(choice.choices(words, k=choice.randint(1, 12))) for _ in range(2000))]
    for text, ids in zip(texts, ours.batch_ids(texts), strict=True):
        assert ids == theirs.encode(text), text
    assert (ours.backend.bos_token, ours.backend.eos_token, ours.eos_id) == ("<s>", "</s>", 2)


def test_tokenizer_model_is_read_without_the_package(tmp_path):
    model = sentence_piece_model()
    save_sentence_piece(tmp_path, model, add_bos_token=True)
    code = (
        "import pathlib, sys; sys.modules['sentencepiece'] = None\n"
        "from jaxalign.data.tokenizer import load_tokenizer\n"
        f"print(load_tokenizer(pathlib.Path({str(tmp_path)!r})).prompt_ids('  the end'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, *sentencepiece.SentencePieceProcessor(model_proto=model).encode("  the end")]


def test_other_sentencepiece_models_are_refused(tmp_path):
    model = sentence_piece_model()
    for content, says in ((model[:-7], "SentencePiece"), (b"", "SentencePiece"), (b"#" * 40, "SentencePiece")):
        with pytest.raises(InputError, match=says) as error:
            load_tokenizer(save_sentence_piece(tmp_path, content))
        assert "tokenizer.model" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="only BPE"):
        load_tokenizer(save_sentence_piece(tmp_path, sentence_piece_model(model_type=1)))


# Chat templates

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
