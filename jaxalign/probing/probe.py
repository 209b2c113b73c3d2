"""What every probe is given: a model on its mesh, and the study's in-language 2-shot emotion prompts.

A probe is a function of a `ProbeRun` whose result is a `Probe`: named arrays, and what they mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxalign.data.prompts import Exemplars, few_shot_prefix, few_shot_prompt
from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.ragged import Runner, check_lengths

TASK = TASKS["emotion"]
VARIANT = "in_language"
"""Exemplars and their answers are in the language of the row."""


@dataclass(frozen=True)
class ProbeTexts:
    """One language's rows, and the token ids of what probes read of them; tokenised once, when asked for."""

    rows: Sequence[TaskRow]
    exemplars: Exemplars
    tokenizer: Tokenizer

    @property
    def language(self) -> str:
        return self.rows[0].language

    @property
    def numbers(self) -> list[int]:
        """The rows' own; the same row is the same item in every language."""
        return [row.row for row in self.rows]

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Few-shot examples and query of each row."""
        return [self.tokenizer.prompt_ids(few_shot_prompt(row, self.exemplars, VARIANT)) for row in self.rows]

    @cached_property
    def texts(self) -> list[list[int]]:
        """The texts of each row alone: no examples, no cue words."""
        return [self.tokenizer.prompt_ids("\n".join(row.fields)) for row in self.rows]

    @cached_property
    def examples(self) -> list[int]:
        """What all prompts begin with, up to the newline before the query.

        Where the tokenizer merges that newline with the query, a prompt shares all but the last of them.
        """
        return self.tokenizer.prompt_ids(few_shot_prefix(TASK, self.language, self.exemplars, VARIANT) + "\n")


def probe_texts(rows: Iterable[Sequence[TaskRow]], exemplars: Exemplars, tokenizer: Tokenizer) -> dict[str, ProbeTexts]:
    """Language -> its texts, of the rows of one language after the other."""
    return {each[0].language: ProbeTexts(each, exemplars, tokenizer) for each in rows}


@dataclass(frozen=True)
class ProbeRun:
    """One model, probed on one set of prompts.

    runner: of the decoder on its mesh.
    variables: the decoder's collections; another model of their structure is `dataclasses.replace(run, variables=...)`,
      which runs what is compiled already.
    texts: by language, in the order of every result's language axis.
    on_rows: told after each batch how many prompts it held.
    """

    runner: Runner
    variables: Any
    texts: Mapping[str, ProbeTexts]
    on_rows: Callable[[int], object] = lambda rows: None

    @property
    def languages(self) -> list[str]:
        return list(self.texts)

    @property
    def config(self) -> ModelConfig:
        return self.runner.decoder.config

    @cached_property
    def placed(self) -> Any:
        """The variables as the mesh holds them."""
        return self.runner.place(self.variables)

    def ask(
        self,
        function: Callable[..., Any],
        prompts: Sequence[Sequence[int]],
        shared: int,
        *extra: Any,
        of_prefix: Callable[..., Any] | None = None,
        **static: Any,
    ) -> Any:
        """What `function` finds in each prompt, arrays [prompts, ...]; their first `shared` tokens run once.

        What `of_prefix` makes of those is the first of the function's arguments behind tokens and lengths.
        """
        check_lengths(list(map(len, prompts)), self.config.max_positions)
        prefix = self.runner.run_prefix(self.placed, prompts[0][:shared], of_prefix)
        rests = [prompt[shared:] for prompt in prompts]
        return self.runner(function, self.placed, rests, prefix, *extra, on_rows=self.on_rows, **static)


def check_finite(texts: ProbeTexts, values: np.ndarray) -> None:
    """InputError that names the first of the rows whose values [rows, ...] are not all finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{texts.language}, row {texts.rows[int(np.argmin(finite))].row}: hidden states or logits are not finite; "
            "check the weights, or compute in float32"
        )
