"""`jaxalign evaluate`: label scores of the tasks' test rows, and open answers."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
from ml_collections import ConfigDict

from jaxalign.configuration import provenance
from jaxalign.data.check import warn_of_exemplars
from jaxalign.data.prompts import PromptStyle, Variant, differences_table
from jaxalign.data.tasks import TASKS, parse_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import CellKey, GridData, cell_keys, label_cells
from jaxalign.evaluation.grid import Grid, run_grid
from jaxalign.evaluation.score import Scorer
from jaxalign.files import write_text
from jaxalign.holding import held
from jaxalign.loading import Model, merged
from jaxalign.log import tell
from jaxalign.model.hub import model_name
from jaxalign.reporting.folders import check_of_one_model
from jaxalign.runtime import agree
from jaxalign.verbs.open_answers import OPEN_TASKS, check_open_answers, evaluate_open_answers, open_tasks
from jaxalign.verbs.settings import EvaluationData, chosen_languages, chosen_tasks, load_model, out_folder, split_list


def evaluate(config: ConfigDict, paths: Sequence[str]) -> None:
    """Scores every task in every language and writes the records to `config.out`."""
    data = EvaluationData(config)
    check_settings(config, data)
    with held(out_folder(config)):
        evaluate_model(config, load_model(config), data)


def check_settings(config: ConfigDict, data: EvaluationData) -> None:
    """Refuses what would only fail once the model is loaded: other than settings, all cells must be wrong for that."""
    out_folder(config)
    prompt_style(config)
    if open_tasks(config):
        check_open_answers(config)
    if keys := chosen_cells(config):
        errors = unreadable(config, data, keys)
        if len(errors) == len(keys):
            raise errors[0]


def unreadable(config: ConfigDict, data: EvaluationData, keys: Sequence[CellKey]) -> list[InputError]:
    """What is wrong with the data of those cells that cannot be read; of the others' exemplars there are warnings."""
    errors, cells = [], {}
    for key in keys:
        try:
            rows = data.tasks.rows(TASKS[key.task], key.language, parse_rows(config.rows))
            data.exemplars.of(key.task, key.language)
            cells[key.task, key.language] = rows
        except InputError as error:
            errors.append(error)
    warn_of_exemplars(data.exemplars, cells.values())
    return errors


def evaluate_model(config: ConfigDict, model: Model, data: EvaluationData) -> None:
    """`evaluate` with a model at hand, its adapter merged into the base weights as in the study."""
    agree("the settings", config.to_dict())
    if jax.process_index() == 0:
        check_of_one_model(out_folder(config), settings(config, model), ["results"])
    failures = []
    with held(out_folder(config)):
        ready = merged(model, config.param_dtype)
        if chosen_cells(config):
            failures += evaluate_labels(config, ready, data, settings(config, model))["failures"]
        if open_tasks(config):
            failures += evaluate_open_answers(config, ready, settings(config, model))["failures"]
    tell(f"records: {config.out}")
    if failures:
        first = failures[0]
        raise InputError(
            f"{first['task']} {first['language']}: {first['error']} ({len(failures)} such failed; the others are in "
            f"{config.out}, and the same command adds what is missing)"
        )


def evaluate_labels(
    config: ConfigDict, model: Model, data: EvaluationData, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Scores the label tasks into `config.out`, tells a line per cell, and returns the content of `results.json`."""
    asked = grid_data(config, data, model)
    results = run_grid(
        Grid(out_folder(config)),
        label_cells(asked, chosen_cells(config)),
        Scorer(model.decoder, model.variables, model.mesh, config.batch_tokens),
        model.variables,
        settings=settings,
        description={**settings, "tuned_on": model.tuned_on, "bos": model.tokenizer.bos, **provenance(config)},
    )
    if asked.style == "mended" and jax.process_index() == 0:
        write_text(out_folder(config) / "mended_prompts.md", differences_table(data.exemplars))
    for cell in results["cells"]:
        tell(line_of(cell))
    for failure in results["failures"]:
        tell(f"{failure['task']:8} {failure['language']}  {failure['variant']} failed: {failure['error']}")
    return results


def grid_data(config: ConfigDict, data: EvaluationData, model: Model) -> GridData:
    """What the cells of the grid are asked."""
    rows, style = parse_rows(config.rows), prompt_style(config)
    return GridData(data.tasks, data.exemplars, model.tokenizer, rows, style, config.seed)


def line_of(cell: Mapping[str, Any]) -> str:
    """A cell's result for the terminal."""
    low, high = cell["interval_corrected"]
    variant = "" if cell["variant"] == "english" else f"  {cell['variant']}"
    shared = "".join(
        f"  [{' and '.join(pair['classes'])} share candidate tokens {', '.join(map(str, pair['ids']))}]"
        for pair in cell["shared_candidates"]
    )
    return (
        f"{cell['task']:8} {cell['language']}{variant}  {cell['accuracy_corrected']:6.1%} of {cell['count']}"
        f"  (95 % interval {low:.1%} to {high:.1%}){shared}"
    )


def chosen_cells(config: ConfigDict) -> list[CellKey]:
    """The label cells that the config names; label tasks without a cell among its variants are an error."""
    tasks = chosen_tasks(config, besides=OPEN_TASKS)
    known: tuple[Variant, ...] = get_args(Variant)
    named = known if config.variants == "all" else split_list(config.variants)
    variants: list[Variant] = [variant for variant in known if set(named) >= {variant}]
    if len(variants) < len(named):
        raise InputError(
            f"--config.variants={config.variants}: choose from {', '.join(known)}, each once at most, or all"
        )
    keys = cell_keys(tasks, chosen_languages(config), variants)
    if tasks and not keys:
        raise InputError(
            f"--config.variants={config.variants}: in_language and irrelevant exist for emotion only, "
            f"not for {', '.join(task.name for task in tasks)}; use english"
        )
    return keys


def prompt_style(config: ConfigDict) -> PromptStyle:
    """`config.prompts`."""
    if config.prompts not in get_args(PromptStyle):
        raise InputError(f"--config.prompts={config.prompts}: choose {' or '.join(get_args(PromptStyle))}")
    return config.prompts


def settings(config: ConfigDict, model: Model) -> dict[str, str]:
    """What results depend on beyond the prompts."""
    return {
        "model": model_name(model.path),
        "adapter": model.adapter_name,
        "dtype": config.dtype,
        "param_dtype": model.param_dtype,
    }
