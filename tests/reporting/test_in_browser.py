"""The report in a headless Chromium: hostile data execute nothing, ask for nothing and leave the layout as it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxalign.files import read_json
from jaxalign.reporting.page import write_report
from tests.reporting.browser import Page, browser_page
from tests.reporting.folders import name_model, write_both_sides

pytestmark = pytest.mark.browser

ACTS = (
    "<script>window.acted = 1; alert(1)</script>",
    "<img src=x onerror='window.acted = 2'>",
    "<img src='http://127.0.0.1:9/seen.png'>",
    "<svg onload='window.acted = 3'><script>window.acted = 4</script></svg>",
    "<details open ontoggle='window.acted = 5'><summary>s</summary></details>",
    "<iframe srcdoc='<script>parent.acted = 6</script>'></iframe>",
    "<link rel=stylesheet href='http://127.0.0.1:9/seen.css'><style>* { display: none }</style>",
    "<meta http-equiv=refresh content='0; url=http://127.0.0.1:9/'>",
    "<a href='javascript:window.acted = 7'>a</a>",
    "</code></pre></dd></td></table></section></main></style></title></svg><h1>",
    "\"'><body onpageshow='window.acted = 8' style='width: 9000px'>",
    "{{ 7 * 7 }}{% for x in y %}",
)
HIDDEN = "\x00\x08\x1b\x85\u202eabc\u202c\u2066\u2069\ud800\ufffe\uffff"
LONG = "W" * 3000
HOSTILE = "".join(ACTS) + HIDDEN + LONG
NAME = "<img src=x onerror=window.acted=9>\u202eabc" + "W" * 120
"""As a folder may be called."""


def spoil(file: Path, **fields: Any) -> None:
    """Other values in a JSON file; a lone surrogate is written as an escape."""
    file.write_text(json.dumps(read_json(file) | fields))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of folders with everything that a report can hold, hostile wherever text is free."""
    root = tmp_path_factory.mktemp("report") / NAME
    before, after = write_both_sides(root)
    key = {"task": "paws", "language": "sw", "variant": "english"}
    free = {name: HOSTILE for name in ("model", "command", "template")}
    free |= {"versions": {HOSTILE: HOSTILE}, "config": {HOSTILE: [HOSTILE]}, "files": [HOSTILE]}
    for folder in (before, after):
        name_model(folder, model=HOSTILE)
        spoil(folder / "results.json", **free, failures=[key | {"error": HOSTILE}])
        spoil(folder / "timing.json", **{HOSTILE: HOSTILE, "nested": {HOSTILE: HOSTILE}})
    spoil(root / "run" / "run.json", **free)
    out = root.parent / "report.html"
    write_report(before, [after], out, HOSTILE)
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def faults(page: Page, file: Path) -> list[str]:
    """What the page did that a report must not."""
    said = [f"asked for {url}" for url in page.requests() if url != file.as_uri()]
    said += [f"opened a dialog: {dialog['message']}" for dialog in page.seen("Page.javascriptDialogOpening")]
    said += [f"said: {each}" for each in page.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    said += [f"went to {frame['frame']['url']}" for frame in page.seen("Page.frameNavigated")[1:]]
    if (acted := page.evaluate("window.acted")) is not None:
        said.append(f"script {acted} ran")
    return said


def widths(page: Page, width: int) -> tuple[int, int]:
    """Of the page's content and of the window, in CSS pixels."""
    page.resize(width)
    return tuple(page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]"))


def test_hostile_data_do_nothing_and_move_nothing(page: Page, report: Path) -> None:
    """Without the help of the page's own policy against scripts: escaping alone must do."""
    page.open(report, heed_policy=False)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert faults(page, report) == []
    assert page.evaluate("document.querySelectorAll('script, img, iframe, link, base, object, embed').length") == 0
    handlers = "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/i.test(a.name)))"
    assert page.evaluate(f"{handlers}.length") == 0
    text = page.evaluate("document.body.textContent")
    assert ACTS[0] in text and "[U+0000][U+0008][U+001B][U+0085][U+202E]abc" in text and LONG in text
    assert page.evaluate("document.title").endswith("W")
    assert page.evaluate("document.querySelectorAll('body > main > section > h2').length") >= 9
    for width in (1280, 800, 390):
        content, window = widths(page, width)
        assert content <= window


def test_the_policy_of_the_page_stops_scripts_too(page: Page, tmp_path: Path, report: Path) -> None:
    """Were one not escaped."""
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(report.read_text().replace("<main>", f"<main>{ACTS[0]}{ACTS[1]}{ACTS[2]}", 1))
    page.open(spoilt, heed_policy=True)
    assert page.evaluate("window.acted") is None
    assert page.seen("Page.javascriptDialogOpening") == []
    blocked = [entry["entry"]["text"] for entry in page.seen("Log.entryAdded")]
    assert any("Content Security Policy" in text for text in blocked)


@pytest.mark.parametrize(
    ("markup", "fault"),
    [
        (ACTS[0], "opened a dialog: 1"),
        (ACTS[1], "script 2 ran"),
        (ACTS[2], "asked for http://127.0.0.1:9/seen.png"),
        (ACTS[3], "script 3 ran"),
        (ACTS[4], "script 5 ran"),
        (ACTS[5], "script 6 ran"),
        (ACTS[6], "asked for http://127.0.0.1:9/seen.css"),
        (ACTS[7], "asked for http://127.0.0.1:9/"),
    ],
)
def test_a_page_that_acts_is_seen(page: Page, tmp_path: Path, markup: str, fault: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><title>t</title><body>{markup}")
    page.open(file, heed_policy=False)
    assert fault in faults(page, file)


def test_a_page_that_is_too_wide_is_seen(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><title>t</title><body><p>{LONG}")
    page.open(file, heed_policy=False)
    content, window = widths(page, 800)
    assert content > window
