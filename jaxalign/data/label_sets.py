"""Label word -> candidate token ids: the first tokens with which a model may begin to write the word.

The rule is that of the study's evaluation scripts (Zhang et al. 2024), itself from Wendler et al. 2024
(arXiv 2402.10588). A label's score is the sum of the next-token probabilities over its candidates.
"""

from collections.abc import Mapping
from itertools import combinations

from jaxalign.data.tokenizer import Tokenizer


def candidate_ids(word: str, tokenizer: Tokenizer, first_tokens: bool = True) -> list[int]:
    """Sorted, distinct token ids that may begin `word` (non-empty); possibly none, if the vocabulary lacks it.

    Every prefix of the word (in code points), bare or after ▁, that is a vocabulary entry by that exact spelling;
    for a word that begins outside ASCII also the byte piece <0xHH> of its first UTF-8 byte; but no control token, which
    is no text. A byte-level vocabulary
    spells neither form, so there the first token of each prefix is taken as well, unless `first_tokens` is False.
    """
    prefixes = [word[:length] for length in range(1, len(word) + 1)]
    pieces = [*prefixes, *("▁" + prefix for prefix in prefixes)]
    if not word[0].isascii():
        pieces.append(f"<0x{word[0].encode('utf-8')[0]:02X}>")
    found = {tokenizer.vocabulary[piece] for piece in pieces if piece in tokenizer.vocabulary}
    if first_tokens and tokenizer.is_byte_level:
        found |= {id for prefix in prefixes for id in tokenizer.ids(prefix)[:1]}
    return sorted(found - tokenizer.control_ids)


def label_candidates(words: Mapping[str, str], tokenizer: Tokenizer, first_tokens: bool = True) -> dict[str, list[int]]:
    """class -> candidate ids of its label word."""
    return {name: candidate_ids(word, tokenizer, first_tokens) for name, word in words.items()}


def collisions(candidates: Mapping[str, list[int]]) -> dict[tuple[str, str], list[int]]:
    """Pairs of classes that share candidates -> the shared ids, sorted; pairs that share none are left out.

    A shared id adds the same mass to both labels: it cancels in the prediction but inflates both scores.
    """
    shared = {
        (first, second): sorted(set(candidates[first]) & set(candidates[second]))
        for first, second in combinations(candidates, 2)
    }
    return {pair: ids for pair, ids in shared.items() if ids}
