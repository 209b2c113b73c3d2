"""What verbs share: the model, its tokenizer and its adapter, as the config names them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxalign import runtime
from jaxalign.cli.packaged_model import packaged_gguf
from jaxalign.data.folders import data_folder, exemplars_file
from jaxalign.data.languages import parse_languages
from jaxalign.data.prompts import Exemplars, read_exemplars
from jaxalign.data.tasks import TASKS, Task, task_named
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.model.config import ModelConfig
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from jaxalign.model.hf_config import read_config
from jaxalign.model.hf_weights import load_params
from jaxalign.model.lora import LoraConfig, check_adapter, init_lora, merge_lora
from jaxalign.model.nf4 import quantise_params
from jaxalign.model.peft_adapters import load_adapter
from jaxalign.model.sharding import leaf_spec
from jaxalign.model.transformer import Decoder
from jaxalign.training.checkpoint import read_adapter

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True)
class Adapter:
    """An adapter and, where its run says so, the languages that it was tuned on."""

    lora: LoraConfig
    tree: Any
    languages: Sequence[str] | None


@dataclass(frozen=True)
class Model:
    """A model ready to apply: `decoder.apply(variables, ...)`, its parameters laid out on the mesh."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    params: Any
    decoder: Decoder
    adapter: Adapter | None

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that the decoder is applied to."""
        return {"params": self.params} | ({"lora": self.adapter.tree} if self.adapter else {})


def load_model(config: ConfigDict) -> Model:
    """The model of `config.model`, with the adapter of `config.adapter` if that is set.

    With `param_dtype=nf4` the weights are in the compute type until `merged` quantises them.
    """
    if not config.model:
        raise InputError("--config.model= is needed: a Hugging Face folder or a GGUF file")
    path = packaged_gguf() if config.model == "packaged" else Path(config.model)
    dtype = dtype_named("dtype", config.dtype, DTYPES)
    param_dtype = dtype_named("param_dtype", config.param_dtype, {**DTYPES, "nf4": dtype})
    mesh = runtime.make_mesh(**config.mesh)

    def place(name: str, leaf: np.ndarray) -> jax.Array:
        try:
            spec = leaf_spec(name, leaf.shape, mesh)
        except ValueError as error:
            raise InputError(f"config.mesh: {error}; choose other sizes") from None
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    if path.is_dir():
        model_config, tokenizer = read_config(path), load_tokenizer(path)
        params = load_params(path, model_config, param_dtype, place)
    elif path.is_file():
        model_config, tokenizer = read_gguf_config(path), Tokenizer(read_gguf_tokenizer(path))
        params = load_gguf_params(path, model_config, param_dtype, place)
    else:
        raise InputError(f"model={config.model}: no such folder or file")
    model = Model(path, model_config, tokenizer, mesh, params, Decoder(model_config, dtype=dtype), adapter=None)
    return with_adapter(model, Path(config.adapter)) if config.adapter else model


def with_adapter(model: Model, path: Path) -> Model:
    """The same base parameters with the adapter of a PEFT folder or a training run."""
    adapter = read_any_adapter(path, model.config)
    return replace(model, adapter=adapter, decoder=replace(model.decoder, lora=adapter.lora))


def read_any_adapter(path: Path, config: ModelConfig) -> Adapter:
    """The adapter of a PEFT folder, or of the newest checkpoint of a training run."""
    if (path / "checkpoints").is_dir():
        lora, tree = read_adapter(path)
        check_adapter(tree, jax.eval_shape(lambda key: init_lora(key, config, lora), jax.random.key(0)), lora, path)
        return Adapter(lora, tree, read_json(path / "run.json")["languages"]["seen"])
    lora, tree = load_adapter(path, config)
    return Adapter(lora, tree, None)


def merged(model: Model, param_dtype: str) -> Model:
    """The model as it is evaluated: its adapter added to the base weights, which `nf4` then quantises.

    So base and tuned model are one structure and share compiled programs, and quantisation meets the sum, as in the
    study.
    """
    params = model.params
    if model.adapter is not None:
        params = merge_lora(params, model.adapter.tree, model.adapter.lora)
    if param_dtype == "nf4":
        params = quantise_params(params, model.mesh)
    return replace(model, params=params, adapter=None, decoder=replace(model.decoder, lora=None))


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


def evaluation_data(config: ConfigDict) -> tuple[Path, Exemplars]:
    """The data folder of `config.data` and the few-shot exemplars that go with it."""
    data = data_folder(config.data)
    return data, read_exemplars(exemplars_file(data, config.exemplars))


def out_folder(config: ConfigDict) -> Path:
    """`config.out`, which must be set."""
    if not config.out:
        raise InputError("--config.out= is needed: where the results go")
    return Path(config.out)


def refuse_paths(verb: str, paths: Sequence[str]) -> None:
    """For verbs that take settings alone."""
    if paths:
        raise InputError(f"{paths[0]}: {verb} takes no arguments, only --config.key=value")
