"""Text of others (model names, paths, error messages) on its way into a page, a README or a terminal."""

import re
from typing import Any

# Controls except tab and newline; bidirectional embeddings, overrides and isolates; surrogates; non-characters.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


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
