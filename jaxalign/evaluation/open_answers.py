"""Open answers: cells decoded one after the other, with records on disk.

`out/cells/{cell}.json` holds a finished cell, as those of label scoring beside it: the same command started again
reads it. When all cells are there, `answers.jsonl`, `open_results.json` and `open_timing.json` are written. The files
of label scoring are not touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.evaluation.generate import Answer, Generator
from jaxalign.evaluation.grid import CELL_ERRORS, cell_failure, finished_on_the_first, save
from jaxalign.evaluation.open_cells import TRANSLATION, OpenCell
from jaxalign.files import write_json, write_json_lines
from jaxalign.log import is_hidden
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import agree, of_the_first

OPEN_TASK_VERSIONS = {"mgsm": 2, "msvamp": 2, TRANSLATION: 1}
"""Raised when a task's prompts, limits or extraction change: only scores of equal version compare."""


def evaluate_open(
    out: Path,
    generator: Generator,
    variables: Any,
    tokenizer: Tokenizer,
    cells: Sequence[OpenCell],
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """Decodes every cell that is not finished yet and writes the three files of open answers.

    A cell that cannot be decoded (a prompt too long for the model, no memory left) is listed under "failures", and the
    others go on.

    Args:
      out: the folder that receives them; only process 0 writes.
      settings: what answers depend on beyond prompts and weights (model, adapter, precision), JSON values; a finished
        cell is reused only if they, the prompts and the weights are equal, and otherwise refused with an InputError.
      description: what `open_results.json` says besides its cells: model, adapter, tuned_on, bos, config, command and
        versions.

    Returns:
      The content of `open_results.json`; on another process than 0, without the cells that were finished before.
    """
    settings = {**settings, "weights_sha256": weights_sha256(variables)}
    origins = {cell.name: made_from(cell, settings) for cell in cells}
    agree("the questions", origins)
    found = of_the_first([cell_path(out, cell).is_file() for cell in cells])
    answers = {"decoded": 0, "reused": sum(len(cell.prompts) for cell, done in zip(cells, found, strict=True) if done)}
    failures = []
    is_writer = jax.process_index() == 0
    records = {
        cell.name: finished_on_the_first(cell_path(out, cell), origins[cell.name])
        for cell, done in zip(cells, found, strict=True)
        if done
    }
    total = sum(len(cell.prompts) for cell in cells)
    with tqdm(total=total, initial=answers["reused"], unit="answer", disable=is_hidden()) as progress:
        for cell, done in zip(cells, found, strict=True):
            if done:
                continue
            progress.set_description(cell.name)
            try:
                decoded = generator(variables, cell.prompts, cell.stops, cell.max_tokens, progress.update)
            except CELL_ERRORS as error:
                failures.append({"task": cell.task, "language": cell.language, "error": cell_failure(error)})
                continue
            judged = records[cell.name] = cell.judge(decoded, texts_of(decoded, tokenizer))
            answers["decoded"] += len(cell.prompts)
            if is_writer:
                save(cell_path(out, cell), origins[cell.name], judged)
    decoded_cells = [(cell, done) for cell in cells if (done := records.get(cell.name)) is not None]
    results = {
        "open_cells": [cell.summary(done) for cell, done in decoded_cells],
        "failures": failures,
        "task_version": {cell.task: OPEN_TASK_VERSIONS[cell.task] for cell in cells},
        **description,
    }
    if is_writer:
        write_json_lines(out / "answers.jsonl", (record for _, done in decoded_cells for record in done))
        write_json(out / "open_timing.json", {"answers": answers, **timing(generator)})
        write_json(out / "open_results.json", results)
    return results


def texts_of(answers: Sequence[Answer], tokenizer: Tokenizer) -> list[str]:
    """The texts of the answers' ids, special tokens left out and nothing tidied up."""
    return [
        str(tokenizer.backend.decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for answer in answers
    ]


def cell_path(out: Path, cell: OpenCell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def made_from(cell: OpenCell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a finished cell depends on, by name. The order of keys is the order in which differences are named."""
    return {
        **settings,
        "task_version": OPEN_TASK_VERSIONS[cell.task],
        "max_tokens": cell.max_tokens,
        "inputs_sha256": cell.inputs_sha256(),
    }


def timing(generator: Generator) -> dict[str, Any]:
    """What was done in this run, compilation among its seconds."""
    counts, chosen = generator.runner.counts, generator.chosen_tokens
    per_second = chosen / counts.seconds if counts.seconds else 0.0
    return {**asdict(counts), "chosen_tokens": chosen, "chosen_tokens_per_second": round(per_second, 1)}
