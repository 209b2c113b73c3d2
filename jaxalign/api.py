"""What the verbs do, from Python: `import jaxalign as ja`.

    base = ja.load("MODEL")
    ja.evaluate(base, "before", tasks="emotion", languages="en,de,sw")
    ja.train(base, ["my_pairs.csv"], "run", epochs=1, batch={"length": 512})
    ja.evaluate(ja.load("MODEL", adapter="run"), "after", tasks="emotion", languages="en,de,sw")
    ja.compare("before", "after").means

Settings are the keys of configs/base.py, groups as dicts; a wrong one raises InputError. Paths are str or Path. What is
written is what the verbs write. Several hosts that work together all make the same calls of `load`, `train`, `evaluate`
and `probe`, `out` being in a folder that they share: process 0 writes, and each returns what it wrote.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxalign import runtime
from jaxalign.configuration import command, config_with
from jaxalign.data.pairs import QuestionPair, pair_of
from jaxalign.errors import InputError, gather
from jaxalign.files import AnyPath, local_path, path_of, read_json
from jaxalign.loading import Model
from jaxalign.probe_files import Probe, read_probe
from jaxalign.reporting.compare import Comparison
from jaxalign.reporting.compare import compare as compared
from jaxalign.reporting.folders import Results, TrainingRun, read_results, read_run
from jaxalign.reporting.page import write_report
from jaxalign.runtime import require_one_process, wait_for_all
from jaxalign.verbs.data import gather_pairs
from jaxalign.verbs.demo import demo as run_demo
from jaxalign.verbs.evaluate import check_settings, chosen_cells, evaluate_model, open_tasks
from jaxalign.verbs.export import export as export_run
from jaxalign.verbs.probe import FILE_OF, probe_model, probe_settings
from jaxalign.verbs.settings import EvaluationData, load_model, rendering
from jaxalign.verbs.train import ready_to_tune, train_model

PathLike = str | Path
PairLike = QuestionPair | Mapping[str, Any]
"""A pair, or a row with the fields that a row of a file may have."""
LOADED_WITH = ("model", "adapter", "dtype", "param_dtype", "mesh")
"""Settings of `load`; the model that it returns keeps them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model on its devices, and the settings that it was loaded with."""

    model: Model
    settings: Mapping[str, Any]

    def config(self, out: PathLike, settings: Mapping[str, Any]) -> ConfigDict:
        """The config of what is done with it; how a model is loaded was settled by `load`."""
        if fixed := sorted(settings.keys() & set(LOADED_WITH)):
            raise InputError(f"{fixed[0]} is a setting of ja.load")
        return config_with({**self.settings, **settings, "out": str(out)})


@dataclass(frozen=True)
class Evaluation:
    """What the tasks that were asked for have shown; None for the kind of which there was none."""

    labels: Results | None
    """accuracies by label scores, with all predictions"""
    open_answers: Mapping[str, Any] | None
    """the content of `open_results.json`"""


def demo(out: PathLike, **settings: Any) -> Path:
    """The whole path on the mini set, from evaluation to report, into the folder `out`; the report's path.

    Settings are those of configs/demo.py, the model among them.
    """
    runtime.start()
    require_one_process("ja.demo")
    run_demo(config_with({**settings, "out": str(out)}, "demo"), [])
    return Path(out) / "report.html"


def load(model: PathLike, adapter: PathLike = "", **settings: Any) -> LoadedModel:
    """A model folder, GGUF file or whatever else `--config.model` takes, tuned by an adapter or a training run.

    Settings: dtype, param_dtype, mesh.
    """
    if others := sorted(settings.keys() - set(LOADED_WITH)):
        raise InputError(f"{others[0]} is no setting of ja.load; it takes {', '.join(LOADED_WITH)}")
    runtime.start()
    loaded_with = {**settings, "model": str(model), "adapter": str(adapter)}
    return LoadedModel(load_model(config_with(loaded_with)), loaded_with)


def train(
    base: LoadedModel, pairs: Iterable[PathLike | PairLike] | PathLike | PairLike, out: PathLike, **settings: Any
) -> TrainingRun:
    """Tunes on pairs, given as files or as records, into the run `out`; the same call again continues it."""
    config = base.config(out, settings)
    if config.stages:
        raise InputError("stages: ja.train tunes once; call it for each, with the run before it as ja.load's adapter")
    tuning, pairs = ready_to_tune(config), as_list(pairs)
    files = [str(item) for item in pairs if isinstance(item, PathLike)]
    records = gather(
        partial(
            pair_of, vars(item) if isinstance(item, QuestionPair) else item, rendering(config), f"pairs, item {index}"
        )
        for index, item in enumerate(pairs)
        if not isinstance(item, PathLike)
    )
    named = gather_pairs(config, files) if files else []
    train_model(tuning, base.model, records + named, files, len(records))
    return read_run(once_written(config.out))


def evaluate(model: LoadedModel, out: PathLike, **settings: Any) -> Evaluation:
    """Label scores of the tasks' test rows, and open answers, into the folder `out`."""
    config = model.config(out, settings)
    data = EvaluationData(config)
    check_settings(config, data)
    evaluate_model(config, model.model, data)
    folder = Path(once_written(out))
    return Evaluation(
        read_results(folder) if chosen_cells(config) else None,
        read_json(folder / "open_results.json") if open_tasks(config) else None,
    )


def probe(model: LoadedModel, out: PathLike, **settings: Any) -> dict[str, Probe]:
    """The probes of the setting `probes` into the folder `out`: by name, their arrays and what these mean."""
    config = model.config(out, settings)
    chosen = probe_settings(config, EvaluationData(config))
    probe_model(chosen, model.model)
    folder = Path(once_written(out))
    return {name: read_probe(folder, FILE_OF[name]) for name in chosen.names}


def as_list(items: Any) -> list[Any]:
    """The items; one path or record alone is a list of one."""
    return [items] if isinstance(items, str | Path | QuestionPair | Mapping) else list(items)


def once_written(folder: PathLike) -> AnyPath:
    """The folder, once process 0 is done with it."""
    wait_for_all()
    return path_of(str(folder))


def compare(before: PathLike, *afters: PathLike) -> Comparison:
    """Gains of one or more evaluations over another, with tests and intervals."""
    if not afters:
        raise InputError("ja.compare takes two folders or more")
    return compared(Path(before), *map(Path, afters))


def report(before: PathLike, *afters: PathLike, out: PathLike) -> Path:
    """One HTML file of evaluations and probes before and after, or of the probes of one folder alone; its path."""
    require_one_process("ja.report")
    file = local_path(str(out))
    write_report(Path(before), [Path(after) for after in afters], file, command())
    return file


def export(run: PathLike, out: PathLike, evaluations: Iterable[PathLike] | PathLike = (), **settings: Any) -> Path:
    """A run's adapter as a PEFT folder, or with format="merged" and model=... the whole model; its path.

    The model card shows the scores of the evaluations, folders that `ja.evaluate` wrote.
    """
    runtime.start()
    require_one_process("ja.export")
    export_run(config_with({**settings, "out": str(out)}), [str(run), *map(str, as_list(evaluations))])
    return Path(out)
