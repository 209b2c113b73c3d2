"""`jaxalign train`: question pairs to an adapter, in one run or in several that go on from each other."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxalign.configuration import provenance
from jaxalign.data import batches
from jaxalign.data.pairs import QuestionPair, languages_of
from jaxalign.data.tokenizer import edges, render_all, resolve_template
from jaxalign.errors import InputError
from jaxalign.files import check_bucket, path_of, recorded
from jaxalign.holding import held
from jaxalign.loading import DTYPES, PARAM_DTYPES, Model, chosen, merged, with_adapter, with_stored_base
from jaxalign.log import CurvesConfig, log_status
from jaxalign.model.config import decoder_name
from jaxalign.model.hub import model_name
from jaxalign.model.lora import LoraConfig, lora_shapes
from jaxalign.model.quantised import SCHEMES
from jaxalign.model.transformer import REMAT_POLICIES
from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import assert_same_on_hosts
from jaxalign.training import loop
from jaxalign.training.checkpoint import Retention
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig
from jaxalign.verbs.data import gather_pairs
from jaxalign.verbs.settings import load_model, run_folder, split_list
from jaxalign.verbs.watch import Watch, watch_settings


@dataclass(frozen=True)
class Tuning:
    """The settings of a run as the values that it takes, made before the model is read."""

    config: ConfigDict
    lora: LoraConfig | None
    """None: all parameters are tuned."""
    layout: batches.BatchLayout
    """On a mesh whose batch axes are 1."""
    run: loop.TrainConfig
    watch: Watch | None = None
    """None where nothing is tuned, as in a plan."""


def tuning_of(config: ConfigDict) -> Tuning:
    """The settings of a run; InputError names the key of a wrong one."""
    chosen("tune", config.tune, dict.fromkeys(("adapter", "all")))
    chosen("dtype", config.dtype, DTYPES)
    chosen("param_dtype", config.param_dtype, dict.fromkeys(PARAM_DTYPES))
    chosen("remat", config.remat, dict.fromkeys(("none", *REMAT_POLICIES)))
    if config.tune == "all" and config.param_dtype in SCHEMES:
        raise InputError(
            f"tune=all with param_dtype={config.param_dtype}: quantised weights stay as they are; tune an adapter, or "
            "store the weights as float32 or bfloat16"
        )
    if config.template != "auto":
        resolve_template(config.template, "")
    layout = batches.BatchLayout(**{key: value for key, value in config.batch.items() if key != "too_long"})
    adapter = LoraConfig(**{**config.lora, "targets": tuple(split_list(config.lora.targets))})
    return Tuning(
        config,
        None if config.tune == "all" else adapter,
        layout,
        loop.TrainConfig(
            OptimizerConfig(**config.optimizer),
            StepConfig(
                layout.accumulation, config.loss.reduction, config.loss.chunk, config.nonfinite, layout.rows_at_once
            ),
            loop.LoopConfig(config.log_every, config.heldout_every, config.checkpoint_every, config.watch_every),
            Retention(config.keep_last, config.keep_best),
            config.seed,
            path_of(config.resume) if config.resume else None,
            CurvesConfig(**config.log),
        ),
    )


def ready_to_tune(config: ConfigDict) -> Tuning:
    """`tuning_of` a run that has its place, with what it watches."""
    check_bucket(run_folder(config))
    return replace(tuning_of(config), watch=watch_settings(config))


def train(config: ConfigDict, paths: Sequence[str]) -> None:
    """Tunes on the pairs of `paths`, or on those that `data build` would make, into the run `config.out`, or with
    `config.stages` into one run a stage. Every stage's data is read before the model is."""
    stages = [ready_to_tune(stage) for stage in stage_configs(config)]
    files = [list(paths)] * len(stages)
    if len(stages) > 1 and paths:
        if len(paths) != len(stages):
            raise InputError(
                f"{len(stages)} stages take as many arguments, each the files of one stage joined by commas; found "
                f"{len(paths)}: {' '.join(paths)}"
            )
        files = [split_list(path) for path in paths]
    pairs = [gather_pairs(stage.config, named) for stage, named in zip(stages, files, strict=True)]
    with ExitStack() as stack:
        for stage in stages:
            stack.enter_context(held(run_folder(stage.config)))
        model = load_model(stages[0].config, quantised=True)
        for number, stage in enumerate(stages):
            if len(stages) > 1:
                log_status(f"stage {number + 1} of {len(stages)}: {stage.config.out}")
            if number:
                model = with_adapter(model, path_of(stage.config.adapter))
            train_model(stage, model, pairs[number], files[number])


def stage_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config of each stage, as one would start it by hand: OUT/stage1 starts as the config says, OUT/stage2 from
    OUT/stage1, and so on. Without stages, the config itself."""
    if not config.stages:
        return [config]
    if config.resume:
        raise InputError(f"resume={config.resume}: stages go on from their own folders; leave it empty")
    adapter, stages = config.adapter, []
    for number, changes in enumerate(config.stages, start=1):
        stage = config.copy_and_resolve_references()
        stage.update_from_flattened_dict(changes)
        stage.update(stages=(), adapter=adapter, out=config.out and str(path_of(config.out) / f"stage{number}"))
        stages.append(stage.lock())
        adapter = stage.out
    return stages


def train_model(
    tuning: Tuning, model: Model, pairs: Sequence[QuestionPair], paths: Sequence[str], records: int = 0
) -> None:
    """`train` with a model and the pairs at hand, of which so many came as records, from no file or data set."""
    config = tuning.config
    run = run_folder(config)
    with held(run):
        assert_same_on_hosts("the settings", config.to_dict())
        template = resolve_template(config.template, model.config.family)
        rendered = render_all(pairs, template, model.tokenizer)
        fitted = batches.fit_pairs(rendered, config.batch.length, config.batch.too_long)
        check_context(fitted, model.config.max_positions)
        plan, heldout = plans(tuning, fitted.pairs, model.mesh.shape["data"] * model.mesh.shape["fsdp"])
        if tuning.lora is None:
            model, lora, adapter = merged(model, config.param_dtype), None, None
        else:
            model, adapter = with_stored_base(model, config.param_dtype), model.adapter
            lora = adapter.lora if adapter else tuning.lora
        shapes = {"params": model.params} | ({"lora": lora_shapes(model.config, lora)} if lora else {})
        directions = Counter(f"{pair.source_language}→{pair.target_language}" for pair in pairs)
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
            "trainable_parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["lora" if lora else "params"])),
            **provenance(config),
        }
        document["config"]["param_dtype"] = model.param_dtype  # what auto has found
        log_status(
            f"pairs: {document['pairs']} ({', '.join(f'{name} {count}' for name, count in directions.items())}), "
            f"{document['heldout_pairs']} held out, {fitted.dropped} too long and dropped, {fitted.cut} cut"
        )
        log_status(
            f"run: {plan.steps} steps of {plan.rows_per_step} rows x {plan.length} positions ({plan.padding:.0%} "
            f"padding), template {template}, {document['trainable_parameters']:,} trainable parameters"
        )
        decoder = replace(model.decoder, lora=lora)
        fingerprint = {
            "model": weights_sha256(model.params),
            "template": template,
            "heldout": config.heldout,
            "heldout_pairs": heldout.pairs.sha256() if heldout else "",
            "adapter": weights_sha256(adapter.tree) if adapter else "",
            "dtype": config.dtype,
            "param_dtype": model.param_dtype,
        }
        loop.run_training(
            replace(decoder, remat=config.remat),
            model.params,
            plan,
            heldout,
            tuning.run,
            loop.RunFolder(run, document, fingerprint),
            model.mesh,
            adapter.tree if adapter else None,
            tuning.watch.hooks(model, decoder, shapes) if tuning.watch else (),
        )


def check_context(fitted: batches.FittedPairs, context: int) -> None:
    """Refuses pairs longer than the positions that the model was made for, as evaluation does; 0: any."""
    lengths = fitted.pairs.lengths
    if 0 < context < lengths.max():
        first = int(np.argmax(lengths > context))
        raise InputError(
            f"{(lengths > context).sum()} pairs take more positions than the model's {context}, first pair "
            f"{fitted.kept[first]} (counted from 0) with {lengths[first]}; set batch.length={context}, and "
            "batch.too_long to what becomes of them: drop or cut"
        )


def plans(
    tuning: Tuning, pairs: batches.TokenisedPairs, row_multiple: int
) -> tuple[batches.BatchPlan, batches.BatchPlan | None]:
    """The plan of the run, and the batches of the pairs held out of it (None where `config.heldout` is 0)."""
    config, layout = tuning.config, replace(tuning.layout, row_multiple=row_multiple)
    kept, heldout = batches.split_heldout(len(pairs), config.heldout, config.seed)
    plan = batches.training_plan(pairs.take(kept), layout, epochs=config.epochs, steps=config.steps, seed=config.seed)
    return plan, batches.heldout_plan(pairs.take(heldout), layout) if len(heldout) else None
