"""How often each feed-forward neuron was active in each language, as a file: `active / tokens` is its probability.

    languages      text [K]
    active         int [K, L, F]   tokens at which the neuron's gate was positive
    tokens         int [K]         tokens that there were
    prefix_active, prefix_tokens   the same of what the texts begin with and is not to count; may be absent

Axis letters: K languages, L layers, F feed-forward width.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.data.languages import code_of
from jaxalign.errors import InputError
from jaxalign.files import read_npz

CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")


class ActivationCounts(NamedTuple):
    """Counts of the tokens that matter, what the texts begin with taken off."""

    languages: list[str]
    active: np.ndarray
    """int [K, L, F]; below 0 where a neuron was active more often in the prefix alone than in the whole"""
    tokens: np.ndarray
    """int64 [K], at least 1 each"""


def read_counts(path: Path) -> ActivationCounts:
    """The counts of a file; whatever cannot be counts raises InputError with file, array and language."""
    arrays = read_npz(path)
    languages = checked_languages(arrays, path)
    active, tokens = checked_pair(arrays, "active", "tokens", languages, path)
    if "prefix_active" in arrays or "prefix_tokens" in arrays:
        prefix_active, prefix_tokens = checked_pair(arrays, "prefix_active", "prefix_tokens", languages, path)
        if prefix_active.shape != active.shape:
            raise InputError(f"{path}: prefix_active is {prefix_active.shape}, active is {active.shape}; count again")
        active, tokens = active - prefix_active, tokens - prefix_tokens
    if (tokens < 1).any():
        empty = languages[int(np.argmin(tokens))]
        raise InputError(f"{path}: no tokens of {empty} are left to count; leave the language out or add texts")
    return ActivationCounts(languages, active, tokens)


def checked_languages(arrays: dict[str, np.ndarray], path: Path) -> list[str]:
    """The language codes: two or more, each once, each fit to be an array's name."""
    languages = named(arrays, "languages", path)
    if languages.ndim != 1 or languages.dtype.kind != "U":
        raise InputError(f"{path}: languages is {languages.dtype} {languages.shape}; a list of codes is needed")
    codes = [code_of(str(code)) for code in languages]
    if wrong := [code for code in codes if not CODE.fullmatch(code)]:
        raise InputError(f"{path}: languages: {wrong[0]!r} is no language code; write en, de, ...")
    if len(codes) < 2 or len(set(codes)) < len(codes):
        raise InputError(f"{path}: languages are {', '.join(codes) or 'none'}; two or more are needed, each once")
    return codes


def checked_pair(
    arrays: dict[str, np.ndarray], active: str, tokens: str, languages: list[str], path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Signed counts [K, L, F] and totals int64 [K] of these names, none negative, no count above its total."""
    counts, totals = named(arrays, active, path), named(arrays, tokens, path)
    for name, array, dimensions in ((active, counts, 3), (tokens, totals, 1)):
        if array.dtype.kind not in "iu" or array.dtype == np.uint64:
            raise InputError(f"{path}: {name} is {array.dtype}; whole numbers of at most 63 bits are needed")
        if array.ndim != dimensions or len(array) != len(languages) or not array.size:
            axes = "[languages, layers, neurons]" if dimensions == 3 else "[languages]"
            raise InputError(f"{path}: {name} is {array.shape}; {axes} is needed, with {len(languages)} languages")
        if array.min() < 0:
            language = languages[int(np.argwhere(array < 0)[0, 0])]
            raise InputError(f"{path}: {name} of {language} holds negative counts; count again")
    totals = totals.astype(np.int64)
    if (above := counts.max(axis=(1, 2)) > totals).any():
        first = int(np.argmax(above))
        raise InputError(
            f"{path}: {active} of {languages[first]} reaches {counts[first].max()}, above the {totals[first]} of "
            f"{tokens}; count again"
        )
    return counts.astype(np.int64, copy=False) if counts.dtype.kind == "u" else counts, totals


def named(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """The array of this name."""
    if name not in arrays:
        raise InputError(f"{path}: no array {name!r}; it holds {', '.join(arrays) or 'none'}")
    return arrays[name]
