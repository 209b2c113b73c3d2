"""Word problems with a number for an answer: MGSM and MSVAMP in ten languages, as QAlign's repository releases them.

    DATA/mgsm/mgsm_German.json       JSON lines {query, response}, 250
    DATA/msvamp/test_German.json     JSON lines {m_query, equation, response}, 1,000

DATA/qalign/mgsm and DATA/qalign/msvamp are found too. Row i is the same problem in every language.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxalign.data.fields import json_rows, object_of, text_of
from jaxalign.data.languages import LANGUAGES, language_of
from jaxalign.data.tokenizer import TEMPLATES
from jaxalign.errors import InputError, gather

MATH_LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")
"""In QAlign's order (arXiv 2401.07817)."""


@dataclass(frozen=True)
class MathTask:
    """file: its name around the language's English one. max_tokens: of an answer, as in QAlign's evaluation."""

    name: str
    file: str
    question: str
    max_tokens: int


MATH_TASKS = {
    task.name: task
    for task in (
        MathTask("mgsm", "mgsm_{}.json", "query", max_tokens=600),
        MathTask("msvamp", "test_{}.json", "m_query", max_tokens=300),
    )
}


@dataclass(frozen=True)
class MathProblem:
    """One row. answer: as the file spells it, a number in English notation (2,125 or 8.0)."""

    task: str
    language: str
    row: int
    question: str
    answer: str

    @property
    def gold(self) -> float:
        return float(self.answer.replace(",", ""))


def alpaca_prompt(instruction: str) -> str:
    """The prompt that QAlign tests with, which is the one that it tunes with."""
    return TEMPLATES["alpaca"].around(instruction)


def read_problems(data: Path, task: MathTask, language: str, rows: slice) -> list[MathProblem]:
    """The chosen rows of a task in one language; every row of the file is checked, chosen or not."""
    language = language_of(language).code
    if language not in MATH_LANGUAGES:
        raise InputError(f"{task.name}: there is no {language} file; its languages are {','.join(MATH_LANGUAGES)}")
    folders = [data / task.name, data / "qalign" / task.name]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise InputError(
            f"{data}: no folder {task.name} (nor qalign/{task.name}) there; {task.name} needs the files of QAlign's "
            "repository, --config.data=FOLDER names where they are"
        )
    file = folder / task.file.format(LANGUAGES[language].name)

    def problem(number: int, row: Any, where: str) -> MathProblem:
        question, answer = (text_of(object_of(row, where), name, where) for name in (task.question, "response"))
        if not re.fullmatch(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", answer, re.ASCII):
            raise InputError(f"{where}, field 'response': a number is needed, as 18, 2,125 or 8.0, found {answer!r}")
        return MathProblem(task.name, language, number, question, answer)

    problems = gather(partial(problem, number, row, where) for number, (where, row) in enumerate(json_rows(file)))
    if not problems[rows]:
        raise InputError(f"{file}: no row in {rows.start or 0}:{rows.stop}; the file has {len(problems)}")
    return problems[rows]
