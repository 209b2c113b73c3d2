"""What `probe` left behind, read back and checked: arrays, and the document that names their axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.data.languages import code_of
from jaxalign.errors import InputError
from jaxalign.files import read_npz
from jaxalign.probe_files import Probe
from jaxalign.probing.attribution import SCRIPT_CLASSES
from jaxalign.probing.geometry import GEOMETRY_AXES, PCA_AXES
from jaxalign.reporting.fields import field, languages, read_object, share, whole_numbers

LENS_AXES = {
    f"{way}{quantity}_{statistic}": ["language", "layer"]
    for way in ("", "unshared_")
    for quantity in ("latent", "out", "all_possible_latent", "all_possible_out", "entropy", "energy")
    for statistic in ("mean", "half_width")
}
ATTRIBUTION_AXES = {
    f"{kind}_mass_{statistic}": ["language", "layer", "position", f"token_{kind}"]
    for kind in ("language", "script")
    for statistic in ("mean", "half_width")
}
MASKING_AXES = {"log_perplexity_change": ["effect", "masked_language", "language", "estimate"]}
MASKED_ACCURACY_AXES = {"accuracy_change": ["effect", "masked_language", "language", "estimate"]}
TRANSPLANT_AXES = {
    "log_perplexity_change": ["effect", "transplanted_language", "language", "estimate"],
    "perplexity": ["weights", "language"],
}


@dataclass(frozen=True)
class Probes:
    """The probes that lie in a folder; None where there is none."""

    logit_lens: Probe | None
    attribution: Probe | None
    pca: Probe | None
    geometry: Probe | None
    masking: Probe | None
    masked_accuracy: Probe | None
    transplant: Probe | None

    @property
    def found(self) -> dict[str, Probe]:
        """Those that are there, by name."""
        return {name: probe for name, probe in vars(self).items() if probe is not None}


def read_probes(folder: Path) -> Probes:
    """All that `probe` left in a folder and figures are drawn of; a damaged file raises InputError."""
    return Probes(
        logit_lens=read_lens(folder),
        attribution=read_attribution(folder),
        pca=read_pca(folder),
        geometry=read_geometry(folder),
        masking=read_probe(folder, "masking", MASKING_AXES),
        masked_accuracy=read_probe(folder, "masked_accuracy", MASKED_ACCURACY_AXES),
        transplant=read_transplant(folder),
    )


def read_lens(folder: Path) -> Probe | None:
    """`logit_lens.npz` and `.json`, or None where neither is."""
    # A language without surviving rows has no means.
    probe = read_probe(folder, "logit_lens", LENS_AXES, is_finite=False)
    if probe is None:
        return None
    where, document = str(folder / "logit_lens.json"), dict(probe.document)
    for name in ("rows", "surviving_rows", "unshared_surviving_rows"):
        counts = {code_of(language): count for language, count in field(document, name, dict, where).items()}
        for language in probe.languages:
            field(counts, language, int, f"{where}, {name}")
        document[name] = counts
    for name, values in probe.arrays.items():
        counts = document["unshared_surviving_rows" if name.startswith("unshared_") else "surviving_rows"]
        measured = [i for i, language in enumerate(probe.languages) if counts[language]]
        check_finite(values[measured], name, folder / "logit_lens.npz")
    return Probe(probe.arrays, document)


def read_attribution(folder: Path) -> Probe | None:
    """`attribution.npz` and `.json`, or None where neither is."""
    probe = read_probe(folder, "attribution", ATTRIBUTION_AXES)
    if probe is not None:
        where = str(folder / "attribution.json")
        if probe.document["token_script"] != list(SCRIPT_CLASSES):
            raise InputError(f"{where}: token_script is not {', '.join(SCRIPT_CLASSES)}; probe again")
        token_map = field(probe.document, "token_map", dict, where)
        held_out = field(field(token_map, "held_out", dict, f"{where}, token_map"), "all", dict, f"{where}, held_out")
        for name in ("decided", "accuracy"):
            if held_out.get(name) is not None:
                share(held_out[name], f"{where}, token_map, held_out, all, {name}")
    return probe


def read_pca(folder: Path) -> Probe | None:
    """`pca.npz` and `.json`, or None where neither is."""
    probe = read_probe(folder, "pca", PCA_AXES)
    if probe is not None:
        for axis in ("layer", "row"):
            whole_numbers(probe.document, axis, str(folder / "pca.json"))
    return probe


def read_geometry(folder: Path) -> Probe | None:
    """`geometry.npz` and `.json`, or None where neither is."""
    probe = read_probe(folder, "geometry", GEOMETRY_AXES)
    if probe is not None:
        where = str(folder / "geometry.json")
        field(probe.document, "position", str, where)
        for axis in ("layer", "row"):
            whole_numbers(probe.document, axis, where)
    return probe


def read_transplant(folder: Path) -> Probe | None:
    """`transplant.npz` and `.json`, or None where neither is."""
    probe = read_probe(folder, "transplant", TRANSPLANT_AXES)
    if probe is not None and probe.document["weights"][:2] != ["base", "tuned"]:
        raise InputError(f"{folder / 'transplant.json'}: weights do not begin with base, tuned; probe again")
    return probe


def read_probe(folder: Path, name: str, axes: Mapping[str, Sequence[str]], *, is_finite: bool = True) -> Probe | None:
    """`name`.npz and `name`.json, or None where neither is.

    Args:
      axes: array -> its axes, which the document must give too; an axis is as long as the document's list of labels
        for it, and "component" is 2.
      is_finite: whether every number must be.
    """
    described, stored = folder / f"{name}.json", folder / f"{name}.npz"
    if not described.is_file() and not stored.is_file():
        return None
    document = read_object(described)
    labels = {axis for array_axes in axes.values() for axis in array_axes} - {"component"}
    lengths = {axis: len(field(document, axis, list, str(described))) for axis in labels} | {"component": 2}
    for axis in labels & {"language", "scatter_language", "masked_language", "transplanted_language"}:
        document[axis] = languages(document, axis, str(described))
    arrays = read_arrays(stored, list(axes))
    named = field(document, "axes", dict, str(described))
    for array, values in arrays.items():
        expected = tuple(lengths[axis] for axis in axes[array])
        if named.get(array) != axes[array] or values.shape != expected:
            raise InputError(f"{stored}: {array} is {values.shape}, {described.name} says {expected}; probe again")
        if values.dtype.kind not in "fiu":
            raise InputError(f"{stored}: {array} is {values.dtype}; numbers are needed: probe again")
        if is_finite:
            check_finite(values, array, stored)
    return Probe(arrays, document)


def check_finite(values: np.ndarray, name: str, stored: Path) -> None:
    """Refuses an array of a file that holds what is no number."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise InputError(f"{stored}: {wrong} of {values.size} values of {name} are not finite; probe again")


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file."""
    stored = read_npz(path)
    if missing := [name for name in names if name not in stored]:
        raise InputError(f"{path}: no array {missing[0]!r}; probe again")
    return {name: stored[name] for name in names}
