"""Which part of the package may import which, read from the source; and what none of them may import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib.util import resolve_name
from pathlib import Path

import pytest

import jaxalign
from jaxalign.configuration import leaves, load_config
from jaxalign.data.batches import BatchLayout
from jaxalign.training.checkpoint import Retention
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.step import StepConfig
from tests.reporting.folders import write_evaluation

PACKAGE = Path(jaxalign.__file__).parent
CONFIGS = PACKAGE.parent / "configs"

# Imports point only to an earlier row; parts of one row do not know of each other.
ROWS = (
    ("errors",),
    ("chat_templates", "files", "runtime", "sentence_piece", "statistics"),
    ("configuration",),
    ("log", "probe_files"),
    ("holding",),
    ("data", "model"),
    ("training", "evaluation", "probing"),
    ("reporting", "planning"),
    ("loading",),
    ("verbs",),
    ("api", "cli"),
    ("lm_eval", "__main__"),
)
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
NEVER = {"torch", "tensorflow", "peft", "accelerate"}
INDEPENDENT = "jaxalign.verbs.export"
"""The path of other libraries, that `verify` compares with."""


def module_name(file: Path) -> str:
    """`jaxalign.data.pairs`; of an `__init__.py` the package's own name."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, package: str) -> Iterator[str]:
    """The full name of everything that a source file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """The part of the package that a full name lies in; None for other packages and for the bare `jaxalign`."""
    top, _, rest = name.partition(".")
    return (rest.partition(".")[0] or None) if top == "jaxalign" else None


def wrong_imports(source: str, part: str, package: str, never: set[str] = NEVER) -> list[str]:
    """What a file of `part` imports and must not."""
    wrong = []
    for name in imports(source, package):
        imported = part_of(name)
        to_the_right = imported is not None and imported != part and ROW_OF[imported] >= ROW_OF[part]
        if to_the_right or name.partition(".")[0] in never:
            wrong.append(name)
    return wrong


CORE = ("data", "model", "training", "evaluation", "probing")
SATELLITES = (
    *("data.study", "data.math_problems", "data.check", "model.gguf", "evaluation.generate", "evaluation.open_cells"),
    *("probing.neurons", "probing.masking", "probing.attribution"),
)
"""Modules of the core's folders that the core itself can do without; they may import each other, and the core."""

SOURCES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", SOURCES, ids=module_name)
def test_imports_point_to_the_left(file):
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    part = part_of(name)
    assert part is not None
    never = {"tensorflow"} if name == INDEPENDENT else NEVER
    assert wrong_imports(file.read_text(encoding="utf-8"), part, package, never) == []


def test_the_core_imports_no_satellite():
    satellites = {f"jaxalign.{name}" for name in SATELLITES}
    assert satellites <= set(map(module_name, SOURCES))
    for file in SOURCES:
        name = module_name(file)
        if part_of(name) in CORE and name not in satellites:
            found = imports(file.read_text(encoding="utf-8"), name.rpartition(".")[0])
            assert not [each for each in found if each.rpartition(".")[0] in satellites or each in satellites], name


def test_a_default_stands_in_one_place():
    """In configs/base.py: what settings become has none, and the other configs set only what differs."""
    for kind in (BatchLayout, OptimizerConfig, StepConfig, LoopConfig, Retention):
        given = {field.name for field in fields(kind) if field.default is not MISSING}
        assert given <= {"row_multiple"}, kind  # the mesh's, not a setting
    base = dict(leaves(load_config("base")))
    for file in CONFIGS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if file.stem != "base" and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                _, _, key = ast.unparse(node.targets[0]).partition(".")
                assert ast.unparse(node.value) != repr(base[key]), f"{file.stem}: {key}"


def test_the_independent_path_is_imported_when_asked():
    """Not when the file is: commands that compare nothing need none of it."""
    source = (PACKAGE / "verbs" / "export.py").read_text(encoding="utf-8")
    at_the_top = [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {name.partition(".")[0] for name in imports("\n".join(at_the_top), "jaxalign.verbs")} & NEVER


@pytest.mark.parametrize(
    ("source", "part", "wrong"),
    [
        ("from jaxalign.model.lora import LoraConfig", "data", "jaxalign.model.lora.LoraConfig"),
        ("from jaxalign import data", "model", "jaxalign.data"),
        ("from ..model import lora", "data", "jaxalign.model.lora"),
        ("import jaxalign.evaluation.grid as grid", "probing", "jaxalign.evaluation.grid"),
        ("def late():\n    from jaxalign.cli import main", "reporting", "jaxalign.cli.main"),
        ("from jaxalign.files import read_json", "errors", "jaxalign.files.read_json"),
        ("def late():\n    import torch.nn", "model", "torch.nn"),
        ("from tensorflow.io import gfile", "data", "tensorflow.io.gfile"),
    ],
)
def test_a_wrong_import_is_seen(source, part, wrong):
    assert wrong_imports(source, part, f"jaxalign.{part}") == [wrong]


def test_right_imports_pass():
    source = (
        "import jax\nimport tensorflow_datasets as tfds\nimport jaxalign\nfrom jaxalign.data import pairs\n"
        "from jaxalign.model import lora\nfrom jaxalign.training.step import StepConfig\nfrom . import checkpoint"
    )
    assert wrong_imports(source, "training", "jaxalign.training") == []


def test_every_part_has_its_row():
    assert {part_of(module_name(file)) for file in SOURCES} == set(ROW_OF)
    ours = [part_of(name) for name in imports((PACKAGE / "__init__.py").read_text(encoding="utf-8"), "jaxalign")]
    assert set(ours) == {None, "api"}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_configs_import_the_config_loader_alone(file):
    ours = [name for name in imports(file.read_text(encoding="utf-8"), "") if part_of(name)]
    assert ours in ([], ["jaxalign.configuration.load_config"])


FROM_FILES = """
import sys
from jaxalign.cli import attempt
code = attempt(sys.argv[1:])
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax", "transformers", "torch"})
sys.exit(code or " ".join(heavy) or 0)
"""


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_what_is_made_from_files_imports_no_jax(tmp_path, verb):
    before, after = (str(write_evaluation(tmp_path / name, {("emotion", "en"): 0.6}, rows=range(9))) for name in "ab")
    done = subprocess.run([sys.executable, "-c", FROM_FILES, verb, before, after], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
