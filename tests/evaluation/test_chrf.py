from collections import Counter

import pytest

from jaxalign.evaluation.open_cells import chrf

TEXTS = ["How many apples does Anna have?", "Two trains leave.", "", "Wie viele Äpfel?"]
REFERENCES = ["How many apples has Anna got?", "Two trains leave.", "A dog runs.", "How many apples?"]


def by_definition(texts: list[str], references: list[str]) -> float:
    """chrF (Popović 2015): F with beta 2 of mean precision and recall over the character 1- to 6-grams of a corpus."""

    def grams(text: str, n: int) -> Counter[str]:
        text = "".join(text.split())
        return Counter(text[i : i + n] for i in range(len(text) - n + 1))

    precisions, recalls = [], []
    for n in range(1, 7):
        matches = found = wanted = 0
        for text, reference in zip(texts, references, strict=True):
            ours, theirs = grams(text, n), grams(reference, n)
            matches += sum((ours & theirs).values())
            # sacrebleu leaves out a text that is too short for an n-gram on either side.
            found += sum(ours.values()) if theirs else 0
            wanted += sum(theirs.values())
        precisions.append(matches / found)
        recalls.append(matches / wanted)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_scores_are_those_of_the_definition():
    score = chrf(TEXTS, REFERENCES)
    assert score.corpus == pytest.approx(by_definition(TEXTS, REFERENCES), abs=1e-9)
    assert score.sentences[0] == pytest.approx(by_definition(TEXTS[:1], REFERENCES[:1]), abs=1e-9)
    assert score.sentences[1:3] == [100, 0]
    assert score.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_a_corpus_is_not_the_mean_of_its_sentences():
    score = chrf(TEXTS, REFERENCES)
    assert abs(score.corpus - sum(score.sentences) / len(TEXTS)) > 1
