"""`jaxalign plan`: whether a step fits TPU slices, and how fast it could be there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from jaxalign import files, runtime
from jaxalign.data.batches import round_up
from jaxalign.errors import InputError
from jaxalign.evaluation.score import SHORTEST_ROW
from jaxalign.log import log_status
from jaxalign.model import architectures
from jaxalign.model.config import ModelConfig, declared_type, read_config
from jaxalign.model.gguf import gguf_types, read_gguf_config
from jaxalign.model.hub import CONFIG_FILES, local_model
from jaxalign.model.weights import stored_types
from jaxalign.planning.chips import PROGRAMS, Job, parse_slice
from jaxalign.planning.compile import facts_of, versions
from jaxalign.planning.plan import advice, lines, make_plan, search, smallest_that_fits, table
from jaxalign.verbs.settings import split_list
from jaxalign.verbs.train import Tuning, stage_configs, tuning_of


def plan(config: ConfigDict, paths: Sequence[str]) -> None:
    """Plans every program of `config.plan.programs`, of every stage, on every slice of `config.topology`."""
    if not config.topology:
        raise InputError("--config.topology= is needed: TPU slices, comma-separated, as in v5e:4x4")
    written = files.local_path(config.out) / "plan.json" if config.out else None
    architecture = architecture_named(config.model)
    jobs = {  # stages that differ in nothing that matters here are one job
        job_of(stage, architecture, topology, program): stage
        for topology in split_list(config.topology)
        for program in split_list(config.plan.programs)
        for stage in stage_configs(config)
    }
    made_with = versions()
    if written:
        files.check_writable(written.parent)
    plans = []
    for job, stage in tqdm(jobs.items(), unit="program", disable=None):
        planned = planned_job(job, stage)
        plans.append(planned)
        tqdm.write("\n".join(lines(planned)))
    document: dict[str, Any] = {"plans": plans, "versions": made_with}
    if len(split_list(config.topology)) > 1:
        document["smallest_that_fits"] = smallest_that_fits(plans)
        print("\n".join(table(plans)))
        print(f"smallest that fits: {document['smallest_that_fits'] or 'none of them'}")
    if written:
        files.write_json(written, document)
        log_status(f"written: {written}")


def planned_job(job: Job, config: ConfigDict) -> dict[str, Any]:
    """The plan of a job, or with `config.fit` of the best one like it that fits."""
    is_searched = config.fit and job.program == "train"
    job, facts = search(job) if is_searched else (job, facts_of(job))
    planned = make_plan(job, config.model, facts)
    if is_searched and planned["fits"]:
        found = {
            "batch.pairs_per_step": 0,
            "batch.rows_per_step": job.rows,
            "batch.length": job.length,
            "batch.accumulation": job.step.accumulation,
            "batch.rows_at_once": job.step.rows_at_once,
            **{f"mesh.{axis}": size for axis, size in planned["mesh"].items()},
            "remat": job.remat,
        }
        flags = " ".join(f"--config.{key}={value}" for key, value in found.items())
        planned["batch"]["note"] = (
            f"found; to train so: {flags}; longer pairs are not in its rows: `jaxalign data describe "
            f"--config.batch.length={job.length}` counts them"
        )
    elif not is_searched and config.batch.pairs_per_step and job.program == "train":
        planned["batch"]["note"] = (
            f"{config.batch.pairs_per_step} pairs a step taken as so many rows of {job.length} positions, rounded up "
            "to the mesh; packing needs fewer"
        )
    if not planned["fits"]:
        planned["advice"] = advice(job) if job.program == "train" else []
    return planned


def architecture_named(model: str) -> ModelConfig:
    """The architecture of a model folder, of a GGUF file, of a model on the hub (of which only its config.json is
    fetched), or of a name that ships with the package."""
    if not model:
        known = ", ".join(architectures.names())
        raise InputError(
            "--config.model= is needed: a folder with a config.json, a GGUF file, ORG/NAME on the hub, or one of "
            f"{known}"
        )
    path = local_model(model, CONFIG_FILES)
    if path.is_dir():
        return read_config(path)
    return read_gguf_config(path) if path.is_file() else architectures.read(model)


def stored_type(model: str) -> str:
    """The type that most of a model's weights are stored in: of those that are here, or as config.json says."""
    path = local_model(model, CONFIG_FILES)
    if path.is_file():
        return gguf_types(path).most_common(1)[0][0]
    if not path.is_dir():
        return declared_type(architectures.FOLDER / f"{model}.json")
    try:
        return stored_types(path).most_common(1)[0][0]
    except InputError:  # no weights, which a plan does not need
        return declared_type(path / "config.json")


def job_of(config: ConfigDict, architecture: ModelConfig, topology: str, program: str) -> Job:
    """The job that the config describes on one slice."""
    if program not in PROGRAMS:
        raise InputError(f"--config.plan.programs={program}: choose among {', '.join(PROGRAMS)}")
    tuning = tuning_of(config)
    sizes = runtime.mesh_sizes(**config.mesh, devices=parse_slice(topology).devices)
    rows, length = batch_shape(tuning, program, ways=sizes[0] * sizes[1])
    return Job(
        architecture=architecture,
        topology=topology,
        mesh=sizes,
        rows=rows,
        length=length,
        dtype=config.dtype,
        param_dtype=stored_type(config.model) if config.param_dtype == "auto" else config.param_dtype,
        lora=tuning.lora,
        remat=config.remat,
        optimizer=tuning.run.optimizer,
        step=tuning.run.step,
        program=program,  # pyright: ignore[reportArgumentType]: checked above
    )


def batch_shape(tuning: Tuning, program: str, ways: int) -> tuple[int, int]:
    """(rows, positions of each) of a step or batch, as the mesh's batch axes need them.

    Pairs are taken as rows of `batch.length` positions: how many fit into one is the data's to say.
    """
    if program == "score":
        return round_up(max(1, tuning.config.batch_tokens // SHORTEST_ROW), ways), SHORTEST_ROW
    if program == "lens":
        return round_up(tuning.config.batch_size, ways), SHORTEST_ROW
    layout = replace(tuning.layout, row_multiple=ways)
    per_micro_batch = (layout.pairs_per_step or layout.rows_per_step) // layout.accumulation
    return round_up(per_micro_batch, layout.rows_computed) * layout.accumulation, layout.length
