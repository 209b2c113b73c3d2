"""Tokenizers inside GGUF files against the tokenizers that they were made of, built by transformers' own classes."""

import json

import gguf
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as File
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.model.gguf import read_gguf_tokenizer
from jaxalign.sentence_piece import empty_model
from tests.data.tiny_sentence_piece import USER_DEFINED, sentence_piece_model
from tests.model.test_gguf import finish
from tests.model.tiny_inputs import refused

CORPUS = [
    "Premise: Two women are embracing while holding to go packages. In 1984 they'd have 12345 of them.\n",
    '質問：女性二人が抱き合っている。\nответ: "да"  Žena drží balík; ça va déjà très bien.\n\n',
    "प्रश्न: दो महिलाएं गले मिल रही हैं। คำถาม: ผู้หญิงสองคนกอดกัน 問題：兩個女人在擁抱 42 次\n",
]
TEXTS = [
    *CORPUS,
    "",
    "a",
    " leading space",
    "two  spaces, three   of them, and one at the end ",
    "tabs\tand\r\nnew lines\n\n\n3 of them",
    "  12 x 345678 = ½?\n\n1",
    "decomposed e\u0301, \u1100\u1161, and Ünïcödé",
    "never seen: \U0001f600 \u16a0\u16b1 \u0ca0_\u0ca0",
    "<|start|>user\nWhat's THIS, they'Re 's?<|end|>\n",
    "<s>not at its place</s>",
    'Answer: "positive"',
    "abc babc abcab",
]
SPECIAL = ["<|start|>", "<|end|>", "<tool>"]


def byte_level_parts():
    """Vocabulary and merges of a small byte-level BPE, special tokens first."""
    tokenizer = File(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = []
    for token in sorted(vocabulary, key=lambda token: vocabulary[token])[len(SPECIAL) + 256 :]:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges.append(next(cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary))
    return vocabulary, merges


def write_tokenizer(path, vocabulary, merges=None, scores=None, kinds=None, architecture="llama", **settings):
    """A GGUF file with a tokenizer and nothing else."""
    writer = gguf.GGUFWriter(path, architecture)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_token_list(tokens)
    writer.add_token_types([(kinds or {}).get(token, gguf.TokenType.NORMAL) for token in tokens])
    if merges is not None:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    if scores is not None:
        writer.add_token_scores([scores[token] for token in tokens])
    for key, value in settings.items():
        getattr(writer, f"add_{key}")(value)
    finish(writer)
    return path


def write_byte_level(path, pre, **settings):
    vocabulary, merges = byte_level_parts()
    kinds = dict.fromkeys(SPECIAL[:2], gguf.TokenType.CONTROL) | {SPECIAL[2]: gguf.TokenType.USER_DEFINED}
    settings = {"tokenizer_model": "gpt2", "tokenizer_pre": pre, "bos_token_id": 0, "eos_token_id": 1} | settings
    return write_tokenizer(path, vocabulary, merges, kinds=kinds, **settings)


def by_hand(steps, **model):
    """A byte-level tokenizer from the tokenizers library's parts, as released tokenizer.json files have them."""
    vocabulary, merges = byte_level_parts()
    backend = File(models.BPE(vocabulary, merges, **model))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL[:2])
    backend.add_tokens(SPECIAL[2:])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def qwen2():
    vocabulary, merges = byte_level_parts()
    return Qwen2Tokenizer(vocabulary, merges, eos_token=SPECIAL[1], pad_token=SPECIAL[1], unk_token=SPECIAL[0])


def smollm():
    return by_hand([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def llama3():
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return by_hand([split, bytes_only], ignore_merges=True)


def gpt2():
    return by_hand([pre_tokenizers.ByteLevel(add_prefix_space=False)])


@pytest.mark.parametrize(
    ("pre", "expected"), [("qwen2", qwen2), ("smollm", smollm), ("llama-bpe", llama3), ("gpt-2", gpt2)]
)
def test_byte_level_ids_and_texts(pre, expected, tmp_path):
    ours, theirs = read_gguf_tokenizer(write_byte_level(tmp_path / "t.gguf", pre, add_bos_token=False)), expected()
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ours(CORPUS[0])["input_ids"]) == CORPUS[0]


def test_the_pre_tokenizers_differ_where_they_should(tmp_path):
    ids = {}
    for pre in ("qwen2", "smollm", "llama-bpe", "gpt-2"):
        tokenizer = read_gguf_tokenizer(write_byte_level(tmp_path / f"{pre}.gguf", pre, add_bos_token=False))
        ids[pre] = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert len({tuple(value) for value in ids.values()}) == 4, "the texts tell the four apart"


def test_special_tokens_and_chat_template(tmp_path):
    template = "{% for message in messages %}<|start|>{{ message.content }}<|end|>{% endfor %}"
    path = write_byte_level(tmp_path / "t.gguf", "smollm", chat_template=template, pad_token_id=1, unk_token_id=0)
    tokenizer = read_gguf_tokenizer(path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert tokenizer("a")["input_ids"][0] != 0, "smollm adds no BOS"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|start|>hi<|end|>"
    assert tokenizer("<|start|><tool>", add_special_tokens=False)["input_ids"] == [0, 2]
    assert tokenizer.decode([0, 2, 1], skip_special_tokens=True) == "<tool>"


@pytest.mark.parametrize(
    ("pre", "settings", "before", "after"),
    [
        ("llama-bpe", {}, [0], []),
        ("llama-bpe", {"add_bos_token": False}, [], []),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, [0], [1]),
        ("qwen2", {}, [], []),
    ],
)
def test_begin_and_end_of_text(pre, settings, before, after, tmp_path):
    tokenizer = read_gguf_tokenizer(write_byte_level(tmp_path / "t.gguf", pre, **settings))
    inner = tokenizer("some text", add_special_tokens=False)["input_ids"]
    assert tokenizer("some text")["input_ids"] == before + inner + after


def sentence_piece_parts(space="\u2581"):
    """Vocabulary and scores of a small SentencePiece BPE: controls, bytes, letters, then merged pieces, best first."""
    tokenizer = File(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(space, prepend_scheme="first", split=False)
    letters = sorted(set("".join(CORPUS)) - {" ", "\n"} | {space})
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False, max_token_length=9)
    tokenizer.train_from_iterator([text for text in CORPUS for text in text.split(".")] * 3, trainer)
    learned = tokenizer.get_vocab()
    pieces = [token for token in sorted(learned, key=lambda token: learned[token]) if "\n" not in token]
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # "abc" can be cut in two ways, whose order matters.
    merged = [piece for piece in pieces if len(piece) > 1] + ["ab", "bc", "abc"]
    tokens = fixed + merged + [piece for piece in pieces if len(piece) == 1]
    scores = dict.fromkeys(fixed, 0.0) | {token: -float(i) for i, token in enumerate(tokens[len(fixed) :])}
    kinds = {token: gguf.TokenType.BYTE for token in fixed} | dict.fromkeys(fixed[1:3], gguf.TokenType.CONTROL)
    kinds["<unk>"] = gguf.TokenType.UNKNOWN
    return {token: index for index, token in enumerate(tokens)}, scores, kinds


def write_sentence_piece(path, architecture, **settings):
    vocabulary, scores, kinds = sentence_piece_parts()
    settings = {"tokenizer_model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0} | settings
    return write_tokenizer(path, vocabulary, None, scores, kinds, architecture, **settings)


def write_sentence_piece_model(path, content):
    """A GGUF file of a SentencePiece model, as llama.cpp's converter writes it."""
    model = empty_model()
    model.ParseFromString(content)
    tokens = {piece.piece: index for index, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces}
    kinds = {piece.piece: gguf.TokenType(piece.type) for piece in model.pieces}
    settings = {"tokenizer_model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
    return write_tokenizer(path, tokens, None, scores, kinds, **settings)


def merges_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_sentence_piece_ids_and_texts(architecture, tmp_path):
    settings = {"add_space_prefix": False} if architecture == "gemma3" else {}
    path = write_sentence_piece(tmp_path / "t.gguf", architecture, add_bos_token=True, **settings)
    ours, theirs = read_gguf_tokenizer(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert merges_of(ours) == merges_of(theirs)
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        # transformers puts no space before one that a text begins with, and none behind a control token; SentencePiece
        # does the first, llama.cpp both.
        if architecture == "gemma3" or not text.startswith((" ", "<s>")):
            assert ids == theirs(text)["input_ids"], text
        assert ids[0] == 1
        assert ours.decode(ids[1:]) == theirs.decode(ids[1:])
    assert ours("\U0001f600", add_special_tokens=False)["input_ids"][-4:] == [3 + byte for byte in b"\xf0\x9f\x98\x80"]


def test_ids_are_those_of_the_same_model_as_tokenizer_model(tmp_path):
    """And so SentencePiece's."""
    content = sentence_piece_model(extra=[("<sep>", USER_DEFINED)])
    path = write_sentence_piece_model(tmp_path / "t.gguf", content)
    ours, theirs = Tokenizer(read_gguf_tokenizer(path)), SentencePieceProcessor(model_proto=content)
    for text in [*TEXTS, "the<sep> end", "a</s>", "<s>  the ===== <0x41>"]:
        assert ours.ids(text) == theirs.encode(text), text
        assert ours.prompt_ids(text) == [1, *theirs.encode(text)]


def test_turn_markers_are_control_tokens_whatever_their_type(tmp_path):
    """unsloth 5070: a converter writes the markers of turns as plain tokens."""
    vocabulary, merges = byte_level_parts()
    markers = ["<|im_start|>", "<|im_end|>", "<end_of_turn>"]
    vocabulary |= {token: len(vocabulary) + index for index, token in enumerate(markers)}
    settings = {"tokenizer_model": "gpt2", "tokenizer_pre": "qwen2", "bos_token_id": 0, "eos_token_id": 1}
    backend = read_gguf_tokenizer(write_tokenizer(tmp_path / "t.gguf", vocabulary, merges, **settings))
    tokenizer = Tokenizer(backend)
    for token in [*markers, *SPECIAL[:2]]:
        assert backend(f"a{token}", add_special_tokens=False)["input_ids"][-1] == vocabulary[token]
        assert tokenizer.control_ids.isdisjoint(tokenizer.ids(f"a{token}"))
    ids = tokenizer.batch_ids_between("<|im_start|>user\n", ["a<|im_end|>"], "<|im_end|>")[0]
    assert ids.count(vocabulary["<|im_end|>"]) == 1


def test_prompts_do_not_end_as_the_file_asks(tmp_path):
    tokenizer = Tokenizer(read_gguf_tokenizer(write_byte_level(tmp_path / "t.gguf", "llama-bpe", add_eos_token=True)))
    assert tokenizer.prompt_ids("some text") == [0, *tokenizer.ids("some text")]
    assert any("<|end|>" in warning for warning in tokenizer.warnings("llama"))


def test_gemma_spells_its_tokens_of_spaces_again(tmp_path):
    vocabulary, scores, kinds = sentence_piece_parts()
    for token in ("  ", "   "):
        vocabulary[token], scores[token], kinds[token] = len(vocabulary), -9.0, gguf.TokenType.USER_DEFINED
    path = write_tokenizer(
        tmp_path / "t.gguf", vocabulary, None, scores, kinds, "gemma3", tokenizer_model="llama", unk_token_id=0
    )
    ours = read_gguf_tokenizer(path)
    assert ours("   ", add_special_tokens=False)["input_ids"] == [vocabulary["   "]]
    assert ours.decode([vocabulary["  "]]) == "  "


def test_unknown_tokenizers_are_refused_by_name(tmp_path):
    path = tmp_path / "t.gguf"
    write_byte_level(path, "viking")
    refused(r"tokenizer\.ggml\.pre viking", read_gguf_tokenizer, path)
    write_byte_level(path, "qwen2", tokenizer_model="t5")
    refused(r"tokenizer\.ggml\.model t5", read_gguf_tokenizer, path)
    vocabulary, _, kinds = sentence_piece_parts()
    write_tokenizer(path, vocabulary, kinds=kinds, tokenizer_model="llama")
    refused(r"tokenizer\.ggml\.scores", read_gguf_tokenizer, path)
    write_tokenizer(path, vocabulary, tokenizer_model="gpt2", tokenizer_pre="qwen2")
    refused("does not load .*merges", read_gguf_tokenizer, path)
    finish(gguf.GGUFWriter(path, "llama"))
    refused("holds no tokenizer", read_gguf_tokenizer, path)
