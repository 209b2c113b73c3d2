"""How reports say things: numbers, cells, tables; and text of others (model names, paths, errors) made harmless."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jaxalign.data.languages import LANGUAGES

if TYPE_CHECKING:
    from jinja2 import Environment

VARIANTS = {
    "english": "English answers",
    "in_language": "in-language answers",
    "irrelevant": "task-irrelevant answers",
}
"""Which words a cell is answered in, as titles say it."""
ARROW = " \N{RIGHTWARDS ARROW} "

# Controls except tab and newline; bidirectional embeddings, overrides and isolates; surrogates; non-characters.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Table:
    """Lines of texts, of which the first column names the line."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""  # what the columns mean
    groups: Sequence[tuple[str, int]] = ()  # headings over several columns each; the first column has its own
    summary: str = ""  # what a page says in its place, until it is asked for

    def text(self) -> str:
        """For a terminal: the first column to the left, the others to the right, two spaces between."""
        lines = [self.head, *self.lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        )

    def markdown(self) -> str:
        """For a README; every text in it is our own."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        head, *body = [[own_markdown(cell.strip()) for cell in line] for line in (self.head, *self.lines)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def templates(filters: Mapping[str, Callable[..., Any]], **settings: Any) -> "Environment":
    """The templates of this folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which `jaxalign --help` can do without

    loader = PackageLoader("jaxalign.reporting", ".")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings
    )
    environment.filters |= filters
    return environment


@cache
def texts() -> Any:
    """The macros of `texts.jinja`."""
    return templates({}).get_template("texts.jinja").module


def said(name: str, **facts: Any) -> str:
    """A caption or note of `texts.jinja`, not escaped."""
    return getattr(texts(), name)(**facts)


def language_title(code: str) -> str:
    """A language as tables and figures name it: "sw Swahili"."""
    return f"{code} {LANGUAGES[code].name}" if code in LANGUAGES else code


def block_title(task: str, variant: str) -> str:
    """A task and its variant as headings name them; English answers are the rule and not said."""
    return task if variant == "english" else f"{task}, {VARIANTS[variant]}"


def cells_text(keys: Iterable[tuple[str, str, str]]) -> str:
    """Cells (task, language, variant) in words: "emotion en de, emotion in_language zh"."""
    blocks: dict[str, list[str]] = {}
    for task, language, variant in keys:
        blocks.setdefault(task if variant == "english" else f"{task} {variant}", []).append(language)
    return ", ".join(f"{name} {' '.join(codes)}" for name, codes in blocks.items())


def count_text(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(value: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def signed(value: float, decimals: int = 1) -> str:
    """So many decimals and a sign; what rounds to zero has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval_text(interval: Sequence[float], decimals: int = 1) -> str:
    """An interval of changes: "+1.0 to +3.2"."""
    return f"{signed(interval[0], decimals)} to {signed(interval[1], decimals)}"


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def number_text(points: float | None) -> str:
    """Points with one decimal; a dash where there is no number."""
    return "\N{EN DASH}" if points is None else f"{points:.1f}"


def visible(value: Any) -> Any:
    """Text as it may stand in a page: hidden characters as [U+XXXX]. Markup made here passes through."""
    if hasattr(value, "__html__"):
        return value
    return HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", str(value))


def one_line(text: str) -> str:
    """The text on one line, for a terminal."""
    return " ".join(visible(text).split())


def code_span(text: str) -> str:
    """The text as a Markdown code span (CommonMark 6.1), in which nothing is markup. Not for cells of tables."""
    text = one_line(text)
    runs = re.findall("`+", text)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    # One space on each side is not part of the text; it keeps backticks at its ends from the fence.
    return f"{fence} {text} {fence}" if runs else f"`{text}`"


def code_block(text: str, language: str) -> str:
    """The text as a fenced Markdown block of code (CommonMark 4.5), its lines kept."""
    lines = "\n".join(one_line(line) if line.strip() else "" for line in text.split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"


def markdown_text(text: str) -> str:
    """The text on one line, in which nothing is markup (CommonMark 2.4), nor ends a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$@]|(?<=\w):(?=//)|(?<=www)\.)", r"\\\1", one_line(text))


def own_markdown(text: str) -> str:
    """Our own text, its marks and signs kept from being markup."""
    return text.replace("*", r"\*").replace("<", "&lt;")
