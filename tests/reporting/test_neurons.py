import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.probing.neurons import language_neurons, select_neurons, selection_document
from jaxalign.probing.records import write_probe
from jaxalign.reporting.html import write_report
from jaxalign.reporting.neurons import NeuronCount, neuron_changes
from tests.reporting.folders import write_evaluation

CODES = ["en", "sw"]


def write_selection(folder: Path, english: list[tuple[int, int]], rate: float = 0.1) -> Path:
    """The selection of a model of two layers of ten, whose neurons are English at these places, Swahili at (1, 0)."""
    probabilities = np.full((2, 2, 10), 0.1, np.float32)
    for layer, index in english:
        probabilities[:, layer, index] = 0.9, 0.0
    probabilities[:, 1, 0] = 0.0, 0.9
    selection = select_neurons(probabilities, "lape", rate)
    own = {code: language_neurons(selection, index) for index, code in enumerate(CODES)}
    write_probe(folder, "selection", own, selection_document(selection, probabilities, CODES, "lape", rate))
    return folder


def test_counts_side_by_side(tmp_path: Path):
    before = write_selection(tmp_path / "before", [(0, 3)])
    after = write_selection(tmp_path / "after", [(1, 4)])
    changes = neuron_changes(before, after)
    assert changes is not None
    assert changes.languages == [NeuronCount("en English", 1, 1, 0), NeuronCount("sw Swahili", 1, 1, 1)]
    assert changes.classes[1] == NeuronCount("language specific", 2, 2)
    specific = changes.layers["language specific"]
    assert specific == [NeuronCount("0", 1, 0), NeuronCount("1", 1, 2)]
    assert [row.change for row in specific] == [-1, 1]


def test_without_two_selections_there_is_nothing_to_compare(tmp_path: Path):
    before = write_selection(tmp_path / "before", [(0, 3)])
    assert neuron_changes(before, tmp_path) is None and neuron_changes(tmp_path, before) is None


def test_selections_of_two_kinds_are_refused(tmp_path: Path):
    before, after = write_selection(tmp_path / "a", [(0, 3)]), write_selection(tmp_path / "b", [(0, 3)], rate=0.2)
    with pytest.raises(InputError, match=r"top_rate 0\.1 in one and 0\.2"):
        neuron_changes(before, after)


def test_a_broken_selection_is_named(tmp_path: Path):
    before, after = write_selection(tmp_path / "a", [(0, 3)]), write_selection(tmp_path / "b", [(0, 3)])
    document = json.loads((after / "selection.json").read_text())
    document["classes_per_layer"]["language_specific"] = [1]
    (after / "selection.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="classes_per_layer, language_specific: 2 whole numbers"):
        neuron_changes(before, after)


def test_the_report_shows_them(tmp_path: Path):
    folders = [write_evaluation(tmp_path / name, {("emotion", "en"): 0.6}) for name in ("before", "after")]
    write_report(folders[0], folders[1:], tmp_path / "without.html", "jaxalign report")
    assert "Language neurons" not in (tmp_path / "without.html").read_text()
    for folder, english in zip(folders, ([(0, 3)], [(1, 4)]), strict=True):
        write_selection(folder, english)
    write_report(folders[0], folders[1:], tmp_path / "report.html", "jaxalign report")
    page = (tmp_path / "report.html").read_text()
    assert '<section id="neurons">' in page
    row = page[page.index("sw Swahili</th>", page.index('id="neurons"')) :]
    assert row.split("</tr>")[0].count('<td class="number">1</td>') == 3
