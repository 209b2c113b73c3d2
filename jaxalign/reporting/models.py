"""Which model the files of a folder are of: the results, probes, counts and selections in it are of one."""

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.reporting.fields import field, read_object
from jaxalign.reporting.probe_files import Probes

DOCUMENTS = (*(each.name for each in fields(Probes)), "neuron_counts", "selection")
"""JSON files of probes that say what model they are of."""


def model_documents(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Those documents in a folder that name a model, by name: a selection of another program's counts names none."""
    files = {name: folder / f"{name}.json" for name in DOCUMENTS}
    documents = {name: read_object(file) for name, file in files.items() if file.is_file()}
    return {name: document for name, document in documents.items() if "model" in document}


def model_of_all(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The model and the adapter ("": none), the same of all documents; several raise InputError."""
    models: dict[tuple[str, ...], tuple[str, str, str]] = {}
    for name, document in documents.items():
        known, where = {"adapter": "", **document}, f"{folder}, {name}"
        model, adapter = (field(known, key, str, where) for key in ("model", "adapter"))
        models.setdefault((place(model), place(adapter)), (name, model, adapter))
    (first, *one), *others = models.values()
    if others:
        second, *other = others[0]
        one, other = (" with ".join(filter(None, each)) for each in (one, other))
        raise InputError(f"{folder}: {first} is of {one}, {second} of {other}; use a folder for each")
    return one[0], one[1]


def place(name: str) -> str:
    """A name of a model or adapter, the same for all spellings of one path."""
    return name if not name or "://" in name or "@" in name else os.path.abspath(os.path.expanduser(name))


def check_of_one_model(folder: Path, made: Mapping[str, Any], rewritten: Collection[str]) -> None:
    """Refuses a folder with files of another model or adapter than what is to be written there.

    Args:
      made: the model and adapter.
      rewritten: documents that are written anew, whatever they are of.
    """
    documents = model_documents(folder)
    results = folder / "results.json"
    if results.is_file() and "model" in (document := read_object(results)):
        documents["results"] = document | {"adapter": document.get("adapter") or ""}
    kept = {name: document for name, document in documents.items() if name not in rewritten}
    model_of_all(folder, kept | {"what is asked for": made})
