"""The model card of an export, README.md: what was tuned on what, how, and how well, from the run's own files.

The front matter is what the hub reads: base model, library, languages, licence.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.files import published
from jaxalign.model.gguf import open_gguf
from jaxalign.model.hub import HubId, hub_id
from jaxalign.reporting.escaping import code_block, code_span, markdown_text
from jaxalign.reporting.fields import field, texts
from jaxalign.reporting.results import VARIANTS, Results
from jaxalign.reporting.runs import TrainingRun
from jaxalign.reporting.tables import percent

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
    texts(run.document, "files", where)
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
    *,
    base: str = "",
    is_adapter: bool,
    licence: str | None,
    check: str,
    command: str,
) -> str:
    """The text of README.md, of a run that `check_recorded` has seen.

    `results` are evaluations whose scores are shown, `base` is what the export calls the model that was tuned, where
    that is not what the run calls it, `licence` what that model states, `check` one line on the comparison with the
    independent path, `command` the one that exports.
    """
    document = run.document
    base = base or document["model"]
    model = hub_id(base) or HubId(base, None)
    what = "A PEFT adapter of" if is_adapter else "The model"
    tuned = "tuned" if is_adapter else "with what was tuned merged into it,"
    sections = {
        "": f"{what} {code_span(str(model))}, {tuned} on question pairs: question-translation alignment "
        "(arXiv 2405.13816) with jaxalign.",
        "Data": "\n".join(f"- {line}" for line in data_lines(run)),
        "Hyper-parameters": table(("key", "value"), hyper_parameters(document["config"])),
        "Scores": "\n\n".join(score_parts(run, results)),
        "Commands": code_block("\n".join([*commands(run, results), command]), "sh"),
        "Loading it": code_block(loading(model, is_adapter), "python"),
        "Check": f"{markdown_text(check)}. See `certificate.json`.",
        "Licence": licence_text(licence),
        "Versions": ", ".join(
            f"{name} {markdown_text(str(version))}" for name, version in document["versions"].items()
        ),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items())
    return published(f"{front_matter(run, model, licence, is_adapter)}\n# {markdown_text(title)}\n\n{body}\n")


def front_matter(run: TrainingRun, base: HubId, licence: str | None, is_adapter: bool) -> str:
    """The YAML block that a card begins with."""
    facts: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if base.revision:  # on the hub, and not a relative path that looks like it
        facts["base_model"] = base.repo
    if run.languages:
        facts["language"] = list(run.languages)
    if licence is not None:
        facts["license"] = licence
    facts["tags"] = ["jaxalign", "question-translation-alignment"]
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in facts.items())  # JSON is YAML too
    return f"---\n{lines}---\n"


def data_lines(run: TrainingRun) -> Iterator[str]:
    """What was learned from."""
    document, config = run.document, run.document["config"]
    if document["files"]:
        yield f"files: {', '.join(code_span(Path(file).name) for file in document['files'])}"
    if document["records"]:
        yield f"given from Python: {document['records']} pairs"
    elif not document["files"]:
        built = f"built from {code_span(config['data'])}, task {code_span(config['tasks'])}"
        yield f"files: none; {built}, control {code_span(config['build']['control'])}"
    yield f"pairs: {document['pairs']}, {document['heldout_pairs']} of them held out; too long and dropped " + (
        f"{document['dropped']}, cut {document['cut']}"
    )
    yield f"languages: from {named(run.sources)} into {named(run.targets)}"
    yield f"languages seen, in this run or one before it: {named(run.languages)}"
    yield f"prompt template: {code_span(document['template'])}"
    yield f"steps: {document['steps']}; trainable parameters: {document['trainable_parameters']:,}"


def named(codes: Sequence[str]) -> str:
    """Language codes as text."""
    return markdown_text(", ".join(codes)) or "not recorded"


def hyper_parameters(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of what the card shows of a run's config; the adapter's keys only where there is one."""
    for key in HYPER_PARAMETERS:
        if key == "lora" and config["tune"] != "adapter":
            continue
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", str(inner)) for name, inner in value.items())
        else:
            yield key, str(value)


def score_parts(run: TrainingRun, results: Sequence[Results]) -> Iterator[str]:
    """Held-out loss and accuracies."""
    if run.held_out:
        (first, before), (last, after) = run.held_out[0], run.held_out[-1]
        yield f"Held-out loss, nats per target token: {before:.3f} at step {first}, {after:.3f} at step {last}."
    if not results:
        yield "Not evaluated on tasks."
        return
    rows = [row for evaluated in results for row in accuracy_rows(evaluated)]
    yield table(("evaluated", "task", "answers", "languages", "rows", "accuracy"), rows)
    yield "Accuracy: label mass, corrected scoring, mean over the languages."


def accuracy_rows(results: Results) -> Iterator[tuple[str, ...]]:
    """One line for each task and kind of answer words."""
    name = "base model" if results.adapter is None else Path(results.adapter).name
    blocks = dict.fromkeys((key.task, key.variant) for key in results.cells)
    for task, variant in blocks:
        cells = [cell for key, cell in results.cells.items() if (key.task, key.variant) == (task, variant)]
        mean = sum(cell.accuracy for cell in cells) / len(cells)
        languages = ", ".join(cell.key.language for cell in cells)
        rows = str(sum(cell.count for cell in cells))
        yield name, task, VARIANTS[variant], languages, rows, percent(mean)


def commands(run: TrainingRun, results: Sequence[Results]) -> list[str]:
    """The command lines of the run and its evaluations."""
    return [run.document["command"], *(evaluated.document["command"] for evaluated in results)]


def loading(base: HubId, is_adapter: bool) -> str:
    """Python that loads the export from the folder it is in."""
    if not is_adapter:
        return 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(".")'
    revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base.repo)}{revision})\n"
        'model = PeftModel.from_pretrained(base, ".")'
    )


def licence_text(licence: str | None) -> str:
    """What is known of the terms."""
    if licence is None:
        return "The base model states no licence where it lies; its terms apply to what is made from it."
    return f"The base model states {code_span(licence)}; its terms apply to what is made from it."


def table(head: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; its cells are text, whatever stands in them."""
    lines = [head, ["---"] * len(head), *([markdown_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def base_licence(model: Path) -> str | None:
    """The licence that a model states: a folder in its card's front matter or by a LICENSE file, a GGUF file in its
    metadata. None if it states none."""
    from huggingface_hub import metadata_load

    if model.is_file():
        stated = open_gguf(model).metadata.get("general.license")
        return stated if isinstance(stated, str) else None
    if (model / "README.md").is_file():
        try:
            facts = metadata_load(model / "README.md") or {}
        except Exception:  # whatever YAML makes of a card that others wrote
            facts = {}
        if isinstance(stated := facts.get("license"), str):
            return stated
    files = sorted(file.name for file in model.glob("LICEN[SC]E*") if file.is_file())
    return f"other ({files[0]})" if files else None
