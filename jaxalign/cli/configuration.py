"""From the command line to a locked config: a config file, then `--config.key=value` over it."""

import difflib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import jaxalign
from jaxalign.errors import InputError
from jaxalign.files import read_text


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
    """`get_config()` of a Python file, or of a shipped config by its name."""
    path = Path(name_or_file)
    if path.suffix != ".py":
        path = shipped_configs() / f"{name_or_file}.py"
    if not path.is_file():
        names = sorted(p.stem for p in shipped_configs().glob("*.py") if p.stem != "__init__")
        raise InputError(f"--config={name_or_file}: no such config; give a .py file or one of {', '.join(names)}")
    spec = importlib.util.spec_from_file_location(f"jaxalign_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets one dotted key to a value of the type it has; an unknown key is refused with the nearest one."""
    keys = dict(leaves(config))
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        hint = f"did you mean --config.{near[0]}?" if near else f"the keys are {', '.join(keys)}"
        raise InputError(f"--config.{key}: no such key; {hint}")
    config.update_from_flattened_dict({key: parse_value(key, text, keys[key])})


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
    return text
