"""Open answers in `jaxalign evaluate`: MGSM, MSVAMP, and translations of question pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign.configuration import provenance, recorded_config
from jaxalign.data.batches import fit_pairs, split_heldout
from jaxalign.data.fields import array, field
from jaxalign.data.math_problems import MATH_LANGUAGES, MATH_TASKS, read_problems
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.tasks import parse_rows
from jaxalign.data.tokenizer import Tokenizer, render_all, resolve_template
from jaxalign.errors import InputError
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.grid import open_grid, run_grid
from jaxalign.evaluation.open_cells import TRANSLATION, OpenCell, math_cell, translation_cells
from jaxalign.files import AnyPath, data_folder, path_of
from jaxalign.loading import Model
from jaxalign.log import tell
from jaxalign.reporting.folders import read_run_document
from jaxalign.training.checkpoint import read_trained
from jaxalign.verbs.data import gather_pairs
from jaxalign.verbs.settings import chosen_languages, out_folder, rendering, split_list

OPEN_TASKS = (*MATH_TASKS, TRANSLATION)


def open_tasks(config: ConfigDict) -> list[str]:
    """Those of `config.tasks` that are answered openly."""
    return [name for name in split_list(config.tasks) if name in OPEN_TASKS]


def check_open_answers(config: ConfigDict) -> None:
    """Refuses what would only fail once the model is loaded."""
    out_folder(config)
    rows = parse_rows(config.rows)
    for task in open_tasks(config):
        if task == TRANSLATION and pairs_run(config) is None:
            read_pairs(pair_paths(config), rendering(config))
        elif task != TRANSLATION:
            for language in math_languages(config):
                read_problems(data_folder(config.data), MATH_TASKS[task], language, rows)


def evaluate_open_answers(config: ConfigDict, model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Decodes the open tasks of `config.tasks` into `config.out` and tells a line per cell.

    Args:
      model: ready to apply; an adapter may be merged into it.
      settings: what answers depend on beyond prompts and weights, as `open_results.json` says it.

    Returns:
      The content of `open_results.json`; its "failures" lists the cells that could not be decoded.
    """
    cells = [cell for task in open_tasks(config) for cell in cells_of(config, task, model)]
    results = run_grid(
        open_grid(out_folder(config)),
        cells,
        Generator(model.decoder, model.variables, model.mesh, config.generate.batch_size),
        model.variables,
        settings=settings,
        description={**settings, "tuned_on": model.tuned_on, "bos": model.tokenizer.bos, **provenance(config)},
    )
    for cell in results["open_cells"]:
        tell(line_of(cell))
    return results


def line_of(cell: Mapping[str, Any]) -> str:
    """A cell's result for the terminal."""
    if cell["task"] == TRANSLATION:
        seen = {True: "seen", False: "unseen", None: "tuned on unknown languages"}[cell["seen"]]
        languages = f"{cell['language']}→{cell['target']}"
        return f"{TRANSLATION:11} {languages}  chrF {cell['chrf']:.1f} of {cell['count']}  ({seen})"
    low, high = cell["interval_corrected"]
    return (
        f"{cell['task']:11} {cell['language']}  {cell['accuracy_corrected']:6.1%} of {cell['count']}"
        f"  (95 % interval {low:.1%} to {high:.1%}; by QAlign's extraction {cell['accuracy_reference']:.1%})"
    )


def cells_of(config: ConfigDict, task: str, model: Model) -> Sequence[OpenCell]:
    """The cells of one open task."""
    rows, most = parse_rows(config.rows), config.generate.max_tokens
    if task != TRANSLATION:
        data, languages = data_folder(config.data), math_languages(config)
        return [math_cell(data, MATH_TASKS[task], language, rows, model.tokenizer, most) for language in languages]
    run = pairs_run(config)
    if run is not None:
        pairs, template = heldout_pairs(run, model.tokenizer), read_run_document(run)["template"]
    else:
        pairs = read_pairs(pair_paths(config), rendering(config))
        template = resolve_template(config.template, model.config.family)
    languages = chosen_languages(config)
    chosen = [pair for pair in pairs if pair.source_language in languages]
    cells = translation_cells(
        chosen, rows, model.tokenizer, template, heldout=run is not None, tuned_on=model.tuned_on, max_tokens=most
    )
    if not cells:
        raise InputError(
            f"translation: {run or config.pairs} has no pair from {config.languages} in rows {config.rows}; "
            "choose other languages or rows"
        )
    return cells


def math_languages(config: ConfigDict) -> Sequence[str]:
    """The codes of `config.languages`; "all" are the ten that MGSM and MSVAMP have."""
    return MATH_LANGUAGES if config.languages.strip() == "all" else chosen_languages(config)


def pairs_run(config: ConfigDict) -> AnyPath | None:
    """The training run whose held-out pairs are translated; None where `config.pairs` names files."""
    for name in (config.pairs, config.adapter):
        if name and (path_of(name) / "run.json").is_file():
            return path_of(name)
        if name == config.pairs and name:
            return None
    raise InputError(
        "translation: --config.pairs= is needed: files of pairs, or a training run (the pairs that it held out); "
        "only an adapter that is a training run goes without"
    )


def pair_paths(config: ConfigDict) -> list[Path]:
    return [Path(name) for name in split_list(config.pairs)]


def heldout_pairs(run: AnyPath, tokenizer: Tokenizer) -> list[QuestionPair]:
    """The pairs that a training run kept aside, told again from its config and its files.

    Those left over must be, token for token, what it was trained on; otherwise InputError: held out or not could not
    be told.
    """
    document, trained_on = read_run_document(run), read_trained(run).record.fingerprint["pairs"]
    where = str(run / "run.json")
    if records := field(document, "records", int, where):
        raise InputError(
            f"{run}: {records} of its pairs were given from Python, so those that it held out cannot be read again; "
            "name files in --config.pairs"
        )
    config = recorded_config(field(document, "config", dict, where), f"{where}, config")
    pairs = gather_pairs(config, array(document, "files", str, where))
    template = field(document, "template", str, where)
    fitted = fit_pairs(render_all(pairs, template, tokenizer), config.batch.length, config.batch.too_long)
    kept, heldout = split_heldout(len(fitted.pairs), config.heldout, config.seed)
    if fitted.pairs.take(kept).sha256() != trained_on:
        raise InputError(
            f"{run}: its files or the tokenizer are not those that it was trained with, so the pairs that it held out "
            "cannot be told; put them back, or name files in --config.pairs"
        )
    if not len(heldout):
        raise InputError(f"{run}: it held no pair out (heldout=0); name files in --config.pairs")
    return [pairs[fitted.kept[index]] for index in heldout]
