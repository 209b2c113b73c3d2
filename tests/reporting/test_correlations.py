"""Changes of correlations between languages, beside draws made by hand."""

from pathlib import Path

import numpy as np
import pytest

from jaxalign.files import read_json, read_npz, write_json
from jaxalign.reporting.correlations import CorrelationChange, correlation_change, correlation_lines, correlation_values
from jaxalign.reporting.probe_files import read_pca
from tests.reporting.folders import write_pca


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The languages stand in another order after."""
    write_pca(tmp_path / "before", ["en", "de", "sw"], ["en"], layers=2, apart=2.0)
    write_pca(tmp_path / "after", ["sw", "en", "de"], ["en"], layers=2, apart=0.2)
    return tmp_path / "before", tmp_path / "after"


def paired(before: Path, after: Path) -> CorrelationChange | None:
    return correlation_change(read_pca(before), read_pca(after))


def test_changes_are_of_the_same_rows_and_pairs(folders: tuple[Path, Path]):
    change = paired(*folders)
    assert change is not None and change.pairs == [("en", "de"), ("en", "sw"), ("de", "sw")]
    assert change.layers == [0, 1, 2] and change.layer == 1 and change.rows == 20
    before, after = (read_npz(folder / "pca.npz")["first_component"] for folder in folders)
    after = after[:, [1, 2, 0]]

    def r(rows: np.ndarray) -> np.ndarray:
        """After minus before, [layers, pairs], of the rows drawn."""
        matrices = [[np.corrcoef(layer[:, rows]) for layer in side] for side in (before, after)]
        return np.array(matrices[1])[:, [0, 0, 1], [1, 2, 2]] - np.array(matrices[0])[:, [0, 0, 1], [1, 2, 2]]

    np.testing.assert_allclose(change.change, r(np.arange(20)).T, atol=1e-5)
    drawn = np.array([r(rows) for rows in np.random.default_rng(11).integers(20, size=(1500, 20))])
    expected = np.quantile(drawn, [0.025, 0.975], axis=0)
    # Other draws: quantiles of some 2,000 agree within some hundredths.
    np.testing.assert_allclose(change.interval, expected.T, atol=0.05)
    assert list(change.headline) == ["de German", "sw Swahili", "mean (2 languages)", "mean of all 3 pairs"]
    swahili, both, every = (change.headline[name] for name in list(change.headline)[1:])
    assert swahili.after - swahili.before == pytest.approx(change.change[1, 1], abs=1e-6)
    assert [swahili.low, swahili.high] == pytest.approx(change.interval[1, 1].tolist())
    assert both.after - both.before == pytest.approx(change.change[:2, 1].mean(), abs=1e-6)
    assert every.after - every.before == pytest.approx(change.change[:, 1].mean(), abs=1e-6)
    means = np.quantile(drawn[:, 1].mean(axis=1), [0.025, 0.975])
    assert [every.low, every.high] == pytest.approx(means.tolist(), abs=0.05)
    assert correlation_lines(change)[2][:2] == ["sw Swahili", f"{swahili.before:.3f} → {swahili.after:.3f}"]
    assert change.document()["pair"][1] == ["en", "sw"]


@pytest.mark.parametrize("name", ["row", "layer"])
def test_other_rows_or_layers_are_not_paired(folders: tuple[Path, Path], name: str):
    path = folders[1] / "pca.json"
    document = read_json(path)
    write_json(path, document | {name: [value + 1 for value in document[name]]})
    assert paired(*folders) is None


def test_other_languages_or_one_side_are_not_paired(folders: tuple[Path, Path]):
    assert correlation_change(read_pca(folders[0]), None) is None
    write_pca(folders[1], ["en", "de", "zh"], ["en"], layers=2)
    assert paired(*folders) is None


def test_one_model_has_its_correlations_with_english(folders: tuple[Path, Path]):
    probe = read_pca(folders[1])
    assert probe is not None
    head, swahili, german = correlation_values(probe)
    assert head[0] == "correlation, layer 1" and [swahili[0], german[0]] == ["sw Swahili", "de German"]
    low, high = probe.arrays["correlations_interval"][1, 1, 2]
    assert german[1:] == [f"{probe.arrays['correlations'][1, 1, 2]:.3f}", f"{low:.3f} to {high:.3f}"]
