"""The headline of the lens, beside numbers worked out by hand."""

import numpy as np

from jaxalign.reporting.lens import lens_lines


def arrays(latent: list[list[float]], out: list[list[float]], entropy: list[list[float]]) -> dict[str, np.ndarray]:
    named = {"latent": latent, "out": out, "entropy": entropy}
    return {f"unshared_{name}_mean": np.array(values, np.float32) for name, values in named.items()}


BEFORE = arrays([[0.1, 0.4, 0.2], [0.0, 0.25, 0.125]], [[0.1, 0.1, 0.1], [0.0, 0.25, 0.5]], [[9, 8, 7], [6, 5, 4.5]])
AFTER = arrays([[0.1, 0.4, 0.5], [0.5, 0.25, 0.125]], [[0.1, 0.1, 0.1], [0.0, 0.25, 0.25]], [[9, 8, 7], [6, 5, 4.0]])


def test_a_line_a_language_with_the_layer_of_the_largest_mass():
    _, english, chinese = lens_lines({"before": BEFORE, "after": AFTER}, ["en", "zh"])
    assert english == ["en English", "0.400 (layer 2) → 0.500 (layer 3), +0.100", "", "7.000 → 7.000, 0.000"]
    assert chinese[1:] == [
        "0.250 (layer 2) → 0.500 (layer 1), +0.250",
        "0.500 → 0.250, −0.250",
        "4.500 → 4.000, −0.500",
    ]


def test_one_run_has_no_change_and_a_language_without_rows_no_line():
    nothing = {name: np.where([[False], [True]], np.nan, values) for name, values in BEFORE.items()}
    _, only = lens_lines({"before": nothing}, ["en", "zh"])
    assert only == ["en English", "0.400 (layer 2)", "", "7.000"]
