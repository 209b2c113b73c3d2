"""The tokenizer inside a GGUF file, rebuilt with the tokenizers library: the same ids as the model folder's own.

llama.cpp stores a vocabulary, token types and either merges or scores; the normaliser and the pre-tokenizer it only
names (`tokenizer.ggml.model`, `tokenizer.ggml.pre`; src/llama-vocab.cpp lists what the names mean). Where transformers'
own GGUF import drops a step of the released tokenizer (SmolLM2's digits apart, Qwen's composed Unicode, Llama 3's
whole tokens first), it is kept here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from jaxalign.errors import InputError
from jaxalign.model.gguf_file import open_gguf
from jaxalign.sentence_piece import CONTROL, NORMAL, SPACE, is_marker, mark_tokens, sentence_piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class _ByteLevelRules:
    """How a byte-level BPE cuts text before merging."""

    split: str | None
    """Regular expression of one piece; None: GPT-2's, which the byte-level pre-tokenizer brings itself."""
    digits_apart: bool = False
    compose: bool = False
    """Text is first brought into Unicode's composed form (NFC)."""
    whole_tokens_first: bool = False
    """A piece that is a token stays one, whatever the merges say."""
    add_bos: bool = False
    """Where the file does not say."""


_GPT2 = _ByteLevelRules(None)
_DIGITS = _ByteLevelRules(None, digits_apart=True)
_LLAMA3 = _ByteLevelRules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_tokens_first=True,
    add_bos=True,
)
_QWEN2 = _ByteLevelRules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    compose=True,
)
_BYTE_LEVEL = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}


def read_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file: special tokens, begin-of-text rule and chat template included.

    InputError: not a GGUF file, without a tokenizer, or with one that is broken or of a kind that is not known here.
    """
    metadata = open_gguf(path).metadata
    try:
        return _tokenizer_of(metadata, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # which is what tokenizers raises, nothing narrower, of wrong values in the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: the tokenizer in it does not load ({reason})") from None


def _tokenizer_of(metadata: dict[str, Any], path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a file's metadata describes."""
    settings = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = settings.get("tokens")
    if not isinstance(tokens, list):
        raise InputError(f"{path}: holds no tokenizer (tokenizer.ggml.tokens)")
    kinds = _kinds(tokens, settings)
    unknown = tokens[settings.get("unknown_token_id", 0)]
    match settings.get("model"), metadata.get("general.architecture"):
        case "gpt2", _:
            rules = _BYTE_LEVEL.get(settings.get("pre", ""))
            if "merges" not in settings:
                raise InputError(f"{path}: a byte-level tokenizer without tokenizer.ggml.merges")
            if rules is None:
                known = ", ".join(_BYTE_LEVEL)
                raise InputError(f"{path}: tokenizer.ggml.pre {settings.get('pre')} is not supported, only {known}")
            tokenizer, add_bos = _byte_level(tokens, settings["merges"], rules), rules.add_bos
            mark_tokens(tokenizer, tokens, kinds)
        case "llama", "gemma3":
            tokens = [_respelled(token) for token in tokens]
            # Gemma's scores do not follow the order of its merges; the order of its vocabulary does.
            scores = [-float(index) for index in range(len(tokens))]
            tokenizer, add_bos = sentence_piece(tokens, scores, kinds, unknown, prefix_space=False), True
        case "llama", _:
            if len(settings.get("scores", [])) != len(tokens):
                raise InputError(f"{path}: tokenizer.ggml.scores does not give every token its score")
            prefix_space = settings.get("add_space_prefix", True)
            tokenizer, add_bos = sentence_piece(tokens, settings["scores"], kinds, unknown, prefix_space), True
        case model, _:
            raise InputError(f"{path}: tokenizer.ggml.model {model} is not supported, only gpt2 and llama")
    return _wrapped(tokenizer, tokens, settings, add_bos, metadata.get("tokenizer.chat_template"))


def _kinds(tokens: Sequence[str], settings: dict[str, Any]) -> list[int]:
    """The kind of each token: as the file types it, but what ends or begins a text or a turn is a control token."""
    ends = {settings.get(f"{role}_token_id") for role in ("bos", "eos", "eot", "eom")}
    kinds = settings.get("token_type") or [NORMAL] * len(tokens)
    return [
        CONTROL if index in ends or is_marker(token) else kind
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
    ]


def _byte_level(tokens: Sequence[str], merges: Sequence[str], rules: _ByteLevelRules) -> Tokenizer:
    """Byte-level BPE: every byte has a letter, so there is no unknown token."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, ignore_merges=rules.whole_tokens_first))
    steps: list[Any] = []
    if rules.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.split is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rules.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _respelled(token: str) -> str:
    """llama.cpp's converter writes Gemma's tokens of spaces alone with real spaces."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def _wrapped(
    tokenizer: Tokenizer, tokens: Sequence[str], settings: dict[str, Any], add_bos: bool, chat_template: str | None
) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers knows it, with the roles of its tokens."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: settings[f"{key}_token_id"] for role, key in keys.items() if f"{key}_token_id" in settings}
    roles = {role: tokens[index] for role, index in ids.items()}
    template = ["$A"]
    if settings.get("add_bos_token", add_bos) and "bos_token" in roles:
        template = [roles["bos_token"], *template]
    if settings.get("add_eos_token", False) and "eos_token" in roles:
        template = [*template, roles["eos_token"]]
    ends = [(roles[role], ids[role]) for role in ("bos_token", "eos_token") if roles.get(role) in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    # Slow to import, and only this needs it.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **roles)
