"""From the command line to a locked config: a config file, then `--config.key=value` over it."""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import jaxalign
from jaxalign.errors import InputError
from jaxalign.files import read_text

SAME_IN_ALL_STAGES = ("model", "adapter", "dtype", "param_dtype", "mesh", "tune", "lora", "out", "stages")
"""What is chosen when the model is loaded, and where the stages lie."""


LARGEST = 2**31 - 1
"""Counts become int32 in arrays, other numbers float32."""
LARGEST_FLOAT = float(np.finfo(np.float32).max)
WHOLE_NUMBERS: dict[str, tuple[int, int]] = {
    "seed": (0, 2**63 - 1),
    "batch_tokens": (1, LARGEST),
    "batch_size": (1, LARGEST),
    "attribution_positions": (1, LARGEST),
    "generate.batch_size": (1, LARGEST),
    "generate.max_tokens": (0, LARGEST),
}
"""Lowest and highest value of whole numbers that go to more than one place; others are checked by what takes them."""


def shipped_configs() -> Path:
    """The folder of shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(jaxalign.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_from_flags(flags: Sequence[str], default: str) -> ConfigDict:
    """The config that `--config=NAME_OR_FILE` (or `default`) and the `--config.key=value` flags describe, locked."""
    chosen = default
    overrides: list[tuple[str, str]] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if name == "--config" and equals:
            chosen = value
        elif name.startswith("--config.") and equals:
            overrides.append((name.removeprefix("--config."), value))
        else:
            raise InputError(f"{flag}: not a flag; settings are written --config.key=value")
    config = load_config(chosen)
    for key, value in overrides:
        override(config, key, value)
    return config.lock()


def load_config(name_or_file: str) -> ConfigDict:
    """`get_config()` of a Python file, or of a shipped config by its name; its keys are the base config's."""
    path = Path(name_or_file)
    if path.suffix != ".py":
        path = shipped_configs() / f"{name_or_file}.py"
    if not path.is_file():
        names = sorted(p.stem for p in shipped_configs().glob("*.py"))
        raise InputError(f"--config={name_or_file}: no such config; give a .py file or one of {', '.join(names)}")
    config = run_config_file(path)
    if path.resolve() != (shipped_configs() / "base.py").resolve():
        check_keys(config, path)
    return config


def run_config_file(path: Path) -> ConfigDict:
    """What `get_config()` of the file returns."""
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
    return config


def check_keys(config: ConfigDict, path: Path) -> None:
    """Refuses a config whose keys or types are not those of the base config."""
    base, own = dict(leaves(load_config("base"))), dict(leaves(config))
    for key in own.keys() - base.keys():
        raise InputError(f"{path}: {key}: no such key; {nearest_key(key, base)}")
    for key in base.keys() - own.keys():
        raise InputError(f"{path}: {key} is missing; begin with load_config('base')")
    for key, value in base.items():
        check_type(key, own[key], value, str(path))
    for number, stage in enumerate(own["stages"], start=1):
        check_stage(stage, base, f"{path}, stage {number}")


def check_type(key: str, value: Any, current: Any, where: str) -> None:
    """Refuses a value of another type than the key has, or out of its range."""
    if type(value) is not type(current):
        raise InputError(f"{where}: {key} = {value!r}: {type(current).__name__} is needed")
    check_number(key, value, f"{where}: ")


def check_number(key: str, value: Any, where: str) -> None:
    """Refuses a number that is not finite, or out of its range."""
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        raise InputError(f"{where}{key}={value}: a finite number is needed, {LARGEST_FLOAT:.1e} at most")
    if type(value) is int:
        lowest, highest = WHOLE_NUMBERS.get(key, (-LARGEST, LARGEST))
        if value < lowest:
            raise InputError(f"{where}{key}={value}: set it to {lowest} or more")
        if value > highest:
            raise InputError(f"{where}{key}={value}: set it to {highest} or less")


def check_stage(stage: Any, base: Mapping[str, Any], where: str) -> None:
    """Refuses what is no set of changes to the base config's keys, or changes what all stages share."""
    if not isinstance(stage, dict):
        raise InputError(f"{where}: {stage!r}: a dict of dotted keys and their values is needed")
    for key, value in stage.items():
        if key not in base:
            raise InputError(f"{where}: {key}: no such key; {nearest_key(key, base)}")
        if key.split(".")[0] in SAME_IN_ALL_STAGES:
            raise InputError(f"{where}: {key} is the same in all stages; set config.{key}")
        check_type(key, value, base[key], where)


def nearest_key(key: str, keys: Iterable[str]) -> str:
    """What to say of a key that there is not."""
    near = difflib.get_close_matches(key, list(keys), n=1, cutoff=0.5)
    return f"did you mean config.{near[0]}?" if near else "jaxalign VERB --help lists the keys"


def config_with(settings: Mapping[str, Any], name: str = "base") -> ConfigDict:
    """A shipped config with other values, given as {key: value} with groups as dicts, locked."""
    config = load_config(name)
    try:
        base, given = dict(leaves(config)), dict(leaves(ConfigDict(settings)))
    except (TypeError, ValueError) as error:
        raise InputError(f"settings: {error}; give keys as words, and groups of them as dicts") from None
    for key, value in given.items():
        if key not in base:
            raise InputError(f"{key}: no such setting; {nearest_key(key, base)}")
        if isinstance(base[key], float) and type(value) is int:
            value = given[key] = float(value) if abs(value) < 2**1023 else math.inf
        check_type(key, value, base[key], "settings")
    config.update_from_flattened_dict(given)
    return config.lock()


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets one dotted key to a value of the type it has; an unknown key is refused with the nearest one."""
    keys = dict(leaves(config))
    if key not in keys:
        raise InputError(f"--config.{key}: no such key; {nearest_key(key, keys)}")
    value = parse_value(key, text, keys[key])
    check_number(key, value, "--config.")
    config.update_from_flattened_dict({key: value})


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def key_comments() -> dict[str, str]:
    """Dotted key -> the comment behind it in the base config, in the order of that file."""
    source = read_text(shipped_configs() / "base.py")
    setting = re.compile(r"^    config\.([\w.]+) = (?!ConfigDict)[^#\n]*?(?:  # (.*))?$", re.MULTILINE)
    return {key: comment for key, comment in setting.findall(source)}


def parse_value(key: str, text: str, current: Any) -> Any:
    """The text as the type of the current value."""
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
