"""`jaxalign train`: question pairs to an adapter."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxalign.cli.data import gather_pairs
from jaxalign.cli.provenance import provenance
from jaxalign.cli.settings import load_model, run_folder, split_list
from jaxalign.cli.stages import files_of_stages, stage_configs
from jaxalign.cli.watch import check_watch_settings, watch_hooks
from jaxalign.data.batches import (
    BatchLayout,
    BatchPlan,
    FittedPairs,
    TokenisedPairs,
    fit_pairs,
    heldout_plan,
    split_heldout,
    training_plan,
)
from jaxalign.data.pairs import QuestionPair, languages_of
from jaxalign.data.templates import edges, render_all, resolve_template
from jaxalign.errors import InputError
from jaxalign.files import check_bucket, path_of, recorded
from jaxalign.holding import held
from jaxalign.load import Model, merged, with_adapter, with_stored_base
from jaxalign.log import CurvesConfig, say
from jaxalign.model.config import decoder_name
from jaxalign.model.hub import model_name
from jaxalign.model.lora import LoraConfig, lora_shapes
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.transformer import REMAT_POLICIES
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import agree
from jaxalign.training import loop
from jaxalign.training.checkpoint import Kept
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig


def train(config: ConfigDict, paths: Sequence[str]) -> None:
    """Tunes on the pairs of `paths`, or on those that `data build` would make, into the run `config.out`.

    With `config.stages` into one run a stage. Every stage's data is read before the model is; the same command again
    passes over the stages that are finished.
    """
    stages = stage_configs(config)
    files = files_of_stages(stages, paths)
    for stage in stages:
        check_bucket(run_folder(stage))
        check_train_settings(stage)
        check_watch_settings(stage)
    pairs = [gather_pairs(stage, named) for stage, named in zip(stages, files, strict=True)]
    with ExitStack() as stack:
        for stage in stages:
            stack.enter_context(held(run_folder(stage)))
        model = load_model(stages[0], quantised=True)
        for number, stage in enumerate(stages):
            if len(stages) > 1:
                say(f"stage {number + 1} of {len(stages)}: {stage.out}")
            if number:
                model = with_adapter(model, path_of(stage.adapter))
            train_model(stage, model, pairs[number], files[number])


def check_train_settings(config: ConfigDict) -> None:
    """Refuses what would only fail once the model is loaded."""
    if config.tune not in ("adapter", "all"):
        raise InputError(f"--config.tune={config.tune}: choose adapter or all")
    if config.tune == "all" and config.param_dtype in SCHEMES:
        raise InputError(
            f"--config.tune=all with --config.param_dtype={config.param_dtype}: quantised weights stay as they are; "
            "tune an adapter, or store the weights as float32 or bfloat16"
        )
    lora_config(config)
    step_configs(config)
    CurvesConfig(**config.log)
    if config.remat != "none" and config.remat not in REMAT_POLICIES:
        raise InputError(f"--config.remat={config.remat}: choose none, {', '.join(REMAT_POLICIES)}")
    if config.template != "auto":
        resolve_template(config.template, "")


def step_configs(config: ConfigDict) -> tuple[OptimizerConfig, StepConfig, loop.LoopConfig, Kept]:
    """What a step does, what happens between steps, and what is kept."""
    return (
        OptimizerConfig(**config.optimizer),
        StepConfig(
            config.batch.accumulation,
            config.loss.reduction,
            config.loss.chunk,
            config.nonfinite,
            config.batch.rows_at_once,
        ),
        loop.LoopConfig(config.log_every, config.heldout_every, config.checkpoint_every, config.watch_every),
        Kept(config.keep_last, config.keep_best),
    )


def train_model(
    config: ConfigDict, model: Model, pairs: Sequence[QuestionPair], paths: Sequence[str], records: int = 0
) -> None:
    """`train` with a model and the pairs at hand, of which so many came as records, from no file or data set."""
    with held(run_folder(config)):
        tune(config, model, pairs, paths, records)


def tune(config: ConfigDict, model: Model, pairs: Sequence[QuestionPair], paths: Sequence[str], records: int) -> None:
    """`train_model` in a run folder that is held."""
    agree("the settings", config.to_dict())
    run = run_folder(config)
    template = resolve_template(config.template, model.config.family)
    fitted = fit_pairs(render_all(pairs, template, model.tokenizer), config.batch.length, config.batch.too_long)
    check_context(fitted, model.config.max_positions)
    plan, heldout = plans(config, fitted.pairs, row_multiple=model.mesh.shape["data"] * model.mesh.shape["fsdp"])
    if config.tune == "all":
        model, lora = merged(model, config.param_dtype), None
    else:
        model = with_stored_base(model, config.param_dtype)
        lora = model.adapter.lora if model.adapter else lora_config(config)
    document = {
        "model": model_name(model.path),
        "decoder": decoder_name(model.path),
        "files": recorded(paths),
        "records": records,
        "template": template,
        "bos": model.tokenizer.spelt(edges(template, model.tokenizer)[0]),
        "pairs": len(fitted.pairs),
        "heldout_pairs": len(heldout.pairs) if heldout else 0,
        "dropped": fitted.dropped,
        "cut": fitted.cut,
        "languages": {
            "sources": sorted({pair.source_language for pair in pairs}),
            "targets": sorted({pair.target_language for pair in pairs}),
            "seen": None if model.tuned_on is None else languages_of(pairs, model.tuned_on),
        },
        "steps": plan.steps,
        "rows_per_step": plan.rows_per_step,
        "row_length": plan.length,
        "padding": round(plan.padding, 4),
        "tune": config.tune,
        "trainable_parameters": trainable_parameters(model, lora),
        **provenance(config),
    }
    document["config"]["param_dtype"] = model.param_dtype  # what auto has found
    describe(document, pairs)
    optimizer_config, step_config, loop_config, kept = step_configs(config)
    decoder, shapes = replace(model.decoder, lora=lora), {"params": model.params}
    if lora is not None:
        shapes |= {"lora": lora_shapes(model.config, lora)}
    loop.train(
        replace(decoder, remat=config.remat),
        model.params,
        plan,
        heldout,
        run=run,
        mesh=model.mesh,
        optimizer_config=optimizer_config,
        step_config=step_config,
        loop_config=loop_config,
        kept=kept,
        seed=config.seed,
        document=document,
        curves=CurvesConfig(**config.log),
        fingerprint={
            "model": weights_sha256(model.params),
            "template": template,
            "heldout": config.heldout,
            "heldout_pairs": heldout.pairs.sha256() if heldout else "",
            "adapter": weights_sha256(model.adapter.tree) if model.adapter else "",
            "dtype": config.dtype,
            "param_dtype": model.param_dtype,
        },
        resume=path_of(config.resume) if config.resume else None,
        initial_adapter=model.adapter.tree if model.adapter else None,
        hooks=watch_hooks(config, model, decoder, shapes),
    )


def check_context(fitted: FittedPairs, context: int) -> None:
    """Refuses pairs longer than the positions that the model was made for, as evaluation does; 0: any."""
    lengths = fitted.pairs.lengths
    if 0 < context < lengths.max():
        first = int(np.argmax(lengths > context))
        raise InputError(
            f"{(lengths > context).sum()} pairs take more positions than the model's {context}, first pair "
            f"{fitted.kept[first]} (counted from 0) with {lengths[first]}; set --config.batch.length={context}, and "
            "--config.batch.too_long to what becomes of them: drop or cut"
        )


def lora_config(config: ConfigDict) -> LoraConfig:
    """The adapter that the config describes."""
    keys = config.lora
    return LoraConfig(keys.rank, keys.alpha, tuple(split_list(keys.targets)), keys.rslora, keys.dora)


def trainable_parameters(model: Model, lora: LoraConfig | None) -> int:
    """How many numbers are tuned: the adapter's, or all."""
    trained = model.params if lora is None else lora_shapes(model.config, lora)
    return sum(leaf.size for leaf in jax.tree.leaves(trained))


def plans(config: ConfigDict, pairs: TokenisedPairs, row_multiple: int) -> tuple[BatchPlan, BatchPlan | None]:
    """The plan of the run, and the batches of the pairs held out of it (None where `config.heldout` is 0)."""
    keys = ("pairs_per_step", "rows_per_step", "length", "packed", "accumulation", "rows_at_once")
    layout = BatchLayout(**{key: config.batch[key] for key in keys}, row_multiple=row_multiple)
    kept, heldout = split_heldout(len(pairs), config.heldout, config.seed)
    plan = training_plan(pairs.take(kept), layout, epochs=config.epochs, steps=config.steps, seed=config.seed)
    return plan, heldout_plan(pairs.take(heldout), layout) if len(heldout) else None


def describe(document: dict[str, Any], pairs: Sequence[QuestionPair]) -> None:
    """Says what the run is about to do."""
    counts = Counter(f"{pair.source_language}→{pair.target_language}" for pair in pairs)
    say(
        f"pairs: {document['pairs']} ({', '.join(f'{name} {count}' for name, count in counts.items())}), "
        f"{document['heldout_pairs']} held out, {document['dropped']} too long and dropped, {document['cut']} cut"
    )
    say(
        f"run: {document['steps']} steps of {document['rows_per_step']} rows x {document['row_length']} positions "
        f"({document['padding']:.0%} padding), template {document['template']}, "
        f"{document['trainable_parameters']:,} trainable parameters"
    )
