"""chrF of translations (Popović 2015), by sacrebleu: the F-score of shared character n-grams, 0 to 100."""

from collections.abc import Sequence
from typing import NamedTuple


class ChrfScore(NamedTuple):
    """corpus: over all n-grams together, not the mean of `sentences`. signature: sacrebleu's, settings and version."""

    corpus: float
    sentences: list[float]
    signature: str


def chrf(texts: Sequence[str], references: Sequence[str]) -> ChrfScore:
    """The score of each text against the one reference of the same index, and of all of them; at least one."""
    # Slow to import, and needed for translations alone.
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    corpus = metric.corpus_score(texts, [references]).score
    sentences = [
        metric.sentence_score(text, [reference]).score for text, reference in zip(texts, references, strict=True)
    ]
    return ChrfScore(corpus, sentences, str(metric.get_signature()))
