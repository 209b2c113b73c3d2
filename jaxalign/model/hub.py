"""Models of the Hugging Face hub: an id, `ORG/NAME` or `ORG/NAME@REVISION`, as a folder on this machine; adapters, too,
which may lie in a folder of theirs: `ORG/NAME/checkpoint-300@REVISION`.

Cache (HF_HOME), offline mode (HF_HUB_OFFLINE=1), token (HF_TOKEN, or `hf auth login`) and a hub elsewhere (HF_ENDPOINT)
are those of huggingface_hub, which every other library shares. A connection that breaks off within a file is taken up
where it broke; of a command that ended, the files that were whole are kept.

Of several processes each asks the hub. Those that share a cache wait for one another, file by file, and fetch it once;
hosts with a disk of their own fetch a copy each. A branch may move between their questions: `@COMMIT` pins it.
"""

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from jaxalign.errors import InputError
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

_PART = r"[A-Za-z0-9_][\w.-]*"
# Nothing that git calls a revision has two dots in a row, and in a path they lead elsewhere.
_ID = re.compile(rf"({_PART}/{_PART})((?:/{_PART})*)/?(?:@((?!.*\.\.)[^@\s]+))?", re.ASCII)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The hub's name of a file's content: its sha256 or, where git holds it, git's id of it.
_SHA256, _GIT_ID = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


class HubId(NamedTuple):
    """A model on the hub; no revision: its main branch."""

    repo: str
    revision: str | None
    folder: str = ""
    """of an adapter within its repository"""

    def __str__(self) -> str:
        name = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return name if self.revision is None else f"{name}@{self.revision}"


def hub_id(text: str, *, in_folder: bool = False) -> HubId | None:
    """The hub's model that a text names; None where it can only be a path: it is there, or looks like one.

    `in_folder`: it may lie in a folder of its repository.
    """
    match = _ID.fullmatch(text)
    if match is None or text.lower().endswith(".gguf") or Path(text).exists() or (match[2] and not in_folder):
        return None
    return HubId(match[1], match[3], match[2].strip("/"))


def local_model(text: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """The path that a text names, or the folder that the hub's model of that id lies in once `files` are fetched.

    Only files of the model's top folder are. InputError: no such model or revision, no permission, no connection and no
    copy, a file that is not what the hub says, or weights that are pickled only.
    """
    model = hub_id(text)
    if model is None:
        return Path(text).expanduser()
    folder = _fetched(model, files, "model")
    if WEIGHT_FILES[0] in files and not any(folder.glob("model*.safetensors")):
        raise InputError(f"model={model}: {_why_no_weights(model, folder.name)}")
    return folder


def local_adapter(text: str) -> Path:
    """The path that a text names, or the folder that the hub's adapter of that id lies in once it is fetched.

    InputError as `local_model` has it.
    """
    adapter = hub_id(text, in_folder=True)
    if adapter is None:
        return Path(text).expanduser()
    folder = _fetched(adapter, ADAPTER_FILES, "adapter")
    for name in ADAPTER_FILES[:2]:
        if not (folder / adapter.folder / name).is_file():
            raise InputError(f"adapter={adapter}: {_why_no_adapter(adapter, folder.name, name)}")
    return folder / adapter.folder


def model_name(path: Path) -> str:
    """What to call the model or adapter at a path: ORG/NAME@COMMIT of one in the hub's cache, or else the path,
    as records have it."""
    for snapshot in (path, *path.parents):
        snapshots, repo = snapshot.parent, snapshot.parent.parent.name
        if snapshots.name == "snapshots" and repo.startswith("models--"):
            name = repo.removeprefix("models--").replace("--", "/")
            folder = "" if snapshot == path else path.relative_to(snapshot).as_posix()
            return str(HubId(name, snapshot.name, folder))
    return recorded(str(path))


def _fetched(model: HubId, files: Sequence[str], key: str) -> Path:
    """The snapshot of the repository in the hub's cache, those of the files of the model's folder that match fetched
    and compared with the hub's hashes. `key` is the setting that names it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # what ends a command is said once, in our line
    if not sys.stderr.isatty():
        disable_progress_bars()
    within = f"{model.folder}/" if model.folder else ""
    try:
        snapshot = Path(
            snapshot_download(
                model.repo,
                revision=model.revision,
                allow_patterns=[within + file for file in files],
                ignore_patterns=[f"{within}*/*"],
            )
        )
    except Exception as error:  # whatever a connection makes of the HTTP library and the hub's own
        raise InputError(f"{key}={model}: {_explained(error, model)}") from None
    _check_contents(snapshot, model, key)
    return snapshot


def _explained(error: Exception, model: HubId) -> str:
    """What went wrong with the hub, and what to do."""
    from huggingface_hub import constants, errors

    hub, log_in = constants.ENDPOINT, "log in (`hf auth login`, or HF_TOKEN)"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the hub was reached, and would not
    match error:
        case errors.HFValidationError():
            return f"no such folder here, and no name that a model on the hub can have ({first_line(error)})"
        case errors.GatedRepoError():
            return f"the model is gated; ask for access at {hub}/{model.repo}, then {log_in}"
        case errors.RepositoryNotFoundError():
            return f"no such folder here and no such model on {hub}, or a private one; check the name, or {log_in}"
        case errors.RevisionNotFoundError():
            return f"no revision {model.revision} on {hub}; see {hub}/{model.repo}/tree/main for its branches and tags"
        case errors.RemoteEntryNotFoundError():
            return f"{error.response.url}: the hub lists this file and has it not; try another revision"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{hub} refuses access ({error.response.status_code}); {log_in} with a token that may read it"
        case errors.HfHubHTTPError():
            return f"{error.response.url} answered {error.response.status_code}; {_AGAIN}"
        case errors.IncompleteSnapshotError():
            return f"the copy in {constants.HF_HUB_CACHE} is not whole and {_unreachable(error)}; {_AGAIN}"
        case errors.LocalEntryNotFoundError():
            return (
                f"no such folder here, no copy in {constants.HF_HUB_CACHE}, and {_unreachable(error)}; connect, or "
                "name a folder"
            )
        case _:
            return f"{first_line(error)}; {_AGAIN}"


_AGAIN = "run the command again, files that are whole are kept"


def _unreachable(error: Exception) -> str:
    """Why the hub was not asked."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE keeps from asking the hub"
    return f"{constants.ENDPOINT} cannot be reached ({first_line(error.__cause__ or error)})"


def first_line(error: BaseException) -> str:
    """What an error says, in brief."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _why_no_adapter(adapter: HubId, commit: str, missing: str) -> str:
    """What the hub's repository holds instead of an adapter there."""
    names = _names(adapter, commit)
    within = f"{adapter.folder}/" if adapter.folder else ""
    if f"{within}adapter_model.bin" in names:
        return "it is pickled only, and pickled weights can run code when they are read; choose one in safetensors"
    if folders := sorted(name.rpartition("/")[0] for name in names if name.endswith(f"/{ADAPTER_FILES[0]}")):
        choice = HubId(adapter.repo, adapter.revision, folders[-1])
        return f"no {within}{missing} in it; its adapters lie in {', '.join(folders)}: name {choice}, say"
    return f"no {within}{missing} in it; is it an adapter in the format of peft?"


def _names(model: HubId, commit: str) -> list[str]:
    """The files of the hub's repository, as it was listed."""
    from huggingface_hub import get_cached_repo_tree

    return [file.path for file in get_cached_repo_tree(model.repo, revision=commit)]


def _why_no_weights(model: HubId, commit: str) -> str:
    """What the hub's model holds instead of safetensors."""
    names = _names(model, commit)
    if "adapter_config.json" in names:
        return f"it is an adapter; name its base as the model, and --config.adapter={model}"
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        return (
            f"its weights are pickled only ({pickled[0]}), and pickled weights can run code when they are read, so "
            "they are not; choose a revision with safetensors (many have one at @refs/pr/N), or save it again so"
        )
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return f"it holds GGUF files only; download one of them ({gguf[0]}), and name that file"
    return "it holds no model.safetensors and no model.safetensors.index.json; is it a whole model?"


class _Content(NamedTuple):
    """A file of a snapshot, where its content lies, and the hub's hash of it."""

    snapshot: Path
    file: Path
    stored: Path
    hash: str

    @property
    def mark(self) -> Path:
        """What is younger than the content once that has been read."""
        name = self.file.relative_to(self.snapshot).as_posix().replace("/", "-")
        # Snapshots share blobs, and what is no link is of one snapshot alone.
        name = f"{self.snapshot.name}-{name}" if self.stored == self.file else self.hash
        return self.snapshot.parent.parent / "jaxalign-checked" / name


def _contents(snapshot: Path, model: HubId) -> list[_Content]:
    """The files of a model in a snapshot: links to blobs/HASH or, in a cache without links, themselves what the listing
    names.

    What is no link is left out where no listing was kept: a huggingface_hub before 2.4 has fetched it.
    """
    from huggingface_hub import errors, get_cached_repo_tree

    files = sorted(file for file in (snapshot / model.folder).glob("*") if not file.is_dir())
    blobs = {file: file.parent / os.readlink(file) for file in files if file.is_symlink()}
    contents = [_Content(snapshot, file, blob, blob.name) for file, blob in blobs.items()]
    if len(blobs) < len(files):
        try:
            listing = get_cached_repo_tree(model.repo, revision=snapshot.name)
        except errors.CachedRepoTreeNotFoundError:
            return contents
        hashes = {snapshot / each.path: each.lfs.sha256 if each.lfs else each.blob_id for each in listing}
        contents += [
            _Content(snapshot, file, file, hashes[file]) for file in files if file not in blobs and file in hashes
        ]
    return contents


def _check_contents(snapshot: Path, model: HubId, key: str) -> None:
    """Compares every file of a model in a snapshot with the hash that the hub knows it by: huggingface_hub looks at
    sizes alone.

    A file is read once: a mark that is younger than its content says that it has been. One that differs is removed, so
    that it is fetched again.
    """
    new = [content for content in _contents(snapshot, model) if not _is_younger(content.mark, content.stored)]
    size = sum(content.stored.stat().st_size for content in new)
    with tqdm(total=size, unit="B", unit_scale=True, desc="checking", leave=False, disable=None) as progress:
        for content in new:
            if _hash_like(content.hash, content.stored, progress) != content.hash:
                content.stored.unlink()
                content.file.unlink(missing_ok=True)
                raise InputError(
                    f"{key}={model}: {content.file.name} is not what the hub says it is (hash {content.hash}), and was "
                    f"removed; {_AGAIN}"
                )
            try:
                content.mark.parent.mkdir(exist_ok=True)
                content.mark.touch()
            except OSError:
                pass  # a cache that others keep and we may only read: its files are read every time


def _is_younger(mark: Path, blob: Path) -> bool:
    return mark.is_file() and mark.stat().st_mtime_ns >= blob.stat().st_mtime_ns


def _hash_like(name: str, blob: Path, progress: tqdm) -> str:
    """The hash of a file's content, of the kind that `name` is; `name` itself where that is none."""
    if _SHA256.fullmatch(name):
        digest = hashlib.sha256()
    elif _GIT_ID.fullmatch(name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return name  # a mirror with names of its own
    with blob.open("rb") as content:
        while piece := content.read(1 << 22):
            digest.update(piece)
            progress.update(len(piece))
    return digest.hexdigest()
