"""What the READMEs point to is there: relative links with their anchors, and files of the project by their names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "tpu_scripts/README.md", "jaxalign/data/mini/README.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "tests|jaxalign|configs|benchmarks|tpu_scripts|notebooks"
FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\.(?:py|sh|md|ipynb)\b")


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


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
        page = text if not name else target.read_text(encoding="utf-8") if target.is_file() else ""
        if not target.exists() or (anchor and anchor not in anchors(page)):
            yield link


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    text = file.read_text(encoding="utf-8")
    assert list(broken(text, file.parent)) == []
    assert [path for path in FILE.findall(text) if not (ROOT / path).exists()] == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One, `two`\n\n```sh\n# no heading\n```\n\n# One two\n")
    right = "# Top\n[a](#top) [b](other.md) [c](other.md#one-two-1) [d](https://example.org/x)"
    assert list(broken(right, tmp_path)) == []
    wrong = "# Top\n[a](#tip) [b](another.md) [c](other.md#no-heading) [d](other.md#one-two-2)"
    assert list(broken(wrong, tmp_path)) == ["#tip", "another.md", "other.md#no-heading", "other.md#one-two-2"]
