"""The prompts that probes run on: the study's in-language 2-shot emotion prompts.

What every probe is given: a model on its mesh, prompts, and where the results go.

What a probe leaves behind: named arrays, and a JSON file that names their axes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.data.prompts import Exemplars, few_shot_prefix, few_shot_prompt
from jaxalign.data.tasks import TASKS, TaskRow, read_task_rows
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.files import whole_file, write_json
from jaxalign.model.ragged import Runner
from jaxalign.model.transformer import Decoder

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


@dataclass(frozen=True)
class ProbeRun:
    """One model, probed on one set of prompts.

    variables: the decoder's collections.
    languages: codes, in the order of every result's language axis.
    batch_size: prompts that run at once, as `Runner` takes it.
    description: what the JSON files say besides: model, adapter, config, versions.
    on_rows: told after each batch how many prompts it held.
    """

    out: Path
    decoder: Decoder
    variables: Any
    mesh: Mesh
    data: ProbeData
    languages: Sequence[str]
    batch_size: int
    description: Mapping[str, Any]
    on_rows: Callable[[int], object] = lambda rows: None

    @cached_property
    def runner(self) -> Runner:
        """Runs functions on prompts of this model and mesh."""
        return Runner(self.decoder, self.variables, self.mesh, self.batch_size)


def write_probe(out: Path, name: str, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
    """Writes `out/{name}.npz` and `out/{name}.json`, each whole or not at all; only process 0 does."""
    if jax.process_index() > 0:
        return
    with whole_file(out / f"{name}.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(out / f"{name}.json", document)
