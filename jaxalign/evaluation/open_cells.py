"""What is asked in open answers, and how an answer is judged: math problems by their number, translations by chrF.

chrF of translations (Popović 2015), by sacrebleu: the F-score of shared character n-grams, 0 to 100.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.data.math_problems import MathProblem, MathTask, alpaca_prompt, read_problems
from jaxalign.data.pairs import QuestionPair
from jaxalign.data.tokenizer import Tokenizer, render_all
from jaxalign.evaluation.generate import Answer
from jaxalign.evaluation.number_answers import corrected_number, equals, reference_number
from jaxalign.statistics import wilson_interval


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


TRANSLATION = "translation"
TRANSLATION_MAX_TOKENS = 256
"""The study translates nothing in its evaluation; its longest test questions take less."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class OpenCell:
    """One task in one language, ready to be decoded. stops: the ids that end an answer."""

    task: str
    language: str
    prompts: list[list[int]]
    stops: tuple[int, ...]
    max_tokens: int

    @property
    def name(self) -> str:
        return f"{self.task}_{self.language}"

    @property
    def items(self) -> Sequence[MathProblem] | Sequence[QuestionPair]:
        """What the prompts were made of."""
        raise NotImplementedError

    def judge(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[dict[str, Any]]:
        """One record per answer, as `answers.jsonl` holds it."""
        raise NotImplementedError

    def summary(self, records: Records) -> dict[str, Any]:
        """The cell's entry in `open_results.json`."""
        raise NotImplementedError

    def inputs_sha256(self) -> str:
        """A digest of all that records depend on besides the model."""
        inputs = [self.prompts, self.stops, self.max_tokens, [asdict(item) for item in self.items]]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


@dataclass(frozen=True)
class MathCell(OpenCell):
    """Problems of MGSM or MSVAMP."""

    problems: list[MathProblem]

    @property
    def items(self) -> Sequence[MathProblem]:
        return self.problems

    def judge(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[dict[str, Any]]:
        """Both extractions side by side. A number too large for a float is null, and wrong."""
        records = []
        for problem, prompt, answer, text in zip(self.problems, self.prompts, answers, texts, strict=True):
            by_reference, corrected = reference_number(text), corrected_number(text, self.language)
            records.append(
                {
                    "task": self.task,
                    "language": self.language,
                    "row": problem.row,
                    **of_decoding(prompt, answer),
                    "text": text,
                    "reference_number": finite(by_reference),
                    "corrected_number": finite(corrected),
                    "gold": problem.gold,
                    "correct_reference": equals(by_reference, reference_number(problem.answer)),
                    "correct_corrected": equals(corrected, problem.gold),
                }
            )
        return records

    def summary(self, records: Records) -> dict[str, Any]:
        """Accuracies, with the 95 % Wilson interval of the corrected one."""
        count, correct = len(records), sum(record["correct_corrected"] for record in records)
        return {
            "task": self.task,
            "language": self.language,
            "count": count,
            "accuracy_reference": sum(record["correct_reference"] for record in records) / count,
            "accuracy_corrected": correct / count,
            "interval_corrected": list(wilson_interval(correct, count)),
            **over_decoding(records),
        }


@dataclass(frozen=True)
class TranslationCell(OpenCell):
    """Questions to translate from one language into another.

    first_row: the number of the first pair among those of its languages.
    heldout: whether a training run kept these pairs aside; false where they are a file's, whoever trained on it.
    seen: whether the model was tuned on the source language, None where nobody recorded it.
    """

    target: str
    first_row: int
    pairs: list[QuestionPair]
    heldout: bool
    seen: bool | None

    @property
    def name(self) -> str:
        return f"{self.task}_{self.language}_{self.target}"

    @property
    def items(self) -> Sequence[QuestionPair]:
        return self.pairs

    def judge(self, answers: Sequence[Answer], texts: Sequence[str]) -> list[dict[str, Any]]:
        """Each text as it was decoded, all of it: a model that goes on behind its translation pays for it."""
        scores = chrf(texts, [pair.response for pair in self.pairs]).sentences
        rows = zip(self.pairs, self.prompts, answers, texts, scores, strict=True)
        return [
            {
                "task": self.task,
                "language": self.language,
                "target": self.target,
                "row": row,
                **of_decoding(prompt, answer),
                "source": pair.prompt,
                "reference": pair.response,
                "text": text,
                "chrf": score,
            }
            for row, (pair, prompt, answer, text, score) in enumerate(rows, start=self.first_row)
        ]

    def summary(self, records: Records) -> dict[str, Any]:
        """chrF of the corpus, not the mean over sentences."""
        score = chrf([record["text"] for record in records], [record["reference"] for record in records])
        return {
            "task": self.task,
            "language": self.language,
            "target": self.target,
            "count": len(records),
            "chrf": score.corpus,
            "signature": score.signature,
            "seen": self.seen,
            "held_out": self.heldout,
            **over_decoding(records),
        }


def of_decoding(prompt: Sequence[int], answer: Answer) -> dict[str, Any]:
    """What a record says about how its text came to be."""
    return {
        "prompt_tokens": len(prompt),
        "answer_tokens": len(answer.ids),
        "stopped": answer.stopped,
        "near_ties": answer.near_ties,
    }


def over_decoding(records: Records) -> dict[str, Any]:
    """How often the next token hung on float32 rounding, and the share of texts that came to an end of their own."""
    return {
        "near_ties": sum(record["near_ties"] for record in records),
        "stopped_share": sum(record["stopped"] for record in records) / len(records),
    }


def finite(number: float | None) -> float | None:
    """The number if JSON can hold it."""
    return number if number is not None and math.isfinite(number) else None


def math_cell(
    data: Path, task: MathTask, language: str, rows: slice, tokenizer: Tokenizer, max_tokens: int = 0
) -> MathCell:
    """The chosen rows of MGSM or MSVAMP in one language; with max_tokens = 0, answers as long as the task's own."""
    problems = read_problems(data, task, language, rows)
    prompts = tokenizer.batch_prompt_ids([alpaca_prompt(problem.question) for problem in problems])
    return MathCell(task.name, language, prompts, (tokenizer.eos_id,), max_tokens or task.max_tokens, problems)


def translation_cells(
    pairs: Sequence[QuestionPair],
    rows: slice,
    tokenizer: Tokenizer,
    template: str,
    *,
    heldout: bool,
    tuned_on: Sequence[str] | None,
    max_tokens: int = 0,
) -> list[TranslationCell]:
    """One cell per source and target language, in the order of the pairs; `rows` are chosen within each.

    Args:
      template: the chat template's name; prompts are those of training, and what closes a response ends a text.
      heldout, tuned_on: see `TranslationCell`; languages as codes, None where they are not known.
    """
    by_languages: dict[tuple[str, str], list[QuestionPair]] = {}
    for pair in pairs:
        by_languages.setdefault((pair.source_language, pair.target_language), []).append(pair)
    cells = []
    for (source, target), members in by_languages.items():
        chosen = members[rows]
        if not chosen:
            continue
        rendered = list(render_all(chosen, template, tokenizer))
        cells.append(
            TranslationCell(
                task=TRANSLATION,
                language=source,
                prompts=[prompt for prompt, _ in rendered],
                stops=tuple(sorted({rendered[0][1][-1], tokenizer.eos_id})),
                max_tokens=max_tokens or TRANSLATION_MAX_TOKENS,
                target=target,
                first_row=rows.start or 0,
                pairs=chosen,
                heldout=heldout,
                seen=None if tuned_on is None else source in tuned_on,
            )
        )
    return cells
