"""Several training runs in one: `config.stages` as the runs that one would start by hand, one after the other."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxalign.cli.settings import run_folder, split_list
from jaxalign.errors import InputError


def stage_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config of each stage; where there are no stages, the config itself.

    Stage 1 is the run OUT/stage1 and starts as the config says, stage 2 is OUT/stage2 and starts from OUT/stage1, and
    so on.
    """
    if not config.stages:
        return [config]
    if config.resume:
        raise InputError(f"--config.resume={config.resume}: stages go on from their own folders; leave it empty")
    out, adapter, stages = run_folder(config), config.adapter, []
    for number, stage in enumerate(settings_of_stages(config), start=1):
        stage.update(adapter=adapter, out=str(out / f"stage{number}"))
        stages.append(stage.lock())
        adapter = stage.out
    return stages


def settings_of_stages(config: ConfigDict) -> list[ConfigDict]:
    """The settings of each stage, folders apart; where there are no stages, the config's own."""
    stages = []
    for changes in config.stages or ({},):
        stage = config.copy_and_resolve_references()
        stage.update_from_flattened_dict(changes)
        stage.update(stages=())
        stages.append(stage)
    return stages


def files_of_stages(stages: Sequence[ConfigDict], paths: Sequence[str]) -> list[list[str]]:
    """The files of each stage: all of them where there is one, else one argument a stage, its files joined by commas.

    Without arguments no stage has any: its pairs are built.
    """
    if len(stages) == 1 or not paths:
        return [list(paths) for _ in stages]
    if len(paths) != len(stages):
        raise InputError(
            f"{len(stages)} stages take as many arguments, each the files of one stage joined by commas; found "
            f"{len(paths)}: {' '.join(paths)}"
        )
    return [split_list(path) for path in paths]
