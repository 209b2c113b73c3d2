"""`jaxalign evaluate`: label masses of the tasks' test rows."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxalign.cli.loading import (
    Model,
    chosen_languages,
    chosen_tasks,
    evaluation_data,
    load_model,
    out_folder,
    refuse_paths,
)
from jaxalign.cli.provenance import provenance
from jaxalign.data.batches import round_up
from jaxalign.data.tasks import parse_rows, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.grid import GridData, evaluate_grid
from jaxalign.evaluation.score_labels import Scorer


def evaluate(config: ConfigDict, paths: Sequence[str]) -> None:
    """Scores every task in every language and writes the records to `config.out`."""
    refuse_paths("evaluate", paths)
    check_settings(config)
    evaluate_model(config, load_model(config))


def check_settings(config: ConfigDict) -> None:
    """Refuses what would only fail once the model is loaded."""
    out_folder(config)
    folder, exemplars = evaluation_data(config)
    for task in chosen_tasks(config):
        for language in chosen_languages(config):
            read_task_rows(folder, task, language, "test", parse_rows(config.rows))
            exemplars.of(task.name, language)


def evaluate_model(config: ConfigDict, model: Model) -> None:
    """`evaluate` with a model at hand."""
    out = out_folder(config)
    folder, exemplars = evaluation_data(config)
    data = GridData(folder, exemplars, model.tokenizer, parse_rows(config.rows), config.seed)
    scorer = Scorer(model.decoder, model.variables, model.mesh, batch_size(config, model))
    results = evaluate_grid(
        out,
        scorer,
        model.variables,
        data,
        [task.name for task in chosen_tasks(config)],
        chosen_languages(config),
        settings=settings(config, model),
        description=settings(config, model) | {"tuned_on": tuned_on(model)} | provenance(config),
    )
    for cell in results["cells"]:
        low, high = cell["interval_corrected"]
        print(
            f"{cell['task']:8} {cell['language']}  {cell['accuracy_corrected']:6.1%} of {cell['count']}"
            f"  (95 % interval {low:.1%} to {high:.1%})"
        )
    print(f"records: {out}")


def batch_size(config: ConfigDict, model: Model) -> int:
    """`config.batch_size`, rounded up to what the mesh divides."""
    if config.batch_size < 1:
        raise InputError(f"--config.batch_size={config.batch_size}: set it to 1 or more")
    return round_up(config.batch_size, model.mesh.shape["data"] * model.mesh.shape["fsdp"])


def settings(config: ConfigDict, model: Model) -> dict[str, str]:
    """What results depend on beyond the prompts."""
    return {
        "model": str(model.path),
        "adapter": config.adapter,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
    }


def tuned_on(model: Model) -> list[str] | None:
    """The languages that the adapter saw in training: none without an adapter, null where nobody recorded them."""
    if model.adapter is None:
        return []
    return None if model.adapter.languages is None else list(model.adapter.languages)
