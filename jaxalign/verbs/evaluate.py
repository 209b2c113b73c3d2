"""`jaxalign evaluate`: label scores of the tasks' test rows; and open answers, to MGSM, MSVAMP and question pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
from ml_collections import ConfigDict

from jaxalign.configuration import provenance, recorded_config
from jaxalign.data.batches import fit_pairs, split_heldout
from jaxalign.data.check import warn_of_exemplars
from jaxalign.data.fields import array, field
from jaxalign.data.math_problems import MATH_LANGUAGES, MATH_TASKS, read_problems
from jaxalign.data.pairs import QuestionPair, read_pairs
from jaxalign.data.prompts import PromptStyle, Variant, differences_table
from jaxalign.data.tasks import TASKS, parse_rows
from jaxalign.data.tokenizer import Tokenizer, render_all, resolve_template
from jaxalign.errors import InputError
from jaxalign.evaluation.cells import CellKey, GridData, cell_keys, label_cells
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.grid import Grid, open_grid, run_grid
from jaxalign.evaluation.open_cells import TRANSLATION, OpenCell, math_cell, translation_cells
from jaxalign.evaluation.score import Scorer
from jaxalign.files import AnyPath, data_folder, path_of, write_text
from jaxalign.holding import held
from jaxalign.loading import Model, merged
from jaxalign.log import print_result
from jaxalign.model.hub import model_name
from jaxalign.reporting.folders import check_of_one_model, read_run_document
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.training.checkpoint import read_trained
from jaxalign.verbs import settings as of_config
from jaxalign.verbs.data import gather_pairs
from jaxalign.verbs.settings import EvaluationData, chosen_languages, load_model, out_folder, split_list

OPEN_TASKS = (*MATH_TASKS, TRANSLATION)


def evaluate(config: ConfigDict, paths: Sequence[str]) -> None:
    """Asks every task in every language and writes the records to `config.out`."""
    data = EvaluationData(config)
    check_settings(config, data)
    with held(out_folder(config)):
        evaluate_model(config, load_model(config), data)


def check_settings(config: ConfigDict, data: EvaluationData) -> None:
    """Refuses what would only fail once the model is loaded: other than settings, all cells must be wrong for that."""
    out_folder(config)
    prompt_style(config)
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


def check_open_answers(config: ConfigDict) -> None:
    """Refuses what the open tasks need and have not, before the model is loaded."""
    for task in open_tasks(config):
        if task != TRANSLATION:
            for language in math_languages(config):
                read_problems(data_folder(config.data), MATH_TASKS[task], language, parse_rows(config.rows))
        elif pairs_run(config) is None:
            read_pairs(pair_paths(config), of_config.rendering(config))


def evaluate_model(config: ConfigDict, model: Model, data: EvaluationData) -> None:
    """`evaluate` with a model at hand, its adapter merged into the base weights as in the study."""
    assert_same_on_hosts("the settings", config.to_dict())
    out, named, failures = out_folder(config), settings(config, model), []
    if jax.process_index() == 0:
        check_of_one_model(out, named, ["results"])
    with held(out):
        ready = merged(model, config.param_dtype)
        if keys := chosen_cells(config):
            scorer = Scorer(ready.decoder, ready.variables, ready.mesh, config.batch_tokens)
            cells = label_cells(grid_data(config, data, ready), keys)
            failures += ask_cells(config, ready, named, Grid(out), cells, scorer)["failures"]
            if config.prompts == "mended" and jax.process_index() == 0:
                write_text(out / "mended_prompts.md", differences_table(data.exemplars))
        if open_tasks(config):
            failures += evaluate_open_answers(config, ready, named)["failures"]
    print_result(f"records: {config.out}")
    if failures:
        first = failures[0]
        raise InputError(
            f"{first['task']} {first['language']}: {first['error']} ({len(failures)} such failed; the others are in "
            f"{config.out}, and the same command adds what is missing)"
        )


def evaluate_open_answers(config: ConfigDict, model: Model, named: Mapping[str, Any]) -> dict[str, Any]:
    """Decodes the open tasks of `config.tasks`; arguments and result are those of `ask_cells`."""
    generator = Generator(model.decoder, model.variables, model.mesh, config.generate.batch_size)
    return ask_cells(config, model, named, open_grid(out_folder(config)), open_cells(config, model), generator)


def ask_cells(
    config: ConfigDict, model: Model, named: Mapping[str, Any], grid: Grid, cells: Sequence[Any], asker: Any
) -> dict[str, Any]:
    """Runs the grid and tells a line per cell.

    Args:
      model: ready to apply; an adapter may be merged into it.
      named: `settings` of it before.
      asker: a `Scorer` or a `Generator`, as the cells need it.

    Returns:
      The content of `results.json` or `open_results.json`; its "failures" lists the cells that could not be asked.
    """
    description = {**named, "tuned_on": model.tuned_on, "bos": model.tokenizer.bos, **provenance(config)}
    results = run_grid(grid, cells, asker, model.variables, settings=named, description=description)
    for cell in results[f"{grid.prefix}cells"]:
        print_result(line_of(cell))
    for failure in results["failures"]:
        labels = {name: text for name, text in failure.items() if name not in ("task", "error")}
        print_result(f"{failure['task']:8} {'  '.join(labels.values())} failed: {failure['error']}")
    return results


def line_of(cell: Mapping[str, Any]) -> str:
    """A cell's result for the terminal."""
    task, language, count = cell["task"], cell["language"], cell["count"]
    if task == TRANSLATION:
        seen = {True: "seen", False: "unseen", None: "tuned on unknown languages"}[cell["seen"]]
        return f"{task:11} {language}→{cell['target']}  chrF {cell['chrf']:.1f} of {count}  ({seen})"
    low, high = cell["interval_corrected"]
    accuracy = f"{cell['accuracy_corrected']:6.1%} of {count}  (95 % interval {low:.1%} to {high:.1%}"
    if task in MATH_TASKS:
        return f"{task:11} {language}  {accuracy}; by QAlign's extraction {cell['accuracy_reference']:.1%})"
    variant = "" if cell["variant"] == "english" else f"  {cell['variant']}"
    shared = "".join(
        f"  [{' and '.join(pair['classes'])} share candidate tokens {', '.join(map(str, pair['ids']))}]"
        for pair in cell["shared_candidates"]
    )
    return f"{task:8} {language}{variant}  {accuracy}){shared}"


def grid_data(config: ConfigDict, data: EvaluationData, model: Model) -> GridData:
    """What the label cells are asked."""
    rows, style = parse_rows(config.rows), prompt_style(config)
    return GridData(data.tasks, data.exemplars, model.tokenizer, rows, style, config.seed)


def chosen_cells(config: ConfigDict) -> list[CellKey]:
    """The label cells that the config names; label tasks without a cell among its variants are an error."""
    tasks = of_config.chosen_tasks(config, besides=OPEN_TASKS)
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


def open_tasks(config: ConfigDict) -> list[str]:
    """Those of `config.tasks` that are answered openly."""
    return [name for name in split_list(config.tasks) if name in OPEN_TASKS]


def open_cells(config: ConfigDict, model: Model) -> list[OpenCell]:
    """The cells of the open tasks; `check_open_answers` has passed."""
    cells: list[OpenCell] = []
    rows, most, tokenizer = parse_rows(config.rows), config.generate.max_tokens, model.tokenizer
    for task in open_tasks(config):
        if task != TRANSLATION:
            cells += [
                math_cell(data_folder(config.data), MATH_TASKS[task], language, rows, tokenizer, most)
                for language in math_languages(config)
            ]
            continue
        run = pairs_run(config)
        if run is not None:
            pairs, template = heldout_pairs(run, tokenizer), read_run_document(run)["template"]
        else:
            pairs = read_pairs(pair_paths(config), of_config.rendering(config))
            template = resolve_template(config.template, model.config.family)
        languages = chosen_languages(config)
        chosen = [pair for pair in pairs if pair.source_language in languages]
        origin: Any = {"heldout": run is not None, "tuned_on": model.tuned_on}
        found = translation_cells(chosen, rows, tokenizer, template, **origin, max_tokens=most)
        if not found:
            raise InputError(
                f"translation: {run or config.pairs} has no pair from {config.languages} in rows {config.rows}; "
                "choose other languages or rows"
            )
        cells += found
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
