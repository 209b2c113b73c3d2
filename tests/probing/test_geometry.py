"""Geometry against the definitions in NumPy, and what a row's value is worth in simulations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jaxalign.model.ragged import Runner
from jaxalign.model.transformer import Decoder
from jaxalign.probe_files import PROBE_ARRAYS
from jaxalign.probing.capture import Capture, capture_batch
from jaxalign.probing.geometry import (
    geometry,
    geometry_arrays,
    language_geometry,
    linear_cka,
    ranks,
)
from jaxalign.runtime import make_mesh
from jaxalign.statistics import MEASURES, bootstrap_intervals, row_values
from tests.model.tiny_models import VOCABULARY, numpy_of, tiny_case
from tests.probing.language_world import probe_run

RNG = np.random.default_rng(0)


def cka_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    x, y = (states - states.mean(axis=0) for states in (first, second))
    return float(np.sum((y.T @ x) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2)) / np.sqrt(np.sum((y.T @ y) ** 2)))


def related(rows: int, widths: tuple[int, int], shared: int = 3) -> list[np.ndarray]:
    """Two sets of states that share some directions, far from the origin."""
    items = RNG.normal(size=(rows, shared))
    return [items @ RNG.normal(size=(shared, width)) + RNG.normal(size=(rows, width)) + 9 for width in widths]


@pytest.mark.parametrize(("rows", "widths"), [(30, (5, 7)), (8, (40, 40)), (3, (6, 4))])
def test_cka_is_its_definition_and_rows_are_its_jackknife(rows: int, widths: tuple[int, int]):
    first, second = related(rows, widths)
    cka = cka_by_definition(first, second)
    pairs = [[np.delete(states, i, axis=0) for states in (first, second)] for i in range(rows)]
    without = np.array([cka_by_definition(*pair) for pair in pairs])
    found, _ = linear_cka(first, second)
    # Float64 on both sides.
    assert found.mean() == pytest.approx(cka, rel=1e-12)
    np.testing.assert_allclose(found, cka + (rows - 1) * (without.mean() - without), atol=1e-10)


def test_chance_of_cka_is_its_mean_over_orders():
    first, second = related(9, (12, 12))
    shuffled = [cka_by_definition(first, second[RNG.permutation(9)]) for _ in range(4000)]
    error = np.std(shuffled) / np.sqrt(len(shuffled))
    assert linear_cka(first, second)[1] == pytest.approx(np.mean(shuffled), abs=4 * error) and error < 0.003


def test_cka_is_one_for_turned_and_zero_for_constant_states():
    states = RNG.normal(size=(10, 4)).astype(np.float32)
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    np.testing.assert_allclose(linear_cka(states, 3 * states @ turn + 1)[0], 1.0, atol=1e-6)
    for dtype in (np.float32, np.float64):
        for other in (states, np.full((10, 4), 7, dtype)):
            rows, chance = linear_cka(other, np.full((10, 4), 0.1, dtype))
            assert (rows == 0).all() and chance == 0
    rows, chance = linear_cka(np.where(np.arange(10)[:, None] == 3, np.nan, states), states)
    assert np.isnan([*rows, chance]).all()


def test_ranks_by_hand():
    candidates = np.array([[1, 0], [0, 2], [-1, 0]], np.float32)
    queries = np.array([[5, 1], [1, 0.5], [0, 0]], np.float32)
    # The second query is nearest to the first candidate; zeros are equally near to all, and ties count against.
    np.testing.assert_array_equal(ranks(queries, candidates), [1, 2, 3])
    # States that are all equal find nothing, nor do they once their mean is off.
    equal = np.full((4, 1, 3), 0.3, np.float32)
    compared = language_geometry(equal, equal)
    assert (compared.rank == 4).all() and (compared.rank_centred == 4).all()


def test_retrieval_is_brute_force_over_transformers_states():
    tiny = tiny_case("gemma3_text")
    prompts = [[RNG.integers(1, VOCABULARY, n).tolist() for n in (9, 4, 12, 7, 30)] for _ in range(2)]
    # Half of a prompt is its translation's, so that some but not all rows are found.
    prompts[1] = [other[: len(own) // 2] + own[len(own) // 2 :] for own, other in zip(*prompts, strict=True)]
    variables, layers = {"params": tiny.params}, tuple(range(tiny.config.layers + 1))
    runner, nothing = Runner(Decoder(tiny.config), variables, make_mesh(8, 1, 1), 8), np.zeros(0, np.int32)
    english, language = (
        runner(capture_batch, variables, texts, None, nothing, layers=layers, position="prompt_mean")
        for texts in prompts
    )
    found = geometry_arrays([language_geometry(language, english)])
    with torch.no_grad():
        states = [
            np.stack(
                [
                    [numpy_of(layer)[0].astype(np.float64).mean(axis=0) for layer in output.hidden_states]
                    for prompt in texts
                    for output in [tiny.torch_model(torch.tensor([prompt]), output_hidden_states=True)]
                ]
            )
            for texts in prompts
        ]
    assert 0 < found["retrieval_centred"].mean() < 1
    for k in layers:
        for suffix, shift in (("", 0), ("_centred", 1)):
            first, second = (each[:, k] - shift * each[:, k].mean(axis=0) for each in states)
            places = []
            for i, query in enumerate(second):
                cosines = [query @ other / np.sqrt((query @ query) * (other @ other)) for other in first]
                places.append(1 + sorted(range(5), key=lambda j: -cosines[j]).index(i))
            assert found[f"rank{suffix}"][0, k].tolist() == places
            assert found[f"retrieval{suffix}"][0, k] == pytest.approx(np.mean([place == 1 for place in places]))
            assert found[f"reciprocal_rank{suffix}"][0, k] == pytest.approx(np.mean([1 / place for place in places]))
        # Float32 states against float64 ones.
        expected = cka_by_definition(states[1][:, k], states[0][:, k])
        assert found["cka"][0, k] == pytest.approx(expected, abs=1e-4)


def test_arrays_of_the_geometry(tmp_path: Path):
    found = geometry(probe_run(tmp_path, slice(1, 6), ["de", "en", "zh"]), Capture((0, 3), "query_mean"))
    arrays, document = found.arrays, found.document
    assert document["language"] == ["de", "zh"] and document["layer"] == [0, 3] and document["row"] == [1, 2, 3, 4, 5]
    assert document["position"] == "query_mean" and document["compared_with"] == "en"
    assert arrays.keys() == document["axes"].keys() == PROBE_ARRAYS["geometry"].keys()
    for name, array in arrays.items():
        assert array.shape == tuple(len(document[axis]) for axis in document["axes"][name])
    for measure, values in row_values(arrays).items():
        np.testing.assert_allclose(arrays[measure], values.mean(axis=-1), atol=1e-6)
        bounds = np.clip(bootstrap_intervals(values), 0, 1)
        np.testing.assert_allclose(arrays[f"{measure}_interval"], bounds, atol=1e-6)
    assert set(row_values(arrays)) == set(MEASURES)
