from typing import Any

import numpy as np

from jaxalign.reporting import plots
from jaxalign.reporting.neuron_plots import effect_heat_map, neurons_heat_map


def test_effect_heat_map():
    change = np.zeros((3, 2, 2, 3))
    change[0, ..., 0] = [[0.4, -0.1], [0.0, 0.2]]
    change[2, ..., 1:] = [[[0.1, 0.7], [-0.2, 0.1]], [[-0.1, 0.1], [-0.3, -0.1]]]
    figure = effect_heat_map(change, ["en", "sw"], "change", "taken out")
    panels: Any = figure.axes
    own, control, _ = panels
    np.testing.assert_allclose(np.ravel(own.collections[0].get_array()), [0.4, -0.1, 0.0, 0.2])
    assert not np.any(control.collections[0].get_array())
    # Dots where the interval of the difference leaves out 0: (row, column) as (y, x).
    assert own.collections[1].get_offsets().tolist() == [[0.5, 0.5], [1.5, 1.5]]
    text = plots.svg(figure, "masking")
    assert "sw Swahili" in text and "random neurons" in text and "taken out" in text


def test_neurons_stand_in_their_layer():
    counts = {"base": np.array([[3, 0, 1], [0, 0, 2]])}
    panel: Any = neurons_heat_map(counts, ["en", "sw"]).axes[0]
    np.testing.assert_array_equal(panel.collections[0].get_array(), counts["base"])
    assert panel.collections[0].get_clim() == (0, 3)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["en English", "sw Swahili"]
