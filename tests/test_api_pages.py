"""The pages of the API, made from the docstrings by one command: every link inside them leads somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name == "id" and value:
                self.ids.add(value)


def broken_links(folder: Path) -> list[str]:
    """Links between the pages of a folder whose file or anchor is not there."""
    pages = {file: Page(file) for file in folder.rglob("*.html")}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (file.parent / unquote(name)).resolve() if name else file
            if not target.is_file() or (anchor and unquote(anchor) not in pages[target].ids):
                broken.append(f"{file.relative_to(folder)}: {link}")
    return sorted(broken)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of `pdoc jaxalign -o api`."""
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-m", "pdoc", "jaxalign", "-o", str(folder)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "does not resolve" not in said.stderr  # a name that is promised, and is not there
    return folder


@pytest.mark.slow
def test_every_module_has_a_page_and_no_link_is_broken(api: Path) -> None:
    assert broken_links(api) == []
    package = ROOT / "jaxalign"
    modules = [file.relative_to(package).with_suffix(".html") for file in package.rglob("*.py")]
    pages = [page for page in modules if page.name != "__init__.html"]
    missing = {str(page) for page in pages if not (api / "jaxalign" / page).is_file()}
    assert missing == {"__main__.html"}  # a command
    library = Page(api / "jaxalign" / "api.html").ids
    assert {"demo", "load", "train", "evaluate", "probe", "compare", "report", "export"} <= library


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="x"><a href="#x">a</a><a href="b.html#y">b</a><a href="#z">c</a>')
    (tmp_path / "b.html").write_text('<a href="a.html">a</a><a href="c.html">c</a><a href="https://example.org">e</a>')
    assert broken_links(tmp_path) == ["a.html: #z", "a.html: b.html#y", "b.html: c.html"]
