from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.decomposition import PCA

from jaxalign.probe_files import PROBE_ARRAYS
from jaxalign.probing.capture import capture_languages
from jaxalign.probing.geometry import (
    WHOLE_PROMPTS,
    first_component,
    joint_pca,
    pca,
    pca_arrays,
)
from jaxalign.statistics import correlations as correlations_of
from tests.probing.language_world import probe_run

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (15, 15)])
def test_joint_pca_is_scikit_learns_full_decomposition(shape: tuple[int, int]):
    states = (RNG.normal(size=shape) @ RNG.normal(size=(shape[1], shape[1])) + 7).astype(np.float32)
    fit = PCA(n_components=2, svd_solver="full")
    expected = fit.fit_transform(states.astype(np.float64))
    found, explained = joint_pca(states, 2)
    signs = np.sign((found * expected).sum(0))
    # Float64 on both sides; the spectrum is well apart.
    np.testing.assert_allclose(found * signs, expected, atol=1e-7 * np.abs(expected).max())
    np.testing.assert_allclose(explained, fit.explained_variance_ratio_, rtol=1e-9)
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()


def test_correlations_are_pearsons_of_the_first_joint_component():
    shared = RNG.normal(size=(30, 8)) * [9, 1, 1, 1, 1, 1, 1, 1]
    states = np.stack([shared, shared + RNG.normal(size=(30, 8)), -shared, RNG.normal(size=(30, 8)) * 3])
    first = PCA(n_components=1, svd_solver="full").fit_transform(states.reshape(-1, 8)).reshape(4, 30)
    expected = np.array([[scipy.stats.pearsonr(a, b)[0] for b in first] for a in first], float)
    found = correlations_of(first_component(states))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found[0, 1] > 0.95 and found[0, 2] == pytest.approx(-1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_states_that_do_not_vary_have_coordinates_and_shares_of_zero(dtype: type):
    """All of them, and those of one language among others."""
    constant = np.full((3, 7, 2, 5), 0.1, dtype)
    arrays = pca_arrays(constant, [0, 2])
    assert arrays.keys() == PROBE_ARRAYS["pca"].keys() and all((array == 0).all() for array in arrays.values())
    mixed = constant.copy()
    mixed[1:, :, 1] += RNG.normal(size=(2, 7, 5)).astype(dtype)
    arrays = pca_arrays(mixed, [0, 1])
    assert all(np.isfinite(array).all() for array in arrays.values())
    correlations, intervals = arrays["correlations"][1], arrays["correlations_interval"][1]
    assert (correlations[0] == 0).all() and (correlations[:, 0] == 0).all() and (intervals[0] == 0).all()
    assert correlations[1, 1] == correlations[2, 2] == 1 and correlations[1, 2] != 0
    assert arrays["explained_variance_ratio"][1].sum() > 0.5


def test_intervals_of_correlations_are_those_of_drawn_rows():
    shared = RNG.normal(size=(40, 2, 6)) * [5, 1, 1, 1, 1, 1]
    arrays = pca_arrays(shared + RNG.normal(size=(3, 40, 2, 6)) * 3, [0, 1])
    drawn = np.random.default_rng(9).integers(40, size=(2000, 40))
    for first, correlations, interval in zip(
        *(arrays[name] for name in ("first_component", "correlations", "correlations_interval")), strict=True
    ):
        np.testing.assert_allclose(np.corrcoef(first), correlations, atol=1e-5)
        expected = np.quantile([np.corrcoef(first[:, rows]) for rows in drawn], [0.025, 0.975], axis=0)
        # Other draws: quantiles of 2,000 agree within some hundredths.
        np.testing.assert_allclose(interval, np.moveaxis(expected, 0, -1), atol=0.04)
        assert interval[0, 1, 1] - interval[0, 1, 0] > 0.1


def test_arrays_of_the_pca(tmp_path: Path):
    run = probe_run(tmp_path, slice(1, 6))
    found = pca(run, ["zh", "en"])
    assert found.document["row"] == [1, 2, 3, 4, 5] and found.document["layer"] == [0, 1, 2, 3]
    states = np.stack([states for _, states in capture_languages(run, WHOLE_PROMPTS, run.languages)])
    expected = pca_arrays(states, [2, 0])
    assert found.arrays.keys() == found.document["axes"].keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    points = found.arrays["points"]
    assert points.shape == (4, 2, 5, 2) and found.arrays["correlations"].shape == (4, 3, 3)
    chinese, english = states[2, :, 1], states[0, :, 1]
    joint = joint_pca(np.concatenate([chinese, english]), 2)[0]
    np.testing.assert_allclose(points[1].reshape(10, 2), joint, rtol=1e-5)
