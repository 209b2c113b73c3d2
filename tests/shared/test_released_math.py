"""MGSM and MSVAMP as released: every row is read, and both extractions agree on every gold answer."""

import json
from pathlib import Path

import pytest

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.math_problems import MATH_LANGUAGES, MATH_TASKS, read_problems
from jaxalign.evaluation.number_answers import corrected_number, equals, reference_number


@pytest.mark.parametrize(("task", "rows", "question"), [("mgsm", 250, "query"), ("msvamp", 1000, "m_query")])
@pytest.mark.parametrize("language", MATH_LANGUAGES)
def test_every_row_is_read(shared: Path, task: str, rows: int, question: str, language: str):
    problems = read_problems(shared / "data", MATH_TASKS[task], language, slice(None))
    prefix = "mgsm" if task == "mgsm" else "test"
    raw = (shared / f"data/qalign/{task}/{prefix}_{LANGUAGES[language].name}.json").read_text(encoding="utf-8")
    items = [json.loads(line) for line in raw.splitlines() if line]
    assert len(problems) == len(items) == rows
    for problem, item in zip(problems, items, strict=True):
        assert (problem.question, problem.answer) == (item[question], item["response"])
        assert reference_number(problem.answer) == problem.gold
        # An answer that spells the gold number in the file's notation is right in every language.
        assert equals(corrected_number(f"= {problem.answer}.", language), problem.gold)


@pytest.mark.parametrize("task", MATH_TASKS)
def test_a_row_is_the_same_problem_in_every_language(shared: Path, task: str):
    golds = {
        language: [problem.gold for problem in read_problems(shared / "data", MATH_TASKS[task], language, slice(None))]
        for language in MATH_LANGUAGES
    }
    assert all(golds[language] == golds["en"] for language in MATH_LANGUAGES)
