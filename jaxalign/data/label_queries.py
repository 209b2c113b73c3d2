"""Row -> what is scored: the prompt whose next token gives the label masses, and the label words written after it.

Both Thai words for positive and negative begin with เชิง, so whatever may begin the one may begin the other. Words that
share a start are told apart after it: the prompt goes on with the start, and the masses are those of what remains.

    ... อารมณ์: "เชิง          the prompt, with the start
                   บวก | ลบ    the remainders, whose candidates are scored

Whole words are written after the prompt without the start, closing quote included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from jaxalign.data.label_sets import label_candidates
from jaxalign.data.prompts import Exemplars, PromptStyle, Variant, few_shot_prompt, label_words
from jaxalign.data.tasks import TASKS, Task, TaskRow
from jaxalign.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """A label word written after a prompt.

    ids: tokens of prompt, word and closing quote as one text, with a BOS where the tokenizer adds one.
    scored_from: how many of them the tokenised prompt begins with as well; the log-probabilities of the others, each
      given all before it, are the word's score. A tokenizer that merges the opening quote with the word's first letter
      makes this one less than the prompt's length.
    """

    ids: list[int]
    scored_from: int


@dataclass(frozen=True)
class LabelQuery:
    """What is asked about one row.

    prompt: token ids after which the next token gives the label masses.
    words: one continuation per class, in the task's order of classes; empty where only masses are wanted.
    """

    prompt: list[int]
    words: tuple[Continuation, ...]


def shared_start(task: Task, language: str, variant: Variant) -> str:
    """What all label words begin with: เชิง for Thai in-language emotion, "" everywhere else."""
    words = label_words(task, language, variant).values()
    return reduce(lambda start, word: start[: common_length(start, word)], words)


def scored_candidates(
    task: Task, language: str, tokenizer: Tokenizer, variant: Variant, style: PromptStyle
) -> dict[str, list[int]]:
    """class -> candidate ids after the prompt of a `LabelQuery`, of what remains of the word after the shared start.

    The study's script for irrelevant words does not take the first tokens that a byte-level vocabulary needs.
    """
    start = shared_start(task, language, variant)
    words = label_words(task, language, variant)
    remainders = {name: word.removeprefix(start) for name, word in words.items()}
    return label_candidates(remainders, tokenizer, first_tokens=not (style == "study" and variant == "irrelevant"))


def label_query(
    row: TaskRow, exemplars: Exemplars, tokenizer: Tokenizer, variant: Variant, style: PromptStyle
) -> LabelQuery:
    """The query of one row; many rows are quicker together."""
    return label_queries([row], exemplars, tokenizer, variant, style)[0]


def label_queries(
    rows: Sequence[TaskRow], exemplars: Exemplars, tokenizer: Tokenizer, variant: Variant, style: PromptStyle
) -> list[LabelQuery]:
    """The query of each row, in their order; a row's query does not depend on the others."""
    texts = [few_shot_prompt(row, exemplars, variant, style) for row in rows]
    words = [list(label_words(TASKS[row.task], row.language, variant).values()) for row in rows]
    starts = [shared_start(TASKS[row.task], row.language, variant) for row in rows]
    tokenised = tokenizer.batch_prompt_ids(texts)
    answered = [text + word + '"' for text, own in zip(texts, words, strict=True) for word in own]
    written = iter(tokenizer.batch_prompt_ids(answered))
    return [
        LabelQuery(
            prompt=_with_start(text, ids, start, tokenizer, style),
            words=tuple(_continuation(next(written), ids) for _ in own),
        )
        for text, ids, start, own in zip(texts, tokenised, starts, words, strict=True)
    ]


def _with_start(text: str, ids: list[int], start: str, tokenizer: Tokenizer, style: PromptStyle) -> list[int]:
    """The tokenised prompt with the shared start of the words.

    The study appends what an ordinary call makes of the start alone: with SentencePiece a BOS and a ▁ in mid-sequence.
    """
    if not start:
        return ids
    return ids + tokenizer.prompt_ids(start) if style == "study" else tokenizer.prompt_ids(text + start)


def _continuation(ids: list[int], prompt: list[int]) -> Continuation:
    return Continuation(ids, common_length(prompt, ids))


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many first elements two sequences share."""
    if second[: len(first)] == first:  # nearly always, and much quicker than one by one
        return len(first)
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return len(second)
