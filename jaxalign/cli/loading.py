"""What verbs share: the model, its tokenizer and its adapter, as the config names them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxalign import runtime
from jaxalign.cli.packaged_model import packaged_gguf
from jaxalign.data.fields import field, read_object
from jaxalign.data.languages import language_of, parse_languages
from jaxalign.data.pairs import Rendering
from jaxalign.data.prompts import Exemplars, read_exemplars
from jaxalign.data.tasks import TASKS, Task, TaskData, task_named
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError, listed
from jaxalign.files import AnyPath, data_folder, exemplars_file, is_remote, local_path, path_of, sha256_of
from jaxalign.log import warn
from jaxalign.model.config import ModelConfig, read_config
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from jaxalign.model.hub import ADAPTER_FILES, local_adapter, local_model, model_name
from jaxalign.model.lora import LoraConfig, check_adapter, merge_lora
from jaxalign.model.peft import load_adapter
from jaxalign.model.quantised import SCHEMES, is_projection, quantise_params, quantise_stacked, widest
from jaxalign.model.sharding import put
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import Leaf, Place, load_params, place_on, weights_sha256
from jaxalign.reporting.folders import read_run_document
from jaxalign.runtime import agree, processes
from jaxalign.training.checkpoint import check_name, read_trained

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
PARAM_DTYPES = ("auto", *DTYPES, *SCHEMES)
"""Values of `config.param_dtype`; auto: each weight in the type that the checkpoint stores it in."""


class Adapter(NamedTuple):
    """The factors of an adapter, and how they are applied."""

    lora: LoraConfig
    tree: Any


@dataclass(frozen=True)
class Model:
    """A model ready to apply: `decoder.apply(variables, ...)`, its parameters laid out on the mesh."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    params: Any
    decoder: Decoder
    adapter: Adapter | None = None
    param_dtype: str = "float32"
    """How the base is stored: `config.param_dtype` or, for auto, the types that were found, as in "bfloat16"."""
    tuned_on: list[str] | None = dataclasses.field(default_factory=list)
    """The languages that adapter or parameters were tuned on; None: nobody recorded all of them."""
    adapter_name: str = ""
    """What records call the adapter or run that tuned it: a path, or ORG/NAME@COMMIT on the hub."""

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that the decoder is applied to."""
        return {"params": self.params} | ({"lora": self.adapter.tree} if self.adapter else {})


def load_model(config: ConfigDict, *, quantised: bool = False) -> Model:
    """The model of `config.model`, with the adapter of `config.adapter` if that is set.

    Where `param_dtype` is int8 or nf4 the projections are in the compute type until `merged` quantises them; with
    `quantised` they are so from the start, each as it is read.
    """
    if not config.model:
        raise InputError("--config.model= is needed: a Hugging Face folder, a GGUF file or an id on the hub (ORG/NAME)")
    path = model_path(config.model)
    dtype = dtype_named("dtype", config.dtype, DTYPES)
    types = {"auto": None, **DTYPES, **dict.fromkeys(SCHEMES, dtype)}
    param_dtype = dtype_named("param_dtype", config.param_dtype, types)
    mesh = runtime.make_mesh(**config.mesh)
    place = place_leaf(mesh, config.param_dtype if quantised else "")
    model_config, tokenizer = config_and_tokenizer(path)
    if processes() > 1:
        weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        sizes = [(file.name, file.stat().st_size) for file in weights]
        agree(f"model={config.model}", [model_config, tokenizer.fingerprint, sizes])
    read_params = load_params if path.is_dir() else load_gguf_params
    params = read_params(path, model_config, param_dtype, place)
    model_config = replace(model_config, tied_head="lm_head" not in params)  # the files know better than config.json
    stored = config.param_dtype
    if param_dtype is None:
        stored = "+".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))
    decoder = Decoder(model_config, dtype=dtype)
    model = Model(path, model_config, tokenizer, mesh, params, decoder, param_dtype=stored)
    return with_adapter(model, adapter_path(config.adapter)) if config.adapter else model


def adapter_path(name: str) -> AnyPath:
    """Where the adapter or run lies that `config.adapter` names: a path here or in a bucket, or on the hub."""
    return path_of(name) if is_remote(name) else local_adapter(name)


def model_path(name: str) -> Path:
    """Where the model lies that `config.model` names: what the demo extra installs, one on the hub, or that path."""
    return packaged_gguf() if name == "packaged" else local_model(name)


def config_and_tokenizer(path: Path) -> tuple[ModelConfig, Tokenizer]:
    """What is known of a model before its weights are read."""
    if path.is_dir():
        config, tokenizer = read_config(path), load_tokenizer(path)
    elif path.is_file():
        config, tokenizer = read_gguf_config(path), Tokenizer(read_gguf_tokenizer(path))
    else:
        raise InputError(f"model={path}: no such folder or file")
    tokenizer = replace(tokenizer, rows=config.vocab_size)
    tokenizer.check_rows(path)
    for warning in tokenizer.warnings(config.family):
        warn(f"{path}: {warning}")
    return config, tokenizer


def place_leaf(mesh: Mesh, scheme: str) -> Place:
    """Leaves laid out on the mesh, projections quantised at once where `scheme` is one of SCHEMES."""
    on_mesh = place_on(mesh)

    def place(leaf: Leaf) -> jax.Array | Mapping[str, jax.Array]:
        try:
            array = on_mesh(leaf)
            if scheme in SCHEMES and is_projection(leaf.path):
                return quantise_stacked(array, leaf.path.removesuffix("/kernel"), mesh, scheme)
            return array
        except ValueError as error:
            raise InputError(f"config.mesh: {error}; choose other sizes") from None

    return place


def with_adapter(model: Model, path: AnyPath) -> Model:
    """The model as a PEFT folder or a training run has tuned it: with an adapter, or with parameters of its own."""
    model = replace(model, adapter_name=model_name(path))
    if not (path / "checkpoints").is_dir():
        if not isinstance(path, Path):
            raise InputError(f"{path}: no training run (no checkpoints/ in it), and on gs:// only runs are read")
        refuse_changed(path, ADAPTER_FILES)
        lora, tree = load_adapter(path, model.config)
        if processes() > 1:
            agree(str(path), [lora, weights_sha256(tree)])
        return replace(adapted(model, Adapter(lora, tree)), tuned_on=None)
    trained = read_trained(path)
    recorded = field(read_run_document(path), "languages", dict, str(path / "run.json"))
    lora, languages = trained.record.lora, recorded.get("seen")
    if lora is None:
        tuned = tuned_params(model, trained.collections["params"], path)
        return replace(model, params=tuned, adapter=None, decoder=replace(model.decoder, lora=None), tuned_on=languages)
    tree = trained.collections["lora"]
    check_adapter(tree, model.config, lora, path)
    return replace(adapted(model, Adapter(lora, tree)), tuned_on=languages)


def refuse_changed(folder: Path, names: Collection[str] | None = None) -> None:
    """InputError where files of a folder (of these names, if they are given) are not those that its certificate.json
    was made for."""
    path = folder / "certificate.json"
    if not path.is_file():
        return
    stated = field(read_object(path), "files", dict, str(path))
    changed = [
        name
        for name, sha256 in stated.items()
        if (names is None or name in names) and not ((folder / name).is_file() and sha256_of(folder / name) == sha256)
    ]
    if changed:
        raise InputError(
            f"{listed([str(folder / name) for name in changed])} changed since certificate.json was written; take the "
            "folder anew from where it was made, or remove certificate.json if the change is meant"
        )


def adapted(model: Model, adapter: Adapter) -> Model:
    """The same base parameters with another adapter."""
    return replace(model, adapter=adapter, decoder=replace(model.decoder, lora=adapter.lora))


def tuned_params(model: Model, params: Any, path: AnyPath) -> Any:
    """The parameters of a run that tuned all of them, in the place of the model's own, and no narrower than the
    arithmetic: what was tuned is less than a bfloat16 can tell apart."""
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, model.params):
        raise InputError(f"{path}: tuned parameters of another model than {model.path}")
    dtype = model.decoder.dtype

    def placed(own: Any, tuned: Any) -> jax.Array:
        return put(tuned.astype(widest({own.dtype, dtype})), own.sharding)

    return jax.tree.map(placed, model.params, params)


def merged(model: Model, param_dtype: str) -> Model:
    """The model as it is evaluated: its adapter merged into the base weights, which int8 or nf4 then quantises.

    So base and tuned model are one structure, and quantisation meets the sum, as in the study. A kernel with an adapter
    becomes no narrower than the arithmetic: bfloat16 would round much of a small update away.
    """
    params = model.params
    if model.adapter is not None:
        params = merge_lora(params, model.adapter.tree, model.adapter.lora, model.decoder.dtype)
    model = replace(model, params=params, adapter=None, decoder=replace(model.decoder, lora=None))
    return with_stored_base(model, param_dtype)


def with_stored_base(model: Model, param_dtype: str) -> Model:
    """The model with its base as int8 or nf4 stores it, if that is its `param_dtype`; what is stored so, stays."""
    if param_dtype not in SCHEMES:
        return model
    return replace(model, params=quantise_params(model.params, model.mesh, param_dtype))


def dtype_named(key: str, name: str, types: Mapping[str, Any]) -> Any:
    """The jax type of a name."""
    if name not in types:
        raise InputError(f"--config.{key}={name}: choose {' or '.join(types)}")
    return types[name]


def split_list(text: str) -> list[str]:
    """The words of a comma-separated setting."""
    return [word.strip() for word in text.split(",")]


def chosen_tasks(config: ConfigDict, besides: Collection[str] = ()) -> list[Task]:
    """The tasks of `config.tasks`; names among `besides` may stand there too and are passed over."""
    names = list(TASKS) if config.tasks == "all" else split_list(config.tasks)
    if len(set(names)) < len(names):
        raise InputError(f"--config.tasks={config.tasks}: a task is named more than once")
    return [task_named(name) for name in names if name not in besides]


def chosen_languages(config: ConfigDict) -> list[str]:
    """The codes of `config.languages`."""
    return parse_languages(config.languages)


@dataclass(frozen=True)
class EvaluationData:
    """What a config names to evaluate on: made once a command and passed on, as each file is read once."""

    config: ConfigDict

    @cached_property
    def tasks(self) -> TaskData:
        """The task files of `config.data`."""
        return TaskData(data_folder(self.config.data))

    @cached_property
    def exemplars(self) -> Exemplars:
        """The few-shot exemplars that go with them."""
        return read_exemplars(exemplars_file(self.tasks.folder, self.config.exemplars))


def out_folder(config: ConfigDict) -> Path:
    """`config.out`, which must be set, as a place for results."""
    return local_path(given_out(config))


def run_folder(config: ConfigDict) -> AnyPath:
    """`config.out`, which must be set, as the place of a training run."""
    run = path_of(given_out(config))
    check_name(run)
    return run


def given_out(config: ConfigDict) -> str:
    """`config.out`, which must be set."""
    if not config.out:
        raise InputError("--config.out= is needed: where the results go")
    return config.out


def rendering(config: ConfigDict) -> Rendering:
    """How `config.build` says that pairs are made of bare texts."""
    keys = config.build
    sources = parse_languages(keys.sources, "build.sources")
    return Rendering(keys.instruction, tuple(sources), language_of(keys.target, "build.target").code)


def refuse_paths(verb: str, paths: Sequence[str]) -> None:
    """For verbs that take settings alone."""
    if paths:
        raise InputError(f"{paths[0]}: {verb} takes no arguments, only --config.key=value")
