"""Question-translation data from a task's parallel train files, in the study's format, and its control conditions.

A row is the question in the source language, with its cues and open answer quote, and the translation instruction;
its answer is the same question in the target language, with that language's cues:

    input    Prämisse: ...\\nHypothese: ...\\nAntwort: "\\nTranslate the input from German to English:\\n
    answer   Premise: ...\\nHypothesis: ...\\nAnswer: "

SNLI's pattern is that of the study's released files. Those of emotion and PAWS are assumed: the released files of
the two were not available to check, so they follow SNLI's with their own evaluation cues.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from jaxalign.data.languages import language_of
from jaxalign.data.pairs import Instruction, QuestionPair, instruction_languages, with_instruction
from jaxalign.data.prompts import question
from jaxalign.data.tasks import ALL_ROWS, Task, TaskData, TaskRow
from jaxalign.errors import InputError
from jaxalign.files import write_json

Control = Literal["none", "copy", "mispaired", "answers"]


def build_examples(
    data: Path,
    task: Task,
    sources: Sequence[str],
    target: str = "en",
    *,
    rows: slice = ALL_ROWS,
    instruction: Instruction = "after",
    control: Control = "none",
    seed: int = 0,
) -> list[QuestionPair]:
    """The rows of one training file, from `data/{folder}/{task}_{language}{rows}_train.json`.

    One source keeps the file's order; several are joined and shuffled with the seed. `rows` are those of each source.
    control: "none", or a condition that lacks one ingredient of question translation:
      "copy"       English to English: translation's format without another language;
      "mispaired"  each question answered by another row's translation: languages without their alignment;
      "answers"    English questions with their answers: the task without translation. Unlabelled rows are left out.
    copy and answers read English alone, so sources and target must say so.
    """
    sources = [language_of(source, "build.sources").code for source in sources]
    target = language_of(target, "build.target").code
    if control not in get_args(Control):
        raise InputError(f"control: {control!r} is none of {', '.join(get_args(Control))}")
    if not sources or len(set(sources)) != len(sources):
        raise InputError(f"sources: different languages are needed, found {','.join(sources) or 'none'}")
    if control in ("copy", "answers"):
        if sources != ["en"] or target != "en":
            raise InputError(f"control: {control} reads English alone; set sources and target to en")
    elif target in sources:
        raise InputError(f"sources: {target} is the target too; leave it out (English to English is control=copy)")
    files = TaskData(data)

    def chosen(language: str) -> list[TaskRow]:
        """The rows, all of them there: a shorter source would silently weigh less in a mixture."""
        read = files.rows(task, language, rows, "train")
        if rows.stop is not None and read[-1].row + 1 < rows.stop:
            raise InputError(
                f"rows: up to {rows.stop}, but {task.name} in {language} has {read[-1].row + 1} train rows"
            )
        return read

    if control == "answers":
        labelled = [row for row in chosen("en") if row.gold_class]
        return [QuestionPair(question(task, "en", row.fields), row.gold_class + '"', "en", "en") for row in labelled]
    mixture = []
    for source in sources:
        part = [
            QuestionPair(
                prompt=with_instruction(question(task, source, ours.fields), source, target, instruction),
                response=question(task, target, theirs.fields),
                source_language=source,
                target_language=target,
            )
            for ours, theirs in zip(chosen(source), chosen(target), strict=True)
        ]
        mixture += _mispaired(part, random.Random(f"{seed} {source}")) if control == "mispaired" else part
    if len(sources) > 1:
        random.Random(seed).shuffle(mixture)
    return mixture


def write_pairs(file: Path, pairs: Sequence[QuestionPair]) -> None:
    """Writes the study's JSON: rows of input and answer; the languages too where no instruction in the input tells."""
    rows = []
    for pair in pairs:
        row = {"input": pair.prompt, "answer": pair.response}
        if instruction_languages(pair.prompt, str(file)) is None:
            row |= {"source_language": pair.source_language, "target_language": pair.target_language}
        rows.append(row)
    write_json(file, rows)


def _mispaired(pairs: list[QuestionPair], rng: random.Random) -> list[QuestionPair]:
    """The same prompts and the same responses, no prompt with a response that reads as its own does.

    Rows in random order, equal responses side by side, responses moved on by the length of the longest such run:
    a row could only meet its own text again in a run longer than half the rows.
    """
    order = list(range(len(pairs)))
    rng.shuffle(order)
    runs = defaultdict(list)
    for index in order:
        runs[pairs[index].response].append(index)
    order = [index for run in runs.values() for index in run]
    shift = max(map(len, runs.values()))
    if 2 * shift > len(pairs):
        raise InputError(f"control: mispaired needs different targets, but {shift} of {len(pairs)} rows share one")
    donor = {index: order[(place + shift) % len(order)] for place, index in enumerate(order)}
    return [replace(pair, response=pairs[donor[index]].response) for index, pair in enumerate(pairs)]
