"""What settings say, as values: the model, the tasks and languages, the place of results."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict

from jaxalign.data.languages import language_of, parse_languages
from jaxalign.data.pairs import Rendering
from jaxalign.data.prompts import Exemplars, read_exemplars
from jaxalign.data.tasks import TASKS, Task, TaskData, task_named
from jaxalign.errors import InputError
from jaxalign.files import AnyPath, data_folder, exemplars_file, local_path, path_of
from jaxalign.loading import Model, load
from jaxalign.training.checkpoint import check_name


def load_model(config: ConfigDict, *, quantised: bool = False) -> Model:
    """`load` of the model that the config names."""
    stored = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    return load(config.model, config.adapter, **stored, mesh=config.mesh, quantised=quantised)


def split_list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def chosen_tasks(config: ConfigDict, besides: Collection[str] = ()) -> list[Task]:
    """The tasks of `config.tasks`; names among `besides` may stand there too and are passed over."""
    names = list(TASKS) if config.tasks == "all" else split_list(config.tasks)
    if len(set(names)) < len(names):
        raise InputError(f"tasks={config.tasks}: a task is named more than once")
    return [task_named(name) for name in names if name not in besides]


def chosen_languages(config: ConfigDict) -> list[str]:
    return parse_languages(config.languages)


@dataclass(frozen=True)
class EvaluationData:
    """What a config names to evaluate on: made once a command and passed on, as each file is read once."""

    config: ConfigDict

    @cached_property
    def tasks(self) -> TaskData:
        return TaskData(data_folder(self.config.data))

    @cached_property
    def exemplars(self) -> Exemplars:
        return read_exemplars(exemplars_file(self.tasks.folder, self.config.exemplars))


def out_folder(config: ConfigDict) -> Path:
    """`config.out`, which must be set, as a place for results."""
    if not config.out:
        raise InputError("config.out is needed: where the results go")
    return local_path(config.out)


def run_folder(config: ConfigDict) -> AnyPath:
    """`config.out`, which must be set, as the place of a training run."""
    if not config.out:
        raise InputError("config.out is needed: where the run goes")
    run = path_of(config.out)
    check_name(run)
    return run


def rendering(config: ConfigDict) -> Rendering:
    """How `config.build` says that pairs are made of bare texts."""
    keys = config.build
    sources = parse_languages(keys.sources, "build.sources")
    return Rendering(keys.instruction, tuple(sources), language_of(keys.target, "build.target").code)
