"""What the layers hold in numbers, of one model or before and after a tuning: a table and a note for each probe.

`runs` are labels of what is compared, "before" and "after" or one alone, and the probe of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.fields import array, field, read_object
from jaxalign.errors import InputError
from jaxalign.files import read_npz
from jaxalign.probe_files import Probe
from jaxalign.reporting.folders import check_alike, codes_of
from jaxalign.reporting.words import ARROW, Table, interval_text, language_title, said, signed
from jaxalign.statistics import (
    bootstrap_intervals,
    crossed_bootstrap,
    holm,
    percentile_interval,
    resampled_correlations,
    row_values,
    sign_flip_p_values,
)

LEVEL = 0.05
"""Of tests after correction; intervals cover 1 - LEVEL."""


LIKENESS = {
    # Centred measures, as uncentred cosines are mostly what all texts of a language share.
    "geometry": {"cka": "CKA", "retrieval_centred": "retrieval@1", "reciprocal_rank_centred": "recip. rank"},
    "pca": {"correlations": "r"},
}
"""Probe of how alike languages lie in each layer -> measure -> what its column is called."""


@dataclass(frozen=True)
class Change:
    """A measure at the headline's layer."""

    before: float
    after: float
    low: float
    high: float  # 95 % interval of after - before
    p_holm: float | None
    """of exchanging before and after in every row, adjusted over the headline's languages and measures; None where no
    test is made"""


@dataclass(frozen=True)
class PairedChange:
    """After minus before of the same rows, in every layer."""

    probe: str  # in LIKENESS
    labels: Sequence[Any]  # languages, or pairs of them
    layers: Sequence[int]
    rows: int
    position: str | None  # which states
    change: Mapping[str, np.ndarray]  # measure -> float64 [labels, layers]
    interval: Mapping[str, np.ndarray]
    """measure -> float64 [labels, layers, 2]: 95 % percentile bootstrap over the rows, the same before and after"""
    headline: Mapping[str, Mapping[str, Change]]  # line of the table -> measure -> its change at the middle layer

    @property
    def layer(self) -> int:
        """Of the headline."""
        return self.layers[middle(self.layers)]

    def document(self) -> dict[str, Any]:
        """As JSON; arrays are lists over labels, then layers."""
        position = {} if self.position is None else {"position": self.position}
        described = {"layer": list(self.layers), "rows": self.rows, **position, "headline_layer": self.layer}
        values = {
            name: {"change": self.change[name].tolist(), "interval": self.interval[name].tolist()}
            for name in self.change
        }
        lines = {line: {name: vars(each) for name, each in of.items()} for line, of in self.headline.items()}
        if self.probe == "geometry":
            return {"language": list(self.labels), **described, "headline": lines, **values}
        pairs, r = [list(pair) for pair in self.labels], "correlations"
        return {"pair": pairs, **described, "headline": {line: of[r] for line, of in lines.items()}, **values[r]}

    def table(self) -> Table:
        """A line a language, or group of pairs, and the mean; for each measure three columns."""
        columns = LIKENESS[self.probe]
        lines = []
        for line, changes in self.headline.items():
            texts = [f"mean ({len(self.labels)} languages)" if line == "mean" else language_title(line)]
            for change in (changes[measure] for measure in columns):
                mark = "**" if change.p_holm is not None and change.p_holm <= LEVEL else "  "
                texts += [
                    f"{change.before:.3f}{ARROW}{change.after:.3f}",
                    signed(change.after - change.before, 3) + mark,
                    interval_text((change.low, change.high), 3),
                ]
            lines.append(texts)
        tests = len(columns) * len(self.labels)
        return measures_table(self.probe, ("change  ", "95 %"), lines, self.layer, self.rows, self.position, tests)


def measures_table(
    probe: str,
    beside: Sequence[str],
    lines: Sequence[Sequence[str]],
    layer: int,
    rows: int,
    position: str | None,
    tests: int = 0,
) -> Table:
    """A table of LIKENESS at one layer; `beside` are the columns behind each measure's own, `tests`: of changes."""
    title = "correlation" if probe == "pca" else probe
    head = [f"{title}, layer {layer}", *(text for name in LIKENESS[probe].values() for text in (name, *beside))]
    return Table(head, lines, said(f"{probe}_note", layer=layer, rows=rows, position=position, tests=tests))


def middle(layers: Sequence[int]) -> int:
    """Which of the probed layers a headline is of: the middle one, fixed before anything is seen."""
    return len(layers) // 2


def likeness_table(name: str, probe: Probe) -> Table:
    """The measures of one model at the middle layer, a line a language; of correlations those with English."""
    document = probe.document
    index = middle(document["layer"])
    lines = []
    for k, code in enumerate(probe.languages):
        place = (index, probe.languages.index("en"), k) if name == "pca" else (k, index)
        texts = [language_title(code)]
        for measure in LIKENESS[name]:
            low, high = probe.arrays[f"{measure}_interval"][place]
            texts += [f"{probe.arrays[measure][place]:.3f}", f"{low:.3f} to {high:.3f}"]
        if name != "pca" or code != "en":
            lines.append(texts)
    layer, rows = document["layer"][index], len(document["row"])
    return measures_table(name, ["95 %"], lines, layer, rows, document.get("position"))


def geometry_change(before: Probe | None, after: Probe | None) -> PairedChange | None:
    """Pairs two geometry probes; None where one is missing, or no language is in both with the same rows and layers."""
    if before is None or after is None:
        return None
    first, second = before.document, after.document
    codes = [code for code in before.languages if code in after.languages]
    if not codes or any(first[name] != second[name] for name in ("row", "layer", "position")):
        return None
    values = [
        {
            measure: of_rows[[probe.languages.index(code) for code in codes]].astype(np.float64)
            for measure, of_rows in row_values(probe.arrays).items()
        }
        for probe in (before, after)
    ]
    differences = {measure: values[1][measure] - values[0][measure] for measure in values[0]}
    layer = middle(first["layer"])
    return PairedChange(
        probe="geometry",
        labels=codes,
        layers=first["layer"],
        rows=len(first["row"]),
        position=first["position"],
        change={measure: each.mean(axis=-1) for measure, each in differences.items()},
        interval={measure: bootstrap_intervals(each) for measure, each in differences.items()},
        headline=geometry_headline(codes, *({m: each[m][:, layer] for m in LIKENESS["geometry"]} for each in values)),
    )


def geometry_headline(
    codes: Sequence[str], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Change]]:
    """The changes at one layer by language, and of several their mean with an interval that speaks for further ones.

    before, after: measure -> what each row adds to it, float64 [languages, rows].
    """
    differences = np.stack([after[measure] - before[measure] for measure in before])
    intervals = bootstrap_intervals(differences).tolist()
    adjusted = holm(sign_flip_p_values(differences).ravel()).reshape(differences.shape[:2]).tolist()
    table: dict[str, dict[str, Change]] = {}
    for m, measure in enumerate(before):
        then, now = before[measure].mean(axis=1).tolist(), after[measure].mean(axis=1).tolist()
        for k, code in enumerate(codes):
            table.setdefault(code, {})[measure] = Change(then[k], now[k], *intervals[m][k], p_holm=adjusted[m][k])
    if len(codes) > 1:
        table["mean"] = {}
        for measure in before:
            gain = crossed_bootstrap(before[measure], after[measure])
            means = float(before[measure].mean()), float(after[measure].mean())
            table["mean"][measure] = Change(*means, gain.low, gain.high, None)
    return table


def correlation_change(before: Probe | None, after: Probe | None) -> PairedChange | None:
    """Pairs two PCA probes; None where one is missing, or they differ in languages, rows or layers.

    In languages too, since each probe's first component is that of all its languages together.
    """
    if before is None or after is None or len(before.languages) < 2:
        return None
    first, second = before.document, after.document
    codes, layers = before.languages, first["layer"]
    if sorted(codes) != sorted(after.languages) or first["row"] != second["row"] or layers != second["layer"]:
        return None
    order = [after.languages.index(code) for code in codes]
    of_pairs = np.triu_indices(len(codes), 1)
    # [pairs, layers]
    then, now = (
        array[:, *of_pairs].T.astype(np.float64)
        for array in (before.arrays["correlations"], after.arrays["correlations"][:, order][:, :, order])
    )
    # After minus before in resamples of the same rows: of each layer [pairs, resamples].
    coordinates = zip(before.arrays["first_component"], after.arrays["first_component"][:, order], strict=True)
    drawn = [resampled_correlations(tuned) - resampled_correlations(base) for base, tuned in coordinates]
    k = middle(layers)
    headline = {}
    for line, pairs in pair_groups(codes).items():
        low, high = percentile_interval(drawn[k][pairs].mean(axis=0)).tolist()
        change = Change(float(then[pairs, k].mean()), float(now[pairs, k].mean()), low, high, p_holm=None)
        headline[line] = {"correlations": change}
    return PairedChange(
        probe="pca",
        labels=list(combinations(codes, 2)),
        layers=layers,
        rows=len(first["row"]),
        position=None,
        change={"correlations": now - then},
        interval={"correlations": np.stack([percentile_interval(each) for each in drawn], 1)},
        headline=headline,
    )


def pair_groups(codes: Sequence[str]) -> dict[str, list[int]]:
    """Lines of the headline -> indices of the pairs that each is a mean over: one with English, all of these, all."""
    pairs = list(combinations(codes, 2))
    with_english = {other: i for i, pair in enumerate(pairs) if "en" in pair for other in pair if other != "en"}
    lines = {language_title(code): [index] for code, index in with_english.items()}
    if len(with_english) > 1:
        lines[f"mean ({len(with_english)} languages)"] = list(with_english.values())
    if len(pairs) > len(with_english):
        several = f"mean of all {len(pairs)} pairs"
        lines[several if len(pairs) > 1 else " and ".join(pairs[0])] = list(range(len(pairs)))
    return lines


class Column(NamedTuple):
    """What one column of a table says of each language in one run."""

    values: np.ndarray  # float64 [languages]; NaN is not shown
    besides: Sequence[str] = ()  # what stands behind each value


def numbers_table(
    head: str,
    runs: Sequence[Mapping[str, Column]],
    codes: Sequence[str],
    note: str,
    *,
    decimals: int = 3,
    of_changes: bool = False,
) -> Table:
    """A line a language: of each column before, after and the difference, or one run's value alone.

    runs: column -> its numbers, the same columns in each. of_changes: the values have a sign, and a line of means.
    """

    def text(column: str, k: int | None) -> str:
        """Of one language, or of the mean."""
        numbers = [each[column] for each in runs]
        values = [float(each.values.mean() if k is None else each.values[k]) for each in numbers]
        if np.isnan(values).any():
            return ""
        written = [signed(value, decimals) if of_changes else f"{value:.{decimals}f}" for value in values]
        if k is not None:
            written = [each + (n.besides[k] if n.besides else "") for each, n in zip(written, numbers, strict=True)]
        difference = [signed(values[1] - values[0], decimals)] if len(values) == 2 else []
        return ", ".join([ARROW.join(written), *difference])

    columns = list(runs[0])
    lines = [[language_title(code), *(text(column, k) for column in columns)] for k, code in enumerate(codes)]
    if of_changes and len(codes) > 1:
        lines.append([f"mean ({len(codes)} languages)", *(text(column, None) for column in columns)])
    return Table([head, *columns], lines, note)


def largest(values: np.ndarray) -> Column:
    """The largest value over the layers, and which layer has it; float64 [languages, layers]."""
    return Column(values.max(axis=1), [f" (layer {peak + 1})" for peak in values.argmax(axis=1)])


def lens_table(runs: Mapping[str, Probe], codes: Sequence[str]) -> Table:
    """The logit lens of each language of which rows survive in all runs."""

    def mean(probe: Probe, name: str, shown: Sequence[str]) -> np.ndarray:
        return probe.arrays[f"unshared_{name}_mean"][[probe.languages.index(code) for code in shown]].astype(float)

    finite = [np.isfinite(mean(probe, "latent", codes)).all(axis=1) for probe in runs.values()]
    shown = [code for code, has_rows in zip(codes, np.all(finite, axis=0), strict=True) if has_rows]
    # English has one set of words: its in-language mass is the same.
    is_english = np.array([code == "en" for code in shown], bool)
    numbers = [
        {
            "largest English mass": largest(mean(probe, "latent", shown)),
            "in-language mass at the output": Column(np.where(is_english, np.nan, mean(probe, "out", shown)[:, -1])),
            "entropy at the output, bits": Column(mean(probe, "entropy", shown)[:, -1]),
        }
        for probe in runs.values()
    ]
    return numbers_table("lens", numbers, shown, said("lens_note", runs=len(runs)))


def attribution_table(runs: Mapping[str, Probe], codes: Sequence[str]) -> Table:
    """How much each language's prompts lie on tokens of English and of their own."""

    def mass(probe: Probe, prompts: str, tokens: str) -> np.ndarray:
        """In each layer, at the last position; NaN where no token is counted as of that language."""
        means = probe.arrays["language_mass_mean"][probe.languages.index(prompts)]
        known = probe.document["token_language"]
        return means[:, -1, known.index(tokens)].astype(float) if tokens in known else np.full(len(means), np.nan)

    numbers = [
        {
            "largest mass on English": largest(np.stack([mass(probe, code, "en") for code in codes])),
            # Of English that is the same language.
            "mass on its own language at the output": Column(
                np.array([mass(probe, code, code)[-1] if code != "en" else np.nan for code in codes])
            ),
        }
        for probe in runs.values()
    ]
    return numbers_table("languages of the layers", numbers, codes, said("attribution_note", runs=len(runs)))


class NeuronEffect(NamedTuple):
    """A probe that does something to the neurons of each language in turn and measures every language."""

    array: str  # of the probe's: float [effect, language whose neurons, measured language, (change, low, high)]
    quantity: str  # what it is a change of, with the unit
    scale: float  # from the array's unit to that one
    decimals: int
    done: str  # to the neurons


PERPLEXITY = "log_perplexity_change", "change of log perplexity (nats per token)", 1, 3
NEURON_EFFECTS = {
    "masking": NeuronEffect(*PERPLEXITY, "switched off"),
    "masked_accuracy": NeuronEffect(
        "accuracy_change", "change of accuracy (percentage points)", 100, 1, "switched off"
    ),
    "transplant": NeuronEffect(*PERPLEXITY, "transplanted"),
}
"""By the probe's name."""


def effect_table(name: str, runs: Mapping[str, Probe], codes: Sequence[str]) -> Table:
    """What each language's neurons change in it, in the others on average, and beyond random neurons; their means."""
    effect, numbers = NEURON_EFFECTS[name], []
    for probe in runs.values():
        places = [probe.languages.index(code) for code in codes]
        # [effect, language whose neurons, measured language, estimate]
        change = (effect.scale * probe.arrays[effect.array])[:, places][:, :, places].astype(float)
        own, beyond = (change[kind].diagonal().T for kind in (0, 2))
        others = [np.delete(change[0, k, :, 0], k).mean() if len(codes) > 1 else np.nan for k in range(len(codes))]
        columns = {
            "own neurons": Column(own[:, 0]),
            "the same, on other languages": Column(np.array(others)),
            "own less random neurons": Column(
                beyond[:, 0], [f" ({interval_text(bounds, effect.decimals)})" for bounds in beyond[:, 1:]]
            ),
        }
        if name == "transplant":
            base, tuned = probe.arrays["perplexity"][:2, places].astype(float)
            columns["the whole tuning"] = Column(np.log(tuned / base))
        numbers.append(columns)
    note = said("effect_note", done=effect.done, transplant=name == "transplant", runs=len(runs))
    head = f"{effect.quantity}: {ARROW.join(runs)}"
    return numbers_table(head, numbers, codes, note, decimals=effect.decimals, of_changes=True)


class Neurons(NamedTuple):
    """The selected language neurons of one folder, or of two side by side."""

    codes: list[str]
    by_layer: Mapping[str, np.ndarray]  # label -> how many neurons each language has in each layer, int [K, L]
    tables: list[Table]


def read_neurons(folders: Mapping[str, Path]) -> Neurons:
    """The selections that lie in one or two folders, by label, made of the same languages and sizes, by one score."""
    paths = [folder / "selection.json" for folder in folders.values()]
    documents = [read_object(path) for path in paths]
    first = documents[0]
    names = ("layers", "neurons_per_layer", "score", "top_rate", "language")
    one, two = ({f"selection.json: {name}": each.get(name) for name in names} for each in (first, documents[-1]))
    check_alike(paths[0].parent, one, paths[-1].parent, two, "select both alike")
    codes = codes_of(first, "language", str(paths[0]))
    if not codes:
        raise InputError(f"{paths[0]}: language is empty; run `jaxalign neurons` again")
    selections = [selection_of(path, document, codes) for path, document in zip(paths, documents, strict=True)]
    classes, own = [each for each, _ in selections], [each for _, each in selections]

    def table(kind: str, counts: Mapping[str, Sequence[int]], kept: Sequence[int] = (), summary: str = "") -> Table:
        """How many neurons in each folder, and of two folders the difference and how many are in both."""
        head = [kind, *folders, *(["change"] if len(folders) > 1 else []), *(["kept"] if kept else [])]
        lines = [[name, *map(str, numbers)] for name, numbers in counts.items()]
        if len(folders) > 1:
            lines = [[*line, f"{int(line[2]) - int(line[1]):+d}"] for line in lines]
        if kept:
            lines = [[*line, str(number)] for line, number in zip(lines, kept, strict=True)]
        return Table(head, lines, summary=summary)

    titles = {name: name.replace("_", " ") for name in classes[0]}
    of_languages = {language_title(code): [len(each[code]) for each in own] for code in codes}
    kept = [len(set.intersection(*(each[code] for each in own))) for code in codes] if len(own) > 1 else []
    tables = [
        table("class", {title: [sum(each[name]) for each in classes] for name, title in titles.items()}),
        table("language", of_languages, kept),
    ]
    # The selected neurons of the other classes belong to no language.
    for name in (name for name in titles if name.startswith("language_")):
        of_layers = {str(layer): counts for layer, counts in enumerate(zip(*(c[name] for c in classes), strict=True))}
        tables.append(table("layer", of_layers, summary=f"{titles[name]}, layer by layer"))
    tables[-1] = replace(tables[-1], note=said("neurons_note", runs=len(folders)))
    by_layer = {
        label: np.array([np.bincount([layer for layer, _ in each[code]], minlength=first["layers"]) for code in codes])
        for label, each in zip(folders, own, strict=True)
    }
    return Neurons(codes, by_layer, tables)


def selection_of(
    path: Path, document: Mapping[str, Any], codes: Sequence[str]
) -> tuple[dict[str, list[int]], dict[str, set[tuple[int, int]]]]:
    """Class -> how many of its neurons are selected in each layer; language -> (layer, index) of its neurons."""
    where, stored = str(path), path.with_suffix(".npz")
    size = [field(document, name, int, where) for name in ("layers", "neurons_per_layer")]
    classes = field(document, "classes_per_layer", dict, where)
    for name in classes:
        if len(array(classes, name, int, f"{where}, classes_per_layer")) != size[0]:
            raise InputError(f"{where}, classes_per_layer, {name}: {size[0]} whole numbers are needed; select again")
    arrays = read_npz(stored)
    for code in codes:
        pairs = arrays.get(code)
        if pairs is None or pairs.dtype.kind not in "iu" or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InputError(f"{stored}: no pairs of (layer, index) of {code}; select again")
        if ((pairs < 0) | (pairs >= size)).any():
            raise InputError(f"{stored}: {code} has other neurons than {size[0]} layers of {size[1]}; select again")
    return classes, {code: {(layer, index) for layer, index in arrays[code].tolist()} for code in codes}
