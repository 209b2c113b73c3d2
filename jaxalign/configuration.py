"""Settings: a config file, and other values over it from the command line, from Python, or from a run's record.

`configs/base.py` has every key and its default. What names no key of it, is of another type or out of range raises
InputError.
"""

import difflib
import importlib.util
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import jaxalign
from jaxalign.errors import InputError
from jaxalign.files import read_text, recorded

SAME_IN_ALL_STAGES = ("model", "adapter", "dtype", "param_dtype", "mesh", "tune", "lora", "out", "stages")
"""What is chosen when the model is loaded, and where the stages lie."""
LARGEST, LARGEST_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max)
"""Counts become int32 in arrays, other numbers float32."""
WHOLE_NUMBERS: dict[str, tuple[int, int]] = {
    "seed": (0, 2**63 - 1),
    "batch_tokens": (1, LARGEST),
    "batch_size": (1, LARGEST),
    "attribution_positions": (1, LARGEST),
    "generate.batch_size": (1, LARGEST),
    "generate.max_tokens": (0, LARGEST),
}
"""Lowest and highest value of whole numbers that go to more than one place; others are checked by what takes them."""
VERSIONS = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers")
"""The packages whose versions results record."""


def shipped_configs() -> Path:
    """Inside the installed package, or at the top of a checkout."""
    package = Path(jaxalign.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(name_or_file: str) -> ConfigDict:
    """`get_config()` of a Python file or a shipped config, as changes of the base config."""
    path = Path(name_or_file)
    if path.suffix != ".py":
        path = shipped_configs() / f"{name_or_file}.py"
    if not path.is_file():
        names = sorted(p.stem for p in shipped_configs().glob("*.py"))
        raise InputError(f"--config={name_or_file}: no such config; give a .py file or one of {', '.join(names)}")
    spec = importlib.util.spec_from_file_location(f"jaxalign_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # the file is the user's program: whatever it raises is its author's to mend
        raise InputError(f"{path}: the config does not load: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() must return an ml_collections.ConfigDict")
    if path.resolve() == (shipped_configs() / "base.py").resolve():
        return config
    base = load_config("base")
    change(base, dict(leaves(config)), f"{path}: ")
    for number, stage in enumerate(base.stages, start=1):
        where = f"{path}, stage {number}: "
        if not isinstance(stage, dict):
            raise InputError(f"{where}{stage!r}: a dict of dotted keys and their values is needed")
        change(base.copy_and_resolve_references(), stage, where)
        if shared := [key for key in stage if key.split(".")[0] in SAME_IN_ALL_STAGES]:
            raise InputError(f"{where}{shared[0]} is the same in all stages; set config.{shared[0]}")
    return base


def config_from_flags(flags: Sequence[str], default: str) -> ConfigDict:
    """The config that `--config=NAME_OR_FILE` (or `default`) and the `--config.key=value` flags describe, locked."""
    chosen = default
    texts: dict[str, str] = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if name == "--config" and equals:
            chosen = value
        elif name.startswith("--config.") and equals:
            texts[name.removeprefix("--config.")] = value
        else:
            raise InputError(f"{flag}: not a flag; settings are written --config.key=value")
    config = load_config(chosen)
    keys = dict(leaves(config))
    values = {key: parse_value(key, text, keys[key]) if key in keys else text for key, text in texts.items()}
    return change(config, values, "--config.").lock()


def config_with(settings: Mapping[str, Any], name: str = "base") -> ConfigDict:
    """A shipped config with other values, groups of them as dicts, locked."""
    return change(load_config(name), dict(leaves(settings)), "settings: ").lock()


def recorded_config(settings: Mapping[str, Any], where: str) -> ConfigDict:
    """The base config with what a run recorded of its own: a run of an older version may lack keys, or have others."""
    config, own = load_config("base"), dict(leaves(settings))
    # Stages are recorded as one run each.
    return change(config, {key: own[key] for key, _ in leaves(config) if key in own and key != "stages"}, f"{where}: ")


def change(config: ConfigDict, settings: Mapping[Any, Any], where: str) -> ConfigDict:
    """Sets dotted keys to other values of the types that they have, and returns the config."""
    keys, values = dict(leaves(config)), {}
    for key, value in settings.items():
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
            hint = f"did you mean config.{near[0]}?" if near else "jaxalign VERB --help lists the keys"
            raise InputError(f"{where}{key}: no such key; {hint}")
        if isinstance(keys[key], float) and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else float("inf")
        if type(value) is not type(keys[key]):
            raise InputError(f"{where}{key} = {value!r}: {type(keys[key]).__name__} is needed")
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            raise InputError(f"{where}{key}={value}: a finite number is needed, {LARGEST_FLOAT:.1e} at most")
        lowest, highest = WHOLE_NUMBERS.get(key, (-LARGEST, LARGEST))
        if type(value) is int and not lowest <= value <= highest:
            bound = f"{lowest} or more" if value < lowest else f"{highest} or less"
            raise InputError(f"{where}{key}={value}: set it to {bound}")
        values[key] = value
    config.update_from_flattened_dict(values)
    return config


def parse_value(key: str, text: str, current: Any) -> Any:
    if isinstance(current, tuple):
        raise InputError(f"--config.{key}={text}: set it in a config file; see configs/qalign_llama2_7b.py")
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"--config.{key}={text}: true or false is needed")
        return text.lower() == "true"
    if isinstance(current, int | float):
        try:
            return type(current)(text)
        except ValueError:
            kind = "a whole number" if isinstance(current, int) else "a number"
            raise InputError(f"--config.{key}={text}: {kind} is needed") from None
    return os.path.expanduser(text)  # records write home as ~


def leaves(settings: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting."""
    for key, value in settings.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def key_comments() -> dict[str, str]:
    """Dotted key -> the comment behind it in the base config, in the order of that file."""
    source = read_text(shipped_configs() / "base.py")
    setting = re.compile(r"^    config\.([\w.]+) = (?!ConfigDict)[^#\n]*?(?:  # (.*))?$", re.MULTILINE)
    return {key: comment for key, comment in setting.findall(source)}


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """A copy of a config with other values, locked."""
    copy = config.copy_and_resolve_references()
    copy.update(values)
    return copy.lock()


def command() -> str:
    """The command line as it was given, with `~` for home."""
    program = Path(sys.argv[0])
    name = "jaxalign" if program.stem in ("jaxalign", "__main__") else program.name
    return shlex.join(recorded([name, *sys.argv[1:]]))


def installed_versions() -> dict[str, str]:
    import jax  # what reads config files needs no devices

    packages = {name: metadata.version(name) for name in VERSIONS}
    return {**packages, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What results.json and run.json say of their making: the config, the command and the versions."""
    return {"config": recorded(config.to_dict()), "command": command(), "versions": installed_versions()}
