"""The documents: links lead somewhere, commands parse, those of the tiny model run, snippets of Python run too."""

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxalign as ja
from jaxalign import cli
from jaxalign.configuration import config_from_flags, leaves, load_config, shipped_configs
from tests.cli.conftest import save_model

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "tpu_scripts/README.md")),
        ROOT / "jaxalign" / "data" / "mini" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
README_BYTES = 9216
every_document = pytest.mark.parametrize("name", DOCUMENTS)

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = "tests|jaxalign|configs|benchmarks|examples|tpu_scripts|notebooks|docs|findings"
FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\.(?:py|sh|md|ipynb|svg|png)\b")
PLACEHOLDER = re.compile(r"\b(?!MODEL\b)[A-Z]{2,}|packaged")
"""What stands for something that the tests do not have."""


def fences(text: str, *languages: str) -> list[str]:
    """The blocks of code in one of these languages."""
    return [block for language, block in FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return FENCE.sub("", text)


def test_the_readme_is_short() -> None:
    assert len(DOCUMENTS["README.md"].encode()) <= README_BYTES


# Links.


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings: lower case, no punctuation, hyphens for spaces, doubles numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        plain = slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while slug in found:
            slug = f"{plain}-{(number := number + 1)}"
        found.add(slug)
    return found


def broken(text: str, folder: Path) -> Iterator[str]:
    """The relative links of a page in `folder` that lead nowhere."""
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = folder / name
        page = text if not name else target.read_text(encoding="utf-8") if target.is_file() and anchor else ""
        if not target.exists() or (anchor and anchor not in anchors(page)):
            yield link


@every_document
def test_links_lead_somewhere(name: str) -> None:
    text = DOCUMENTS[name]
    assert list(broken(text, (ROOT / name).parent)) == []
    assert [path for path in FILE.findall(text) if not (ROOT / path).exists()] == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One, `two`\n\n```sh\n# no heading\n```\n\n# One two\n")
    right = "# Top\n[a](#top) [b](other.md) [c](other.md#one-two-1) [d](https://example.org/x)"
    assert list(broken(right, tmp_path)) == []
    wrong = "# Top\n[a](#tip) [b](other.md#no-heading) [c](other.md#one-two-2)"
    assert list(broken(wrong, tmp_path)) == ["#tip", "other.md#no-heading", "other.md#one-two-2"]


@every_document
def test_a_page_of_many_parts_begins_with_links_to_all(name: str) -> None:
    parts = re.findall(r"^## (.*)$", prose(DOCUMENTS[name]), flags=re.MULTILINE)
    listed = re.findall(r"^- \[(.*)\]\(#", DOCUMENTS[name], flags=re.MULTILINE)
    assert listed in ([], parts) and (listed or not name.startswith("docs/") or len(parts) < 4)


# Commands.


def commands(block: str) -> Iterator[list[str]]:
    """The words of every command in a block of shell, variables filled in."""
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        for variable, value in variables.items():
            line = line.replace(f"${variable}", value)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assigned[1]] = assigned[2]
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        yield words


def jaxalign_commands(text: str) -> Iterator[list[str]]:
    """The words after `jaxalign` of every command in blocks, and of those in the text that name a verb."""
    for block in fences(text, "sh", "bash"):
        for words in commands(block):
            starts = [place for place, word in enumerate(words) if word == "jaxalign"]
            yield from (words[place + 1 :] for place in starts if place == 0 or words[place - 1] in ("--", "-v"))
    for code in CODE.findall(prose(text)):
        if code.startswith("jaxalign ") and not code.startswith(("jaxalign VERB", "jaxalign --")):
            yield shlex.split(code.replace("[RESULTS...]", "RESULTS"))[1:]


def parse(words: list[str]) -> tuple[str, list[str]]:
    """The verb and the files of a command, whose settings are read as the command line reads them."""
    flags = [word for word in words if word.startswith("-") and word not in ("--help", "--config=CONFIG")]
    verb, paths = cli.split_verb([word for word in words if not word.startswith("-")])
    config_from_flags(flags, "demo" if verb == "demo" else "base")
    return verb, paths


@every_document
def test_commands_are_understood(name: str) -> None:
    for words in jaxalign_commands(DOCUMENTS[name]):
        parse(words)


@every_document
def test_settings_exist(name: str) -> None:
    """Those that stand alone in the text."""
    keys = dict(leaves(load_config("base")))
    for code in CODE.findall(prose(DOCUMENTS[name]).replace("--config.key=value", "")):
        for key, value in re.findall(r"--config\.([\w.]+?)(?:=([^\s,]*))?(?=\s|$)", code):
            assert key in keys, code
            if value and not isinstance(keys[key], str):
                config_from_flags([f"--config.{key}={value}"], "base")
        for config in re.findall(r"--config=([a-z]\w*)", code):
            load_config(config)


def test_every_verb_and_every_recipe_is_told_of() -> None:
    verbs = DOCUMENTS["README.md"].partition("## Verbs")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `([a-z ]+)[^`]*` \|", verbs, flags=re.MULTILINE)
    assert {verb.strip() for verb in table} == set(cli.VERBS)
    recipes = {file.stem for file in shipped_configs().glob("*.py")} - {"base"}
    assert {name for name in recipes if f"`{name}`" not in DOCUMENTS["docs/tuning.md"]} == set()


@every_document
def test_arguments_of_scripts_exist(name: str) -> None:
    for words in (words for block in fences(DOCUMENTS[name], "sh") for words in commands(block)):
        script = next((word for word in words if re.fullmatch(r"(benchmarks|tests)/\S+\.py", word)), None)
        if script:
            source = (ROOT / script).read_text(encoding="utf-8")
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


# Messages.


def texts_of(file: Path) -> Iterator[str]:
    """The texts of a source file, a space for what is filled in; ends of lines do not count."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_are_the_program_s() -> None:
    """Every piece of one, as the page on trouble has it, stands in a text of the program."""
    said = "\n".join(text for file in (ROOT / "jaxalign").rglob("*.py") for text in texts_of(file))
    page = DOCUMENTS["docs/troubleshooting.md"].partition("## What other libraries say")[0]
    messages = re.findall(r"^\| `(.+?)` \|", page, flags=re.MULTILINE)
    assert len(messages) > 50
    missing = [message for message in messages if not all(part.strip() in said for part in message.split("…"))]
    assert missing == []


# What runs on the tiny model.

SMALL = {
    "evaluate": ["--config.rows=0:4"],
    "probe": ["--config.rows=0:4"],
    "train": ["--config.steps=2", "--config.batch.length=256"],
    "neurons": ["--config.neurons.top_rate=0.2"],
}
"""Fewer rows and steps than the documents say, and a share of few neurons."""
RUN_BEFORE = {"docs/exporting.md": ("run", "before", "after"), "docs/evaluating.md": ("run",)}
"""What a page takes from the README's commands."""


def tiny_commands(name: str) -> list[list[str]]:
    """The commands of a page's blocks whose files and models are the tiny ones, made small."""
    found = []
    for words in (words for block in fences(DOCUMENTS[name], "sh") for words in commands(block)):
        if words[:1] == ["jaxalign"] and not PLACEHOLDER.search(" ".join(words)):
            verb, _ = parse(words[1:])
            if verb not in ("demo", "plan"):
                found.append([*words[1:], *SMALL.get(verb, [])])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), width=64, mlp=128)


@pytest.fixture
def work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which one works: MODEL is there, and my_pairs.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    Path("MODEL").symlink_to(model)
    rows = [f"Frage {number}?,Question {number}?,de,en" for number in range(20)]
    Path("my_pairs.csv").write_text(
        "\n".join(["source,target,source_language,target_language", *rows]), encoding="utf-8"
    )
    return tmp_path


def run_commands(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> int:
    """Runs a page's commands in this folder; how many there were."""
    found = tiny_commands(name)
    for words in found:
        monkeypatch.setattr("sys.argv", ["jaxalign", *words])
        code = cli.main()
        assert code == 0, (words, capsys.readouterr().err)
    return len(found)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("README.md", 6),
        ("docs/data.md", 5),
        pytest.param("docs/tuning.md", 3, marks=pytest.mark.slow),
        pytest.param("docs/evaluating.md", 5, marks=pytest.mark.slow),
        pytest.param("docs/probing.md", 4, marks=pytest.mark.slow),
        pytest.param("docs/exporting.md", 3, marks=pytest.mark.slow),
    ],
)
def test_commands_run_on_the_tiny_model(name, count, work, monkeypatch, capsys) -> None:
    if needed := RUN_BEFORE.get(name):
        run_commands("README.md", monkeypatch, capsys)
        for path in work.iterdir():
            if path.name not in (*needed, "MODEL", "my_pairs.csv"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_commands(name, monkeypatch, capsys) == count


def snippets(name: str) -> list[ast.Module]:
    return [ast.parse(block, name) for block in fences(DOCUMENTS[name], "python")]


@every_document
def test_names_of_the_library_exist(name: str) -> None:
    """And settings that are given by name are keys of the config."""
    keys = load_config("base").keys()
    for tree in snippets(name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ja":
                assert hasattr(ja, node.attr), node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ja."):
                own = inspect.signature(getattr(ja, ast.unparse(node.func).removeprefix("ja."))).parameters
                assert {word.arg for word in node.keywords} <= {*own, *keys}
    for attribute in re.findall(r"`ja\.(\w+)", prose(DOCUMENTS[name])):
        assert hasattr(ja, attribute), attribute


def test_the_readme_s_snippet_runs_as_it_stands(work) -> None:
    (snippet,) = fences(DOCUMENTS["README.md"], "python")
    exec(compile(snippet, "README.md", "exec"), {})
    made = {path.name for path in work.iterdir()} - {"MODEL", "my_pairs.csv"}
    assert made == {"before", "run", "after", "report.html", "adapter"}


@pytest.mark.slow
def test_snippets_run_as_they_stand(work, capsys) -> None:
    first, second = fences(DOCUMENTS["docs/python.md"], "python")
    exec(compile(first, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"tuned on MeanScore\(.*\)", line) for line in printed)
    shutil.rmtree("run")
    exec(compile(second, "docs/python.md", "exec"), {})
    assert Path("run", "run.json").is_file()
