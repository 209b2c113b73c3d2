"""What `compare` prints and writes: the same numbers everywhere, and nothing of others' text taken for markup."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.reporting.compare import Comparison, compare
from jaxalign.reporting.text import csv_text, document, markdown, plain_text, write_files
from tests.reporting.folders import write_evaluation

CELLS: dict[Any, float] = {("emotion", code): 0.5 for code in ("en", "zh", "sw")} | {
    ("emotion", "zh", "irrelevant"): 0.5,
    ("snli", "no"): 0.5,
}
HOSTILE = "`a`` | <script>alert(1)</script> [x](http://e.vil) **b** \n# c\x00\u202e\ud800"


def gains_of(tmp_path: Path, runs: int = 1, **description: Any) -> Comparison:
    before = write_evaluation(tmp_path / "before", CELLS)
    gained = {key: 0.55 + 0.1 * index for index, key in enumerate(CELLS)}
    named = {"tuned_on": ["en", "zh"], **description}
    afters = [
        write_evaluation(tmp_path / f"after{run}", gained, seed=40 * (run + 1), adapter=f"run{run}", **named)
        for run in range(runs)
    ]
    return compare(before, *afters)


@pytest.mark.parametrize("runs", [1, 2])
def test_json_csv_markdown_and_text_tell_the_same(tmp_path: Path, runs: int) -> None:
    gains = gains_of(tmp_path, runs)
    told = document(gains, "")
    lines = list(csv.DictReader(io.StringIO(csv_text(gains))))
    tables = [
        [word.strip() for word in line.split("|")[1:-1]] for line in markdown(gains, "").split("\n") if "|" in line
    ]
    printed = plain_text(gains)
    of_languages = [line for line in tables if re.match("[a-z]{2} [A-Z]", line[0])]
    assert len(told["cells"]) == len(lines) == len(of_languages) == len(CELLS)
    for cell, line, row in zip(told["cells"], lines, of_languages, strict=True):
        assert [line[name] for name in ("task", "language", "variant")] == [
            cell[n] for n in ("task", "language", "variant")
        ]
        for scoring in ("corrected", "reference"):
            for name, value in cell[scoring].items():
                if name == "runs":
                    assert line[f"{scoring}_run_p_value"].split() == [repr(run["p_value"]) for run in value]
                    assert line[f"{scoring}_run_won"].split() == [str(run["won"]) for run in value]
                elif name.startswith("interval"):
                    assert [float(line[f"{scoring}_{name}_{end}"]) for end in ("low", "high")] == list(value)
                else:
                    assert line[f"{scoring}_{name}"] == ("" if value is None else repr(value))
        score = cell["corrected"]
        mark = r"\*\*" if score["p_holm"] <= 0.05 else r"\*" if score["p_benjamini_hochberg"] <= 0.05 else ""
        gain = f"{score['gain_points']:+.1f}".replace("-", "−").replace("+0.0", "0.0")
        assert row[1:4] == [
            f"{100 * score['accuracy_before']:.1f}",
            f"{100 * score['accuracy_after']:.1f}",
            gain + mark,
        ]
        shown = [row[0], *row[1:3], gain + mark.replace("\\", "")]
        assert re.search(r"\s+".join(map(re.escape, shown)), printed)
    assert any(r"\*\*" in row[3] for row in of_languages)
    for mean in told["means"]:
        low, high = (f"{bound:+.1f}".replace("-", "−") for bound in mean["corrected"]["interval_points"])
        line = next(line for line in tables if line[0] == mean["name"] and line[5].startswith(low))
        assert line[1] == str(len(mean["languages"])) and line[5] == f"{low} to {high}"


def test_the_files_are_written_whole_and_the_same_again(tmp_path: Path) -> None:
    gains = gains_of(tmp_path)
    out = tmp_path / "out"
    paths = write_files(gains, out, "jaxalign compare before after")
    assert sorted(out.iterdir()) == sorted(paths)
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.md"]
    kept = [path.read_bytes() for path in paths]
    write_files(gains_of(tmp_path), out, "jaxalign compare before after")
    assert [path.read_bytes() for path in paths] == kept
    told = read_json(paths[0])
    assert told == json.loads(json.dumps(document(gains, "jaxalign compare before after")))
    assert told["after"][0]["adapter"] == "run0" and told["tuned_on"] == ["en", "zh"]
    with pytest.raises(InputError, match="name a folder"):
        write_files(gains, paths[0], "")


def test_text_of_others_is_no_markup(tmp_path: Path) -> None:
    failure = {"task": "paws", "language": "sw", "variant": "english", "error": HOSTILE}
    harmless = markdown(gains_of(tmp_path / "harmless", failures=[{**failure, "error": "x"}]), "x")
    before = write_evaluation(tmp_path / "before", CELLS)
    gained = {key: 0.55 + 0.1 * index for index, key in enumerate(CELLS)}
    after = write_evaluation(tmp_path / "after0", gained, seed=40, tuned_on=["en", "zh"])
    for folder in (before, after):
        told = read_json(folder / "results.json") | {"model": HOSTILE, "adapter": HOSTILE, "failures": [failure]}
        # A lone surrogate is written as an escape, as json.dumps does by default.
        (folder / "results.json").write_text(json.dumps(told))
    gains = compare(before, after)
    text = markdown(gains, HOSTILE)
    # Take the code spans out: a run of backticks, up to a run of the same length (CommonMark 6.1).
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert "alert" not in outside and "vil" not in outside and "`" not in outside
    assert "[U+0000][U+202E][U+D800]" in text and not re.search("[\x00\u202e\ud800]", text)
    assert [line for line in text.split("\n") if line.startswith("#")] == [
        line for line in harmless.split("\n") if line.startswith("#")
    ]
    written = write_files(gains, tmp_path / "out", HOSTILE)
    assert read_json(written[0])["before"]["model"] == HOSTILE
    printed = plain_text(gains)
    assert not re.search("[\x00\u202e\ud800]", printed)
    assert sum(line.startswith("Failed in ") for line in printed.split("\n")) == 2


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    cells = {("emotion", "en"): 0.6}
    before = write_evaluation(tmp_path / "before", cells | {("paws", "sw"): 0.6}, rows=range(40))
    after = write_evaluation(tmp_path / "after", cells | {("snli", "th"): 0.6}, rows=range(20, 50))
    printed = plain_text(compare(before, after))
    assert "Only before, not compared: paws sw." in printed and "Only after, not compared: snli th." in printed
    assert "Rows that not every folder scored were left out of emotion en." in printed
