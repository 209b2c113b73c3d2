"""What of a command's outputs must not change: digests of arrays, fields and tables, and how far two outputs differ."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

PASSED_OVER = {"checkpoints", "cells", "timing.json", "tokenizer.json", "tokenizer_config.json"}
"""Names of files and folders whose content is another library's, only read back by a resumed run, or varies."""
DRAWN = (".svg", ".pdf")
"""Figures: that they are there, not how they look."""
VARYING = {"command", "versions", "seconds", "watch_seconds", "compile_seconds"}
PROSE = {"note", "notes", "units", "constants", "combined", "reason", "bound"}
OF_ANOTHER_PATH = {"independent", "largest_difference", "mean_difference", "largest_logit"}
LEFT_OUT = VARYING | PROSE | OF_ANOTHER_PATH
"""Fields of JSON, at whatever depth: times and versions, sentences for readers, and how far torch was from us."""

Parts = dict[str, Any]
"""Of one file: an array, or what JSON holds, by name."""


def parts_of_folder(folder: Path) -> dict[str, Parts]:
    """Every file of a folder, by its path in it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    chosen = [file for file in files if not PASSED_OVER.intersection(file.relative_to(folder).parts)]
    return {str(file.relative_to(folder)): parts_of_file(file, folder) for file in chosen}


def parts_of_file(file: Path, folder: Path) -> Parts:
    """The parts of one file: arrays, tables, or the fields of the JSON objects in it."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return dict(arrays)
    if file.suffix == ".safetensors":
        with safe_open(file, "torch") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    if file.suffix in DRAWN:
        return {"": "a figure"}
    text = file.read_text(encoding="utf-8").replace(str(folder.resolve().parent), "ROOT")
    if file.suffix == ".json":
        document = settled(json.loads(text))
        if file.name == "certificate.json":
            document["files"] = sorted(document["files"])  # their hashes hold other libraries' versions
        return document if isinstance(document, dict) else {"rows": document}
    if file.suffix == ".jsonl":
        rows = [settled(json.loads(line)) for line in text.splitlines()]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}
    if file.suffix == ".html":
        tables = [cells for cells in Tables.of(text) if cells[0] != "package"]  # that of the versions
        return {f"table {number}": cells for number, cells in enumerate(tables)}
    if file.suffix == ".md":
        lines = re.sub(r"```.*?```|## (?:Check|Versions).*?(?=\n## |\Z)", "", text, flags=re.DOTALL).splitlines()
        return {
            "tables": [line for line in lines if line.startswith("|")],
            "text": [line for line in lines if line and not line.startswith("|")],
        }
    return {"text": text.splitlines()}


def settled(value: Any) -> Any:
    """JSON without the fields that vary."""
    if isinstance(value, dict):
        return {name: settled(item) for name, item in value.items() if name not in LEFT_OUT}
    return [settled(item) for item in value] if isinstance(value, list) else value


class Tables(HTMLParser):
    """The text of every cell of every table of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[str]] = []
        self.in_cell = False

    @classmethod
    def of(cls, page: str) -> list[list[str]]:
        parser = cls()
        parser.feed(page)
        return [[" ".join(cell.split()) for cell in table] for table in parser.tables]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self.tables.append([])
        if tag in ("td", "th"):
            self.tables[-1].append("")
        self.in_cell = tag in ("td", "th") or (self.in_cell and tag not in ("tr", "table"))

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[-1][-1] += data


def digest(part: Any) -> str:
    """Of an array its type, shape and a hash of its bytes; of anything else a hash of its JSON."""
    kind = ""
    if hasattr(part, "dtype"):
        kind = f"{part.dtype} {list(part.shape)} ".removeprefix("torch.")
        content = as_array(part).tobytes()
    else:
        content = json.dumps(part, ensure_ascii=False, sort_keys=True).encode()
    return kind + hashlib.sha256(content).hexdigest()[:16]


def as_array(part: Any) -> np.ndarray:
    """An array; a torch tensor of whatever float as float32, which holds all of its values."""
    return np.asarray(part) if isinstance(part, np.ndarray) else part.float().numpy()


def digests(parts: Mapping[str, Parts]) -> dict[str, dict[str, str]]:
    """The digest of every part of every file."""
    return {file: {name: digest(part) for name, part in own.items()} for file, own in parts.items()}


def changes(kept: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """(file, part, what became of it) of all that differs between two sets of digests."""
    found = []
    for file in sorted(kept.keys() | new.keys()):
        if file not in new or file not in kept:
            found.append((file, "", "is missing" if file not in new else "is new"))
            continue
        for name in sorted(kept[file].keys() | new[file].keys()):
            before, after = kept[file].get(name), new[file].get(name)
            if before != after:
                found.append((file, name, f"{before or 'absent'} -> {after or 'absent'}"))
    return found


def difference(before: Any, after: Any) -> str:
    """How far two values of one part are apart: the largest difference of numbers, and the first other thing."""
    if hasattr(before, "dtype") and hasattr(after, "dtype"):
        one, two = as_array(before), as_array(after)
        if one.shape != two.shape or one.dtype.kind not in "fiub" or two.dtype.kind not in "fiub":
            return f"{before.dtype} {one.shape} -> {after.dtype} {two.shape}"
        one, two = one.astype(np.float64), two.astype(np.float64)
        if not np.array_equal(np.isnan(one), np.isnan(two)):
            return "not-a-number elsewhere"
        return f"largest difference {np.nanmax(np.abs(one - two), initial=0.0):.3g}"
    largest: dict[str, float] = {}
    for path, one, two in apart(before, after, ""):
        if not all(isinstance(value, int | float) for value in (one, two)):
            return f"{path or 'text'}: {str(one)[:100]!r} -> {str(two)[:100]!r}"
        place = re.sub(r"\[\d+\]", "[]", path)
        largest[place] = max(largest.get(place, 0.0), abs(one - two))
    return "; ".join(f"{place or 'values'} by up to {most:.3g}" for place, most in largest.items())


def apart(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, before, after) of every leaf of JSON that differs; numbers last."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(f"{path}.{name}", before.get(name), after.get(name)) for name in {**before, **after}]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f"{path}[{i}]", one, two) for i, (one, two) in enumerate(zip(before, after, strict=True))]
    else:
        if before != after:
            yield path, before, after
        return
    found = [leaf for place, one, two in pairs for leaf in apart(one, two, place)]
    yield from sorted(found, key=lambda leaf: all(isinstance(value, int | float) for value in leaf[1:]))
