"""Cells that are decoded: math problems, judged by their number, and translations, judged by chrF.

chrF (Popović 2015), by sacrebleu: the F-score of shared character n-grams, 0 to 100.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.data.math_problems import MathProblem, MathTask, alpaca_prompt, read_problems
from jaxalign.data.pairs import QuestionPair
from jaxalign.data.tokenizer import Tokenizer, render_all
from jaxalign.evaluation.cells import TASK_VERSIONS, Records, digest
from jaxalign.evaluation.generate import Answer, Generator
from jaxalign.evaluation.number_answers import corrected_number, equals, reference_number
from jaxalign.model.ragged import OnRows
from jaxalign.statistics import wilson_interval


class ChrfScore(NamedTuple):
    corpus: float
    """over all n-grams together, not the mean of `sentences`"""
    sentences: list[float]
    signature: str
    """sacrebleu's, settings and version"""


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


@dataclass(frozen=True)
class OpenCell:
    """One task in one language, ready to be decoded.

    stops: the ids that end an answer.
    items: what the prompts were made of; rows: their numbers.
    """

    task: str
    language: str
    tokenizer: Tokenizer
    prompts: list[list[int]]
    stops: tuple[int, ...]
    max_tokens: int
    items: Sequence[Any]
    rows: Sequence[int]

    @property
    def name(self) -> str:
        return "_".join(self.labels.values())

    @property
    def labels(self) -> dict[str, str]:
        return {"task": self.task, "language": self.language}

    def __len__(self) -> int:
        return len(self.prompts)

    def queries(self) -> list[list[int]]:
        return self.prompts

    def origin(self, queries: Sequence[list[int]]) -> dict[str, Any]:
        inputs = [queries, self.stops, self.max_tokens, [asdict(item) for item in self.items]]
        return {
            "task_version": TASK_VERSIONS[self.task],
            "max_tokens": self.max_tokens,
            "inputs_sha256": digest(inputs),
        }

    def ask(
        self, asker: Generator, variables: Any, queries: Sequence[list[int]], on_rows: OnRows = lambda rows: None
    ) -> list[dict[str, Any]]:
        return self.records(asker(variables, queries, self.stops, self.max_tokens, on_rows))

    def records(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """One record per answer, whose text is as it was decoded, special tokens left out."""
        decode = self.tokenizer.backend.decode
        texts = [
            str(decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for answer in answers
        ]
        return [
            {
                **self.labels,
                "row": row,
                "prompt_tokens": len(prompt),
                "answer_tokens": len(answer.ids),
                "stopped": answer.stopped,
                "near_ties": answer.near_ties,
                **judged,
            }
            for row, prompt, answer, judged in zip(self.rows, self.prompts, answers, self.judge(texts), strict=True)
        ]

    def judge(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """What the records say of the texts; and `scores` what the summary says of the records."""
        raise NotImplementedError

    def scores(self, records: Records) -> dict[str, Any]:
        raise NotImplementedError

    def summary(self, records: Records) -> dict[str, Any]:
        """Scores, how often a token hung on float32 rounding, and the share of texts that ended by themselves."""
        return {
            **self.labels,
            "count": len(records),
            **self.scores(records),
            "near_ties": sum(record["near_ties"] for record in records),
            "stopped_share": sum(record["stopped"] for record in records) / len(records),
        }


@dataclass(frozen=True)
class MathCell(OpenCell):
    """Problems of MGSM or MSVAMP."""

    items: Sequence[MathProblem]

    def judge(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Both extractions side by side. A number too large for a float is null, and wrong."""

        def finite(number: float | None) -> float | None:
            return number if number is not None and math.isfinite(number) else None

        judged = []
        for problem, text in zip(self.items, texts, strict=True):
            by_reference, corrected = reference_number(text), corrected_number(text, self.language)
            judged.append(
                {
                    "text": text,
                    "reference_number": finite(by_reference),
                    "corrected_number": finite(corrected),
                    "gold": problem.gold,
                    "correct_reference": equals(by_reference, reference_number(problem.answer)),
                    "correct_corrected": equals(corrected, problem.gold),
                }
            )
        return judged

    def scores(self, records: Records) -> dict[str, Any]:
        """Accuracies, with the 95 % Wilson interval of the corrected one."""
        count, correct = len(records), sum(record["correct_corrected"] for record in records)
        return {
            "accuracy_reference": sum(record["correct_reference"] for record in records) / count,
            "accuracy_corrected": correct / count,
            "interval_corrected": list(wilson_interval(correct, count)),
        }


@dataclass(frozen=True)
class TranslationCell(OpenCell):
    """Questions to translate from one language into another.

    heldout: whether a training run kept these pairs aside; false where they are a file's, whoever trained on it.
    seen: whether the model was tuned on the source language, None if unknown.
    """

    items: Sequence[QuestionPair]
    target: str
    heldout: bool
    seen: bool | None

    @property
    def labels(self) -> dict[str, str]:
        return {"task": self.task, "language": self.language, "target": self.target}

    def judge(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Each text as it was decoded, all of it: a model that goes on behind its translation pays for it."""
        sentences = chrf(texts, [pair.response for pair in self.items]).sentences
        return [
            {"source": pair.prompt, "reference": pair.response, "text": text, "chrf": sentence}
            for pair, text, sentence in zip(self.items, texts, sentences, strict=True)
        ]

    def scores(self, records: Records) -> dict[str, Any]:
        """chrF of the corpus, not the mean over sentences."""
        score = chrf([record["text"] for record in records], [record["reference"] for record in records])
        return {"chrf": score.corpus, "signature": score.signature, "seen": self.seen, "held_out": self.heldout}


def math_cell(
    data: Path, task: MathTask, language: str, rows: slice, tokenizer: Tokenizer, max_tokens: int = 0
) -> MathCell:
    """The chosen rows of MGSM or MSVAMP in one language; with max_tokens = 0, answers as long as the task's own."""
    problems = read_problems(data, task, language, rows)
    prompts = tokenizer.batch_prompt_ids([alpaca_prompt(problem.question) for problem in problems])
    most, numbers = max_tokens or task.max_tokens, [problem.row for problem in problems]
    return MathCell(task.name, language, tokenizer, prompts, (tokenizer.eos_id,), most, problems, numbers)


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
                tokenizer=tokenizer,
                prompts=[prompt for prompt, _ in rendered],
                stops=tuple(sorted({rendered[0][1][-1], tokenizer.eos_id})),
                max_tokens=max_tokens or TRANSLATION_MAX_TOKENS,
                items=chosen,
                rows=range(len(members))[rows],
                target=target,
                heldout=heldout,
                seen=None if tuned_on is None else source in tuned_on,
            )
        )
    return cells
