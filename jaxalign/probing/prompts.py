"""The prompts that probes run on: the study's in-language 2-shot emotion prompts."""

from dataclasses import dataclass
from pathlib import Path

from jaxalign.data.prompts import Exemplars, few_shot_prefix, few_shot_prompt
from jaxalign.data.tasks import TASKS, TaskRow, read_task_rows
from jaxalign.data.tokenizer import Tokenizer

TASK = TASKS["emotion"]
VARIANT = "in_language"
"""Exemplars and their answers are in the language of the row."""


@dataclass(frozen=True)
class ProbeData:
    """Where the prompts come from, and which rows of each language."""

    folder: Path
    exemplars: Exemplars
    tokenizer: Tokenizer
    rows: slice


def probe_prompts(data: ProbeData, language: str) -> tuple[list[TaskRow], list[list[int]]]:
    """The chosen rows of one language and the token ids of their prompts."""
    rows = read_task_rows(data.folder, TASK, language, "test", data.rows)
    return rows, [data.tokenizer.prompt_ids(few_shot_prompt(row, data.exemplars, VARIANT)) for row in rows]


def probe_texts(data: ProbeData, language: str) -> tuple[list[TaskRow], list[list[int]]]:
    """The chosen rows of one language and the token ids of their texts alone: no examples, no cue words."""
    rows = read_task_rows(data.folder, TASK, language, "test", data.rows)
    return rows, [data.tokenizer.prompt_ids("\n".join(row.fields)) for row in rows]


def probe_prefix(data: ProbeData, language: str) -> list[int]:
    """The token ids of what all prompts of a language begin with, up to the newline before the query.

    Where the tokenizer merges that newline with the query, a prompt shares all but the last of them.
    """
    return data.tokenizer.prompt_ids(few_shot_prefix(TASK, language, data.exemplars, VARIANT) + "\n")
