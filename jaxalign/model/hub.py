"""Models of the Hugging Face hub: an id, `ORG/NAME` or `ORG/NAME@REVISION`, as a folder on this machine; adapters, too,
which may lie in a folder of theirs: `ORG/NAME/checkpoint-300@REVISION`.

Cache (HF_HOME), offline mode (HF_HUB_OFFLINE=1), token (HF_TOKEN, or `hf auth login`) and a hub elsewhere (HF_ENDPOINT)
are those of huggingface_hub, which every other library shares; it compares sizes, and hashes of what comes by Xet. A
connection that breaks off within a file is taken up where it broke; of a command that ended, whole files are kept.

Of several processes each asks the hub. Those that share a cache wait for one another, file by file, and fetch it once;
hosts with a disk of their own fetch a copy each. A branch may move between their questions: `@COMMIT` pins it.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.errors import InputError, listed
from jaxalign.files import recorded

CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)
"""What a model folder holds beside its architecture and its weights."""
# Released Mistrals hold all weights a second time, as consolidated.safetensors.
WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
MODEL_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "certificate.json")

_NAME = r"[A-Za-z0-9_][\w.-]*"
# Nothing that git calls a revision has two dots in a row, and in a path they lead elsewhere.
_ID = re.compile(rf"({_NAME}/{_NAME})((?:/{_NAME})*)/?(?:@((?!.*\.\.)[^@\s]+))?", re.ASCII)


class HubId(NamedTuple):
    """A model on the hub; no revision: its main branch."""

    repo: str
    revision: str | None
    folder: str = ""  # of an adapter within its repository

    def __str__(self) -> str:
        name = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return name if self.revision is None else f"{name}@{self.revision}"


def hub_id(text: str, *, in_folder: bool = False) -> HubId | None:
    """The hub's model that a text names, `in_folder`: also in a folder of its repository; None where it can only be a
    path: it is there, or looks like one."""
    match = _ID.fullmatch(text)
    if match is None or text.lower().endswith(".gguf") or Path(text).exists() or (match[2] and not in_folder):
        return None
    return HubId(match[1], match[3], match[2].strip("/"))


def local_model(text: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """The path that a text names, or the folder of the hub's model of that id once `files` of its top folder are
    fetched. InputError: what huggingface_hub says of a model that it cannot fetch, or no weights in safetensors."""
    model = hub_id(text)
    return Path(text).expanduser() if model is None else _fetched(model, files, "model")


def local_adapter(text: str) -> Path:
    """`local_model` for an adapter."""
    adapter = hub_id(text, in_folder=True)
    return Path(text).expanduser() if adapter is None else _fetched(adapter, ADAPTER_FILES, "adapter")


def model_name(path: Path) -> str:
    """What records call the model or adapter at a path: ORG/NAME@COMMIT in the hub's cache, or else the path."""
    for snapshot in (path, *path.parents):
        snapshots, repo = snapshot.parent, snapshot.parent.parent.name
        if snapshots.name == "snapshots" and repo.startswith("models--"):
            name = repo.removeprefix("models--").replace("--", "/")
            folder = "" if snapshot == path else path.relative_to(snapshot).as_posix()
            return str(HubId(name, snapshot.name, folder))
    return recorded(str(path))


def _fetched(model: HubId, files: Sequence[str], key: str) -> Path:
    """The model's folder in the hub's cache, once its `files` are there. `key` is the setting that names it."""
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # what ends a command is said once, in our line
    if not sys.stderr.isatty():
        disable_progress_bars()
    within = f"{model.folder}/" if model.folder else ""
    patterns: dict[str, Any] = {
        "allow_patterns": [within + file for file in files],
        "ignore_patterns": [f"{within}*/*"],
    }
    try:
        snapshot = Path(snapshot_download(model.repo, revision=model.revision, **patterns))
    except Exception as error:  # whatever a connection makes of the HTTP library and the hub's own
        # Where there is no copy, the library tells of that, and what came between is its cause.
        causes = [error, error.__cause__] if isinstance(error, errors.LocalEntryNotFoundError) else [error]
        said = "; ".join(" ".join(str(each).split()) for each in causes if each is not None)
        raise InputError(
            f"{key}={model}: no such folder here, and {constants.ENDPOINT} did not give it: {said[:600]}; check name "
            "and revision, log in (`hf auth login`, or HF_TOKEN) where it is private or gated, or run the command "
            f"again: what is whole in {constants.HF_HUB_CACHE} is kept"
        ) from None
    needed = ADAPTER_FILES[:2] if key == "adapter" else ("model*.safetensors",) if WEIGHT_FILES[0] in files else ()
    for pattern in needed:
        if not any((snapshot / model.folder).glob(pattern)):
            raise InputError(f"{key}={model}: no {within}{pattern} in it; {_what_it_holds(model, snapshot.name, key)}")
    return snapshot / model.folder


def _what_it_holds(model: HubId, commit: str, key: str) -> str:
    """What the hub's repository holds instead of weights that are read, and what to do."""
    from huggingface_hub import get_cached_repo_tree

    names = sorted(file.path for file in get_cached_repo_tree(model.repo, revision=commit))
    if key == "model" and "adapter_config.json" in names:
        return f"it is an adapter; name its base as the model, and --config.adapter={model}"
    folders = [name.rpartition("/")[0] for name in names if name.endswith(f"/{ADAPTER_FILES[0]}")]
    if key == "adapter" and folders and model.folder not in folders:
        choice = HubId(model.repo, model.revision, folders[-1])
        return f"its adapters lie in {', '.join(folders)}: name {choice}, say"
    weights = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf"))]
    return (
        f"it holds {listed(weights or names)}. Pickled weights can run code when they are read, so they are not: "
        "choose a revision with safetensors (many have one at @refs/pr/N). Download a GGUF file and name that"
    )
