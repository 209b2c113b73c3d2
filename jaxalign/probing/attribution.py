"""Which languages and scripts a layer would write in: the lens distribution summed over the tokens of each.

Which language a token is of is counted in parallel texts, and its script is Unicode's. Logits of the whole vocabulary
never exist at once: the head is read in chunks, inside the scan over layers.

Axis letters: B batch, L layers, P last positions, G groups (languages, undecidable, then scripts), V vocabulary, K
languages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import regex

from jaxalign.data.languages import LANGUAGES
from jaxalign.data.tasks import TASKS, Task, TaskData, task_file_named
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.model.attention import Prefix
from jaxalign.model.ragged import decode_prompts, shared_length
from jaxalign.model.readout import CHUNK, group_masses
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import PROBE_ARRAYS, Probe
from jaxalign.probing.probe import TASK, VARIANT, ProbeRun, check_finite
from jaxalign.statistics import mean_and_half_width

UNDECIDABLE = "undecidable"
SCRIPTS = ("Latin", "Cyrillic", "Han", "Kana", "Devanagari", "Bengali", "Thai")
"""The scripts of the twenty languages, as Unicode's property Script; Kana is its Hiragana and Katakana."""
SCRIPT_CLASSES = (*SCRIPTS, "other script", "several scripts", "no letters", "part of a character")
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


class HeldOut(NamedTuple):
    """What the map says of one language's held-out texts: numbers of tokens."""

    tokens: int
    decided: int
    correct: int

    def document(self) -> dict[str, float | int | None]:
        """Share of tokens that are decided, and share of those that are right (null where none is)."""
        return {
            "tokens": self.tokens,
            "decided": self.decided / self.tokens if self.tokens else None,
            "accuracy": self.correct / self.decided if self.decided else None,
        }


@dataclass(frozen=True)
class TokenLanguages:
    """The map of one tokenizer."""

    languages: list[str]
    language_of: np.ndarray
    """int32 [V], indices into `languages`; `len(languages)` is undecidable"""
    script_of: np.ndarray
    """int32 [V], indices into SCRIPT_CLASSES"""
    held_out: Mapping[str, HeldOut]
    """language -> how the map does on texts that it was not made from"""

    @property
    def groups(self) -> np.ndarray:
        """The groups of each token, int32 [2, V]: languages and undecidable; scripts."""
        return np.stack([self.language_of, self.script_of + len(self.languages) + 1])

    def document(self) -> dict[str, Any]:
        """How the map was made, and how right it is on held-out texts."""
        total = HeldOut(*np.sum(list(self.held_out.values()), axis=0).tolist())
        of = np.bincount(self.language_of, minlength=len(self.languages) + 1).tolist()
        return {
            "rule": "the language that is twice as likely, given the token, as all others together, by counts in "
            "parallel texts; a token without counts: the only language that writes in its script; else undecidable",
            "tokens_of": dict(zip([*self.languages, UNDECIDABLE], of, strict=True)),
            "held_out_share": HELD_OUT,
            "held_out": {"all": total.document()} | {code: each.document() for code, each in self.held_out.items()},
        }


def token_languages(tokenizer: Tokenizer, vocab_size: int, data: TaskData) -> TokenLanguages:
    """The map made from the test files of every language that emotion has one of. V is the model's vocab_size, which
    may have more ids than the tokenizer; those are undecidable."""
    languages = languages_with_texts(data, TASK)
    texts = [parallel_texts(data, language) for language in languages]
    counts = np.stack([token_counts(tokenizer, counted, vocab_size) for counted, _ in texts])
    script_of = token_scripts(tokenizer, vocab_size)
    language_of = decide(counts, script_of, languages)
    held_out = {}
    for index, (language, (_, unseen)) in enumerate(zip(languages, texts, strict=True)):
        counts = token_counts(tokenizer, unseen, vocab_size)
        decided, correct = counts[language_of < len(languages)].sum(), counts[language_of == index].sum()
        held_out[language] = HeldOut(int(counts.sum()), int(decided), int(correct))
    return TokenLanguages(languages, language_of, script_of, held_out)


def languages_with_texts(data: TaskData, task: Task) -> list[str]:
    """The languages that have a test file of the task."""
    named = map(task_file_named, (data.folder / task.folder).glob("*.json"))
    there = {file.language for file in named if file and file.task is task and file.split == "test"}
    return [code for code in LANGUAGES if code in there]


def parallel_texts(data: TaskData, language: str) -> tuple[list[str], list[str]]:
    """All fields of all test rows of the tasks: those to count, and those that are held out, the last fifth of a file,
    as neighbouring rows may share a premise."""
    counted, held_out = [], []
    for task in TASKS.values():
        if language not in languages_with_texts(data, task):
            continue
        rows = data.rows(task, language)
        first_held_out = len(rows) - max(1, round(HELD_OUT * len(rows)))
        counted += [field for row in rows[:first_held_out] for field in row.fields]
        held_out += [field for row in rows[first_held_out:] for field in row.fields]
    return counted, held_out


def token_counts(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int) -> np.ndarray:
    """How often each token occurs in the texts: int64 [V]. Control tokens, such as the unknown one, are not counted."""
    if not texts:
        return np.zeros(vocab_size, np.int64)
    ids = np.concatenate([np.asarray(ids, np.int64) for ids in tokenizer.batch_ids(texts)])
    counts = np.bincount(ids, minlength=vocab_size)
    counts[[id for id in tokenizer.control_ids if id < vocab_size]] = 0
    return counts


def decide(counts: np.ndarray, script_of: np.ndarray, languages: Sequence[str]) -> np.ndarray:
    """The language of each token, see `TokenLanguages`, of its counts int [K, V] in each language's texts.

    A token that occurs is of the language that is twice as likely, given the token, as all the others together, every
    language being as likely beforehand. One that does not occur is of the only language that writes in its script.
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


def token_scripts(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Each token's script: int32 [V], indices into SCRIPT_CLASSES. Control tokens and unused ids have no letters."""
    scripts = np.full(vocab_size, SCRIPT_CLASSES.index("no letters"), np.int32)
    for token, index in tokenizer.vocabulary.items():
        if index < vocab_size and index not in tokenizer.control_ids:
            scripts[index] = SCRIPT_CLASSES.index(script_of_bytes(tokenizer.token_bytes(token)))
    return scripts


def script_of_bytes(text: bytes) -> str:
    """The one of SCRIPT_CLASSES that a token's UTF-8 bytes are of; letters decide, whatever stands between them."""
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError:
        return "part of a character"
    # Marks belong to letters: Thai and Devanagari vowels are some.
    letters = regex.findall(r"[\p{L}\p{M}]", characters)
    found = {next((script for script, one in _SCRIPT_OF if one.match(letter)), "other script") for letter in letters}
    if not found:
        return "no letters"
    return found.pop() if len(found) == 1 else "several scripts"


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
    """The masses of a batch at its prompts' last P positions, float32 [B, L, P, G]; prompts are at least P tokens long.

    prefix: what all prompts begin with, where the batch holds the rest of them alone.
    """
    places = lengths[:, None] + jnp.arange(-positions, 0, dtype=jnp.int32)[None]

    def tap(layer: jax.Array, hidden: jax.Array, gate: jax.Array) -> jax.Array:
        last = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        normed = decoder.apply(variables, last, method="final_norm")
        return group_masses(decoder, variables, normed, groups, group_count, chunk)

    return jnp.moveaxis(decode_prompts(decoder, variables, tokens, lengths, tap, prefix=prefix).taps, 0, 1)


def attribution_arrays(masses: Sequence[np.ndarray], languages: int) -> dict[str, np.ndarray]:
    """Means over rows and their 95 % half-widths, float32 [prompt language, L, P, languages + 1 or scripts], of the
    masses [rows, L, P, G] of each language's prompts; `languages` is how many of the groups are languages."""
    arrays = {}
    mean, half_width = zip(*map(mean_and_half_width, masses), strict=True)
    for statistic, values in (("mean", mean), ("half_width", half_width)):
        by_language, by_script = np.split(np.stack(values).astype(np.float32), [languages + 1], axis=-1)
        arrays |= {f"language_mass_{statistic}": by_language, f"script_mass_{statistic}": by_script}
    return arrays


def attribution(run: ProbeRun, token_map: Callable[[], TokenLanguages], positions: int = 1) -> Probe:
    """The masses on tokens of each language and script, at the last `positions` of each prompt, each on its own."""
    tokens = token_map()
    wanted: Any = {"group_count": len(tokens.languages) + 1 + len(SCRIPT_CLASSES), "positions": positions}
    masses = []
    for texts in run.texts.values():
        prompts = texts.prompts
        short = next((i for i, prompt in enumerate(prompts) if len(prompt) < positions), None)
        if short is not None:
            raise InputError(
                f"attribution: {texts.language}, row {texts.numbers[short]} has {len(prompts[short])} tokens, fewer "
                f"than the {positions} positions asked for; set attribution_positions lower"
            )
        shared = shared_length(prompts, keep=positions)
        masses.append(run.ask(attribution_batch, prompts, shared, tokens.groups, **wanted))
        check_finite(texts, masses[-1])
    document = {
        "axes": PROBE_ARRAYS["attribution"],
        "language": run.languages,
        "layer": list(range(1, run.config.layers + 1)),
        "position": list(range(-positions, 0)),
        "token_language": [*tokens.languages, UNDECIDABLE],
        "token_script": list(SCRIPT_CLASSES),
        "units": "probability; over token_language, and over token_script, it adds up to 1",
        "rows": {language: len(texts.rows) for language, texts in run.texts.items()},
        "token_map": tokens.document(),
        "task": TASK.name,
        "variant": VARIANT,
    }
    return Probe(attribution_arrays(masses, len(tokens.languages)), document)
