"""Vocabularies whose tokens have kinds, and SentencePiece's BPE over them, in the tokenizers library.

A SentencePiece model (tokenizer.model) and a GGUF file hold the same: tokens, their scores and their kinds, by the same
numbers. So one vocabulary gives the same ids whichever file it comes from: those of SentencePiece.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from jaxalign.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
"""SentencePiece writes a space so."""
_MARKER = re.compile(
    r"<[|｜][^\s<>]+>|<[^\s<>]+[|｜]>|<(start|end)_of_(turn|utterance|text)>|<fim[-_]\w+>|\[/?INST\]|_?<EOT>|\[EOT\]"
)


def is_marker(token: str) -> bool:
    """Whether a token is one that opens or ends a turn or a text, by its name alone.

    Converters and fine-tunes leave such tokens typed as text. llama.cpp decides by name too (src/llama-vocab.cpp,
    "control-looking token"), from a list of those that end something.
    """
    return _MARKER.fullmatch(token) is not None


def mark_tokens(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int], *, normalized: bool = False) -> None:
    """Control tokens and the user's are matched whole, the former only where a template wrote the text.

    normalized: whether the user's are looked for in the text as the normaliser leaves it.
    """
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    plain = [AddedToken(token, normalized=normalized, special=False) for token in _users(tokens, kinds)]
    tokenizer.add_tokens(plain)


def _users(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """The tokens that a vocabulary's maker wanted whole; those of spaces are merged like others."""
    return [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED and token.strip(SPACE)]


def sentence_piece(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: str, prefix_space: bool
) -> Tokenizer:
    """SentencePiece's BPE: spaces are letters, and a character without a token is spelled in bytes (<0x0A>).

    tokens, scores, kinds: of every id; kinds may be empty, which is all NORMAL.
    unknown: the token of a character that no bytes are there for.
    prefix_space: whether a text begins with a space more, one that begins with a space among them.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    never = {token for token, kind in zip(tokens, kinds, strict=False) if kind in (UNKNOWN, CONTROL, BYTE)}
    merges = _merges_from_scores(vocabulary, scores, never)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    escape = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        # Not Metaspace, which leaves out the space of a text that begins with one. The user's tokens are looked for
        # behind the space, and are brought into the same form for it: alone they get none.
        alone = "|".join(map(re.escape, _users(tokens, kinds))) or "(?!)"
        prefix = normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)"), SPACE)
        tokenizer.normalizer = normalizers.Sequence([prefix, escape])
        steps.append(decoders.Strip(" ", left=1))
    else:
        tokenizer.normalizer = escape
    tokenizer.decoder = decoders.Sequence(steps)
    mark_tokens(tokenizer, tokens, kinds, normalized=prefix_space)
    return tokenizer


def read_sentence_piece(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a SentencePiece model file, without the package of that name; it adds no BOS and no EOS.

    Beside it bos_token, eos_token and unk_token, as the model spells them; without those that it lacks.

    InputError: not such a file, or one whose ids would not be SentencePiece's here (a Unigram model).
    """
    from google.protobuf.message import DecodeError

    instead, model = "save this tokenizer with its tokenizer.json", empty_model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise InputError(f"{path}: is no SentencePiece model, or only a part of one; {instead}") from None
    trained, rules = model.trainer_spec, model.normalizer_spec
    if not model.pieces or trained.unk_id >= len(model.pieces):
        raise InputError(f"{path}: is no SentencePiece model (no vocabulary in it); {instead}")
    bpe = 2  # `TrainerSpec.ModelType`
    if trained.model_type != bpe or trained.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise InputError(
            f"{path}: of SentencePiece models only BPE ones are read, which mark a space before a word; {instead}"
        )
    tokens = [piece.piece for piece in model.pieces]
    kinds = [piece.type for piece in model.pieces]
    tokenizer = sentence_piece(
        tokens, [piece.score for piece in model.pieces], kinds, tokens[trained.unk_id], rules.add_dummy_prefix
    )
    before = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        before += [normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if before:
        tokenizer.normalizer = normalizers.Sequence([*before, tokenizer.normalizer])
    ids = {"bos_token": trained.bos_id, "eos_token": trained.eos_id, "unk_token": trained.unk_id}
    return tokenizer, {role: tokens[index] for role, index in ids.items() if index >= 0}


def empty_model() -> Any:
    """A SentencePiece model of nothing, as protobuf knows it, from whichever package has its description."""
    from transformers.convert_slow_tokenizer import import_protobuf

    descriptions: Any = import_protobuf()
    return descriptions.ModelProto()


def _merges_from_scores(vocabulary: dict[str, int], scores: Sequence[float], never: set[str]) -> list[tuple[str, str]]:
    """Every way to cut a token into two tokens, the best-scored whole first; text is never merged into `never`."""
    cuts = []
    for token, index in vocabulary.items():
        if token in never:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                cuts.append((-scores[index], -len(left), -len(right), index, left, right))
    cuts.sort()
    return [(left, right) for *_, left, right in cuts]
