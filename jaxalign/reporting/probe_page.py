"""The page of one model's probes: what `report` writes of a folder alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.probing.probe import TASK
from jaxalign.reporting.fields import field, read_object
from jaxalign.reporting.models import model_documents, model_of_all
from jaxalign.reporting.neurons import neuron_tables
from jaxalign.reporting.probe_files import read_probes
from jaxalign.reporting.probe_sections import probe_sections
from jaxalign.reporting.templates import page, versions_table


def probe_page(folder: Path, command: str) -> str:
    """The page's text.

    Args:
      folder: what `probe`, and perhaps `neurons`, wrote.
      command: the command line that makes the page, shown in it.

    Raises:
      InputError: there is no such folder, no probe in it, a damaged one, or probes of several models.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `jaxalign probe` wrote, or two to compare")
    probes = read_probes(folder)
    documents = model_documents(folder)
    if not documents:
        raise InputError(f"{folder}: no probe in it; give a folder that `jaxalign probe` wrote, or two to compare")
    model, adapter = model_of_all(folder, documents)
    label = "tuned" if adapter else "base"
    neurons = neuron_tables({label: folder})
    if not probes.found and not neurons:
        raise InputError(f"{folder}: neurons are counted and none selected; `jaxalign neurons neuron_counts.npz` does")
    if neurons:
        documents["selection"] = read_object(folder / "selection.json")
    making = made_by(folder, documents)
    return page(
        "probe_page.html.jinja",
        model=model,
        adapter=adapter,
        task=TASK.name,
        languages=list(dict.fromkeys(code for probe in probes.found.values() for code in probe.languages)),
        sections=probe_sections({label: probes}, neurons),
        neurons=neurons,
        making=making,
        versions=versions_table({title: document["versions"] for title, document in making.items()}),
        command=command,
    )


def made_by(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What was made by one command of one config, by name -> command, config and versions."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, document in documents.items():
        where = f"{folder}, {name}"
        for key in ("config", "versions"):
            field(document, key, dict, where)
        # From Python several calls have one command line.
        made_from = (json.dumps(document[key], sort_keys=True) for key in ("config", "versions"))
        names.setdefault((field(document, "command", str, where), *made_from), []).append(name)
    return {", ".join(each).replace("_", " "): documents[each[0]] for each in names.values()}
