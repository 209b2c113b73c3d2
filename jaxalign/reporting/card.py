"""The model card of an export, README.md: what was tuned on what, how, and how well, from the run's own files.

The front matter is what the hub reads: base model, library, languages, licence.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.fields import array, field
from jaxalign.errors import InputError
from jaxalign.files import published
from jaxalign.reporting.folders import Results, TrainingRun
from jaxalign.reporting.words import VARIANTS, code_block, code_span, markdown_text, percent, templates

HYPER_PARAMETERS = (
    *("tune", "lora", "optimizer", "loss.reduction", "epochs", "batch", "heldout"),
    *("seed", "dtype", "param_dtype"),
)
"""The part of a run's config that a card shows: keys, and sections with all their keys."""
RECORDED = {
    **dict.fromkeys(("model", "template", "command"), str),
    **dict.fromkeys(("records", "pairs", "heldout_pairs", "dropped", "cut", "steps", "trainable_parameters"), int),
    **dict.fromkeys(("config", "versions", "languages"), dict),
}
"""The fields of run.json that a card shows, and what they are."""


def check_recorded(run: TrainingRun) -> None:
    """InputError where a run's record lacks something that its card shows."""
    where = str(run.folder / "run.json")
    for name, kind in RECORDED.items():
        field(run.document, name, kind, where)
    array(run.document, "files", str, where)
    for key in (*HYPER_PARAMETERS, "data", "tasks", "build.control"):
        *sections, name = key.split(".")
        config, place = run.document["config"], f"{where}, config"
        for section in sections:
            config, place = field(config, section, dict, place), f"{place}.{section}"
        if name not in config:
            raise InputError(f"{place}: no field {name!r}; is the file complete?")


def model_card(
    title: str,
    run: TrainingRun,
    results: Sequence[Results],
    base: str,
    revision: str | None,
    *,
    is_adapter: bool,
    licence: str | None,
    check: str,
    command: str,
) -> str:
    """The text of README.md, of a run that `check_recorded` has seen.

    `results` are evaluations whose scores are shown, `base` is what the export calls the model that was tuned,
    `revision` its commit on the hub (None: it is a path), `licence` what it states, `check` one line on the comparison
    with the independent path, `command` the one that exports.
    """
    filters = {  # which escape texts in Markdown
        "code": code_span,
        "text": markdown_text,
        "block": code_block,
        "json": json.dumps,  # which is YAML too
        "codes": lambda codes: markdown_text(", ".join(codes)) or "not recorded",
    }
    facts = run.document
    card = (
        templates(filters)
        .get_template("card.md.jinja")
        .render(
            title=title,
            run=run,
            facts=facts,
            files=[Path(file).name for file in facts["files"]],
            hyper_parameters=list(hyper_parameters(facts["config"])),
            scores=[line for each in results for line in accuracy_lines(each)],
            commands="\n".join([facts["command"], *(each.document["command"] for each in results), command]),
            base=base,
            revision=revision,
            is_adapter=is_adapter,
            library="peft" if is_adapter else "transformers",
            licence=licence,
            check=check,
        )
    )
    return published(card) + "\n"


def hyper_parameters(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of what the card shows of a run's config; the adapter's keys only where there is one."""
    for key in HYPER_PARAMETERS:
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if not isinstance(value, dict):
            yield key, str(value)
        elif key != "lora" or config["tune"] == "adapter":
            yield from ((f"{key}.{name}", str(inner)) for name, inner in value.items())


def accuracy_lines(results: Results) -> Iterator[tuple[str, ...]]:
    """A line for each task and kind of answer words."""
    name = "base model" if results.adapter is None else Path(results.adapter).name
    for task, variant in dict.fromkeys((key.task, key.variant) for key in results.cells):
        cells = [cell for key, cell in results.cells.items() if (key.task, key.variant) == (task, variant)]
        mean = sum(cell.accuracy for cell in cells) / len(cells)
        languages = ", ".join(cell.key.language for cell in cells)
        yield name, task, VARIANTS[variant], languages, str(sum(cell.count for cell in cells)), percent(mean)
