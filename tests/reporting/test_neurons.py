import json
from pathlib import Path

import pytest

from jaxalign.errors import InputError
from jaxalign.reporting.html import write_report
from jaxalign.reporting.neurons import NeuronCount, neuron_tables
from tests.reporting.folders import write_evaluation, write_selection


def test_counts_side_by_side(tmp_path: Path):
    before = write_selection(tmp_path / "before", [(0, 3)])
    after = write_selection(tmp_path / "after", [(1, 4)])
    tables = neuron_tables({"before": before, "after": after})
    assert tables is not None
    assert tables.languages == [NeuronCount("en English", (1, 1), 0), NeuronCount("sw Swahili", (1, 1), 1)]
    assert tables.classes[1] == NeuronCount("language specific", (2, 2))
    specific = tables.layers["language specific"]
    assert specific == [NeuronCount("0", (1, 0)), NeuronCount("1", (1, 2))]
    assert {label: counts.tolist() for label, counts in tables.by_layer.items()} == {
        "before": [[1, 0], [0, 1]],
        "after": [[0, 1], [0, 1]],
    }
    assert [row.change for row in specific] == [-1, 1]


def test_without_two_selections_there_is_nothing_to_compare(tmp_path: Path):
    before = write_selection(tmp_path / "before", [(0, 3)])
    assert neuron_tables({"before": before, "after": tmp_path}) is None
    assert neuron_tables({"before": tmp_path, "after": before}) is None


def test_one_selection_has_no_change(tmp_path: Path):
    tables = neuron_tables({"base": write_selection(tmp_path / "base", [(0, 3)])})
    assert tables is not None and tables.labels == ["base"]
    assert tables.languages == [NeuronCount("en English", (1,)), NeuronCount("sw Swahili", (1,))]


def test_selections_of_two_kinds_are_refused(tmp_path: Path):
    before, after = write_selection(tmp_path / "a", [(0, 3)]), write_selection(tmp_path / "b", [(0, 3)], rate=0.2)
    with pytest.raises(InputError, match=r"top_rate 0\.1 in one and 0\.2"):
        neuron_tables({"before": before, "after": after})


def test_a_broken_selection_is_named(tmp_path: Path):
    before, after = write_selection(tmp_path / "a", [(0, 3)]), write_selection(tmp_path / "b", [(0, 3)])
    document = json.loads((after / "selection.json").read_text())
    document["classes_per_layer"]["language_specific"] = [1]
    (after / "selection.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="classes_per_layer, language_specific: 2 whole numbers"):
        neuron_tables({"before": before, "after": after})


def test_the_report_shows_them(tmp_path: Path):
    folders = [write_evaluation(tmp_path / name, {("emotion", "en"): 0.6}) for name in ("before", "after")]
    write_report(folders[0], folders[1:], tmp_path / "without.html", "jaxalign report")
    assert "Language neurons" not in (tmp_path / "without.html").read_text()
    write_selection(folders[0], [(0, 3)])
    write_report(folders[0], folders[1:], tmp_path / "one.html", "jaxalign report")
    assert "The after folder holds no selection.json: no neurons are compared." in (tmp_path / "one.html").read_text()
    write_selection(folders[1], [(1, 4)])
    write_report(folders[0], folders[1:], tmp_path / "report.html", "jaxalign report")
    page = (tmp_path / "report.html").read_text()
    assert '<section id="neurons">' in page
    row = page[page.index("sw Swahili</th>", page.index('id="neurons"')) :]
    assert row.split("</tr>")[0].count('<td class="number">1</td>') == 3
