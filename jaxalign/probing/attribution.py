"""Which languages and scripts a layer would write in: the lens distribution summed over the tokens of each.

Logits of the whole vocabulary never exist at once: the head is read in chunks, inside the scan over layers.

Axis letters: B batch, L layers, P last positions, G groups (languages, then scripts), V vocabulary.

Which language and which script a token is of: by counts over parallel texts, and by Unicode.

Axis letters: V vocabulary, K languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import regex

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import TASKS, Task, read_task_rows, task_file_named
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import check_lengths, decode_prompts, shared_length
from jaxalign.model.readout import CHUNK, group_masses
from jaxalign.model.transformer import Decoder
from jaxalign.probing.probe import TASK, VARIANT, ProbeRun, probe_prompts, write_probe
from jaxalign.statistics import mean_and_half_width

UNDECIDABLE = "undecidable"
SCRIPTS = ("Latin", "Cyrillic", "Han", "Kana", "Devanagari", "Bengali", "Thai")
"""The scripts of the twenty languages, as Unicode's property Script; Kana is its Hiragana and Katakana."""
OTHER_SCRIPT, SEVERAL_SCRIPTS, NO_LETTERS, PART_OF_CHARACTER = (
    "other script",
    "several scripts",
    "no letters",
    "part of a character",
)
SCRIPT_CLASSES = (*SCRIPTS, OTHER_SCRIPT, SEVERAL_SCRIPTS, NO_LETTERS, PART_OF_CHARACTER)

HELD_OUT = 0.2
"""Share of each file's rows, its last, that the map is tested on."""
PSEUDO_COUNT = 0.1
"""Added to each count, so that one occurrence in one language is no proof."""
CERTAINTY = 2 / 3
"""A token is of a language that is twice as likely as all the others together, or more."""

_SCRIPT_OF = [
    (script, regex.compile(r"[\p{Hiragana}\p{Katakana}]" if script == "Kana" else rf"\p{{Script={script}}}"))
    for script in SCRIPTS
]


class Texts(NamedTuple):
    """Parallel texts of one language."""

    counted: list[str]
    held_out: list[str]


class HeldOut(NamedTuple):
    """What the map says of one language's held-out texts: numbers of tokens."""

    tokens: int
    decided: int
    correct: int


@dataclass(frozen=True)
class TokenLanguages:
    """The map of one tokenizer.

    languages: codes; `language_of` counts them from 0, and `len(languages)` is undecidable.
    language_of: int32 [V].
    script_of: int32 [V], indices into SCRIPT_CLASSES.
    held_out: language -> how the map does on texts that it was not made from.
    """

    languages: list[str]
    language_of: np.ndarray
    script_of: np.ndarray
    held_out: Mapping[str, HeldOut]


def token_languages(tokenizer: Tokenizer, vocab_size: int, data: Path) -> TokenLanguages:
    """The map made from the test files of every language in `data`.

    vocab_size: V, the model's, which may have more ids than the tokenizer; those are undecidable.
    """
    languages = languages_with_texts(data)
    texts = {language: parallel_texts(data, language) for language in languages}
    counts = np.stack([token_counts(tokenizer, texts[language].counted, vocab_size) for language in languages])
    script_of = token_scripts(tokenizer, vocab_size)
    language_of = decide(counts, script_of, languages)
    held_out = {}
    for index, language in enumerate(languages):
        counts = token_counts(tokenizer, texts[language].held_out, vocab_size)
        held_out[language] = on_held_out(language_of, len(languages), index, counts)
    return TokenLanguages(languages, language_of, script_of, held_out)


def languages_with_texts(data: Path, task: Task = TASKS["emotion"]) -> list[str]:
    """The languages that have a test file of the task in `data`; every prompt of the probes needs emotion's."""
    named = map(task_file_named, (data / task.folder).glob("*.json"))
    there = {file.language for file in named if file and file.task is task and file.split == "test"}
    return [code for code in LANGUAGES if code in there]


def parallel_texts(data: Path, language: str) -> Texts:
    """All fields of all test rows of the tasks in `data`; the last fifth of each file's rows is held out.

    The last and not every fifth: neighbouring rows may share a premise.
    """
    counted, held_out = [], []
    for task in TASKS.values():
        if language not in languages_with_texts(data, task):
            continue
        rows = read_task_rows(data, task, language, "test", slice(None))
        first_held_out = len(rows) - max(1, round(HELD_OUT * len(rows)))
        counted += [field for row in rows[:first_held_out] for field in row.fields]
        held_out += [field for row in rows[first_held_out:] for field in row.fields]
    return Texts(counted, held_out)


def token_counts(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int) -> np.ndarray:
    """How often each token occurs in the texts: int64 [V]. Control tokens, such as the unknown one, are not counted."""
    if not texts:
        return np.zeros(vocab_size, np.int64)
    ids = np.concatenate([np.asarray(ids, np.int64) for ids in tokenizer.batch_ids(texts)])
    counts = np.bincount(ids, minlength=vocab_size)
    counts[[id for id in tokenizer.control_ids if id < vocab_size]] = 0
    return counts


def decide(counts: np.ndarray, script_of: np.ndarray, languages: Sequence[str]) -> np.ndarray:
    """The language of each token: int32 [V], `len(languages)` where it is undecidable.

    A token that occurs is of the language that is twice as likely, given the token, as all the others together, every
    language being as likely beforehand. One that does not occur is of the only language that writes in its script.

    Args:
      counts: int [K, V], occurrences in each language's texts.
      script_of: int [V], indices into SCRIPT_CLASSES.
    """
    occurs = counts.any(axis=0)
    smoothed = counts + PSEUDO_COUNT
    rates = smoothed / (counts.sum(axis=1, keepdims=True) + PSEUDO_COUNT * max(1, occurs.sum()))
    likelihood = rates / rates.sum(axis=0)
    decided = np.where(likelihood.max(axis=0) > CERTAINTY, likelihood.argmax(axis=0), len(languages))
    return np.where(occurs, decided, script_languages(languages)[script_of]).astype(np.int32)


def script_languages(languages: Sequence[str]) -> np.ndarray:
    """For each of SCRIPT_CLASSES the index of the only language that writes in it, or len(languages): int [scripts]."""
    # Japanese writes in Kana and in Han.
    writers = {
        script: [i for i, code in enumerate(languages) if LANGUAGES[code].script == script] for script in SCRIPTS
    }
    japanese = [i for i, code in enumerate(languages) if LANGUAGES[code].script == "Japanese"]
    writers["Kana"] = japanese
    writers["Han"] = [*writers["Han"], *japanese]
    only = [writers.get(script, []) for script in SCRIPT_CLASSES]
    return np.array([each[0] if len(each) == 1 else len(languages) for each in only])


def on_held_out(language_of: np.ndarray, languages: int, language: int, counts: np.ndarray) -> HeldOut:
    """How a map of so many languages does on texts of one of them, by the counts [V] of their tokens."""
    return HeldOut(
        tokens=int(counts.sum()),
        decided=int(counts[language_of < languages].sum()),
        correct=int(counts[language_of == language].sum()),
    )


def token_scripts(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Each token's script: int32 [V], indices into SCRIPT_CLASSES. Control tokens and unused ids have no letters."""
    scripts = np.full(vocab_size, SCRIPT_CLASSES.index(NO_LETTERS), np.int32)
    for token, index in tokenizer.vocabulary.items():
        if index < vocab_size and index not in tokenizer.control_ids:
            scripts[index] = SCRIPT_CLASSES.index(script_of_bytes(tokenizer.token_bytes(token)))
    return scripts


def script_of_bytes(text: bytes) -> str:
    """The one of SCRIPT_CLASSES that a token's UTF-8 bytes are of; letters decide, whatever stands between them."""
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError:
        return PART_OF_CHARACTER
    # Marks belong to letters: Thai and Devanagari vowels are some.
    letters = regex.findall(r"[\p{L}\p{M}]", characters)
    found = {next((script for script, one in _SCRIPT_OF if one.match(letter)), OTHER_SCRIPT) for letter in letters}
    if not found:
        return NO_LETTERS
    return found.pop() if len(found) == 1 else SEVERAL_SCRIPTS


def last_positions(states: jax.Array, lengths: jax.Array, count: int) -> jax.Array:
    """The states [B, count, D] at each prompt's last positions, in order, from states [B, T, D]."""
    positions = lengths[:, None] + jnp.arange(-count, 0, dtype=jnp.int32)[None]
    return jnp.take_along_axis(states, positions[:, :, None], axis=1)


def attribution_batch(
    decoder: Decoder,
    variables: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    prefix: Prefix | None,
    groups: jax.Array,
    *,
    group_count: int,
    positions: int = 1,
    chunk: int = CHUNK,
) -> jax.Array:
    """The masses of a batch, float32 [B, L, P, G]; prompts are at least P tokens long.

    Args:
      prefix: what all prompts begin with, where the batch holds the rest of them alone.
      groups: int32 [2, V], each token's language, and its script, numbered through as groups.
    """

    def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
        normed = decoder.apply(variables, last_positions(hidden, lengths, positions), method="final_norm")
        return group_masses(decoder, variables, normed, groups, group_count, chunk)

    return jnp.moveaxis(decode_prompts(decoder, variables, tokens, lengths, tap, prefix=prefix).taps, 0, 1)


def groups_of(tokens: TokenLanguages) -> np.ndarray:
    """The groups of each token, int32 [2, V]: languages, undecidable, scripts."""
    return np.stack([tokens.language_of, tokens.script_of + len(tokens.languages) + 1])


class AttributionProgram:
    """The attribution, ready to run on one language after the other, with whatever variables of the run's structure."""

    def __init__(self, run: ProbeRun, positions: int = 1):
        """`positions`: how many last positions of each prompt are read, each on its own."""
        self.run, self.positions = run, positions
        self.tokens = token_languages(run.data.tokenizer, run.decoder.config.vocab_size, run.data.folder)
        self.groups = groups_of(self.tokens)
        self.group_count = len(self.tokens.languages) + 1 + len(SCRIPT_CLASSES)
        self.runner = run.runner

    def __call__(self, variables: Any) -> dict[str, np.ndarray]:
        """language -> the masses of its prompts, float32 [rows, L, P, G]."""
        variables = self.runner.place(variables)
        return {language: self.of_language(variables, language) for language in self.run.languages}

    def of_language(self, variables: Any, language: str) -> np.ndarray:
        """One language's prompts: what they begin with runs once."""
        run, positions = self.run, self.positions
        rows, prompts = probe_prompts(run.data, language)
        check_lengths(list(map(len, prompts)), run.decoder.config.max_positions)
        short = next((i for i, prompt in enumerate(prompts) if len(prompt) < positions), None)
        if short is not None:
            raise InputError(
                f"attribution: {language}, row {rows[short].row} has {len(prompts[short])} tokens, fewer than the "
                f"{positions} positions asked for; set --config.attribution_positions lower"
            )
        shared = shared_length(prompts, keep=positions)
        prefix = self.runner.run_prefix(variables, prompts[0][:shared])
        rests = [prompt[shared:] for prompt in prompts]
        masses = self.runner(
            attribution_batch,
            variables,
            rests,
            prefix,
            self.groups,
            on_rows=run.on_rows,
            group_count=self.group_count,
            positions=positions,
        )
        finite = np.isfinite(masses).all(axis=(1, 2, 3))
        if not finite.all():
            raise InputError(
                f"attribution: {language}, row {rows[int(np.argmin(finite))].row}: logits are not finite; "
                "check the weights, or compute in float32"
            )
        return masses


def attribution_arrays(masses: Mapping[str, np.ndarray], languages: int) -> dict[str, np.ndarray]:
    """Means over rows and their 95 % half-widths, float32 [prompt language, L, P, languages + 1 or scripts].

    Args:
      masses: prompt language -> [rows, L, P, G].
      languages: how many of the groups are languages; the next is the undecidable, then come the scripts.
    """
    means, half_widths = zip(*map(mean_and_half_width, masses.values()), strict=True)
    arrays = {}
    for statistic, values in (("mean", np.stack(means)), ("half_width", np.stack(half_widths))):
        by_language, by_script = np.split(values.astype(np.float32), [languages + 1], axis=-1)
        arrays |= {f"language_mass_{statistic}": by_language, f"script_mass_{statistic}": by_script}
    return arrays


def map_document(tokens: TokenLanguages) -> dict[str, Any]:
    """How the token map was made, and how right it is on held-out texts."""
    undecidable = len(tokens.languages)
    total = HeldOut(*np.sum(list(tokens.held_out.values()), axis=0).tolist())
    of = np.bincount(tokens.language_of, minlength=undecidable + 1).tolist()
    return {
        "rule": "the language that is twice as likely, given the token, as all others together, by counts in parallel "
        "texts; a token without counts: the only language that writes in its script; else undecidable",
        "tokens_of": dict(zip([*tokens.languages, UNDECIDABLE], of, strict=True)),
        "held_out_share": HELD_OUT,
        "held_out": {"all": accuracy(total)} | {code: accuracy(each) for code, each in tokens.held_out.items()},
    }


def accuracy(held_out: HeldOut) -> dict[str, float | int | None]:
    """Share of tokens that are decided, and share of those that are right (null where none is)."""
    return {
        "tokens": held_out.tokens,
        "decided": held_out.decided / held_out.tokens if held_out.tokens else None,
        "accuracy": held_out.correct / held_out.decided if held_out.decided else None,
    }


def write_attribution(run: ProbeRun, positions: int = 1) -> dict[str, Any]:
    """Runs it on every language; writes `attribution.npz` and, naming its axes, `attribution.json`, to `run.out`.

    Args:
      positions: how many last positions of each prompt are read, each on its own.

    Returns:
      The content of the JSON file.
    """
    program = AttributionProgram(run, positions)
    tokens, masses = program.tokens, program(run.variables)
    by_language, by_script = (["language", "layer", "position", f"token_{axis}"] for axis in ("language", "script"))
    document = {
        "axes": {
            f"{kind}_mass_{statistic}": axes
            for kind, axes in (("language", by_language), ("script", by_script))
            for statistic in ("mean", "half_width")
        },
        "language": list(run.languages),
        "layer": list(range(1, run.decoder.config.layers + 1)),
        "position": list(range(-positions, 0)),
        "token_language": [*tokens.languages, UNDECIDABLE],
        "token_script": list(SCRIPT_CLASSES),
        "units": "probability; over token_language, and over token_script, it adds up to 1",
        "rows": {language: len(each) for language, each in masses.items()},
        "token_map": map_document(tokens),
        "task": TASK.name,
        "variant": VARIANT,
        **run.description,
    }
    write_probe(run.out, "attribution", attribution_arrays(masses, len(tokens.languages)), document)
    return document
