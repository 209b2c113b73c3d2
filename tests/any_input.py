"""What tests of parsers share: inputs of any form, and what must become of them.

Whatever stands in a file or an argument, its reader returns a value, or raises InputError with one line.
"""

import errno
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jaxalign.errors import LONGEST, InputError, messages_of

quick = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
thorough = settings(quick, max_examples=100)
"""For readers of less than a few milliseconds."""

# Numbers that fit no integer type and no float among them; 0 and 1 equal False and True, and mean something else.
NUMBERS = st.sampled_from([-1, 2**31, 2**63, 10**400, 1e-320]) | st.integers(0, 9) | st.integers() | st.floats()
TEXTS = st.text(max_size=8) | st.sampled_from(["a\nb", "\ud800", "\0", "x" * LONGEST])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
"""What JSON can hold."""


def value_or_one_line(read, *arguments: Any) -> Any:
    """What the reader returns; None where it refuses, each message being one line."""
    try:
        return read(*arguments)
    except InputError as error:
        for message in (str(error), *messages_of(error)):
            assert message.splitlines() == [message] and len(message) <= LONGEST
        return None
    except OSError as error:  # commands print the system's line as they print ours
        assert error.errno == errno.ENAMETOOLONG
        return None


def written(path: Path, content: str | bytes) -> Path:
    """The path, once the content lies there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@st.composite
def spoilt_document(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document of which one value, at any depth, is another, or is missing."""
    document = deepcopy(document)
    container, key = draw(st.sampled_from(list(places(document))))
    if draw(st.booleans()):
        del container[key]
    else:
        container[key] = draw(VALUES)
    return document


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that is cut off, or has up to four other bytes."""
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content) - 1))]
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        spoilt[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(spoilt)
