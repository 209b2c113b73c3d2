import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

from jaxalign.data.label_queries import LabelQuery, label_queries
from jaxalign.data.tasks import TASKS, read_task_rows
from jaxalign.errors import InputError
from jaxalign.evaluation.score_labels import Scorer
from jaxalign.model.next_token import pad_label_sets
from jaxalign.model.prompt_batches import PromptRunner
from jaxalign.model.transformer import Decoder
from jaxalign.probing.logit_lens import (
    LensRows,
    WordSets,
    lens_arrays,
    lens_document,
    lens_function,
    surviving_classes,
    word_sets,
    write_logit_lens,
)
from jaxalign.probing.prompts import ProbeData
from jaxalign.probing.run import ProbeRun
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.model.tiny_models import FAMILIES, VOCABULARY, numpy_of, tiny_case

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, VOCABULARY, n).tolist() for n in (3, 70, 20)]
LABELS = [[5, 9, 30], [7]]


def lens_in_numpy(torch_model: Any, prompt: list[int], offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Masses [L, labels] and entropy [L] from transformers' hidden states, norm and head written out."""
    norm, residuals = torch_model.model.norm, []
    # The last entry of hidden_states is past the final norm, so the last residual is caught on its way in.
    handle = norm.register_forward_pre_hook(lambda module, arguments: residuals.append(arguments[0]))
    with torch.no_grad():
        states = torch_model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    handle.remove()
    x = np.stack([numpy_of(state)[0, -1] for state in (*states[1:-1], residuals[0])]).astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (offset + numpy_of(norm.weight))
    p = scipy.special.softmax(x @ numpy_of(torch_model.lm_head.weight).T, axis=-1)
    return np.stack([p[:, ids].sum(-1) for ids in LABELS], -1), -(p * np.log2(p)).sum(-1)


@pytest.mark.parametrize("case", FAMILIES)
def test_lens_is_transformers_hidden_states_through_norm_and_head(case: str):
    tiny = tiny_case(case)
    variables = {"params": tiny.params}
    runner = PromptRunner(lens_function(Decoder(tiny.config)), variables, make_mesh(8, 1, 1), 8)
    masses, entropy, finite = runner(variables, PROMPTS, pad_label_sets(LABELS))
    assert masses.shape[:2] == entropy.shape == (len(PROMPTS), tiny.config.layers) and finite.all()
    for i, prompt in enumerate(PROMPTS):
        expected = lens_in_numpy(tiny.torch_model, prompt, 1.0 if tiny.config.norm_offset else 0.0)
        # Float32 against float64 after up to seven layers; entropies are up to 6 bits.
        np.testing.assert_allclose(masses[i, :, : len(LABELS)], expected[0], atol=1e-4)
        np.testing.assert_allclose(entropy[i], expected[1], atol=1e-4)


def test_the_last_layer_is_what_the_model_says():
    tiny = tiny_case("gemma3_text")
    variables, mesh = {"params": tiny.params}, make_mesh(8, 1, 1)
    masses, *_ = PromptRunner(lens_function(Decoder(tiny.config)), variables, mesh, 8)(
        variables, PROMPTS, pad_label_sets(LABELS)
    )
    queries = [LabelQuery(prompt, ()) for prompt in PROMPTS]
    scores = Scorer(Decoder(tiny.config), variables, mesh).score(variables, queries, LABELS).prefix_mass
    np.testing.assert_allclose(masses[:, -1, : len(LABELS)], scores, atol=1e-6)


def test_a_class_survives_if_its_two_words_can_be_told_apart():
    sets = WordSets(english=[[1, 2], [3, 4]], language=[[2, 5], [6]])
    assert surviving_classes(sets, "sv") == [False, True]
    assert surviving_classes(WordSets([[1, 2], [3]], [[1, 2], [3]]), "en") == [True, True]
    assert surviving_classes(WordSets([[1], []], [[], [2]]), "zh") == [False, False]
    assert surviving_classes(WordSets([[], [1]], [[], [1]]), "en") == [False, True]


def lens_rows(latent: list[list[float]], survives: list[bool]) -> LensRows:
    array = np.array(latent, np.float32)
    return LensRows(array, array / 2, array, array, array * 10, np.array(survives))


def test_means_leave_out_rows_that_do_not_survive():
    lens = {
        "is": lens_rows([[0.1, 0.5], [0.9, 0.9], [0.3, 0.7]], [True, False, True]),
        "de": lens_rows([[0.2, 0.4]], [False]),
    }
    arrays, document = lens_arrays(lens), lens_document(lens)
    np.testing.assert_allclose(arrays["latent_mean"], [[0.2, 0.6], [np.nan, np.nan]], rtol=1e-6)
    # Two samples 0.2 apart: deviation 0.1 * sqrt(2), so the half-width is 1.96 * 0.1.
    np.testing.assert_allclose(arrays["latent_half_width"][0], [0.196, 0.196], rtol=1e-5)
    np.testing.assert_allclose(arrays["entropy_mean"], [[2, 6], [np.nan, np.nan]], rtol=1e-6)
    assert document["surviving_rows"] == {"is": 2, "de": 0} and document["rows"] == {"is": 3, "de": 1}
    assert document["languages_without_rows"] == ["de"]
    assert document["layer"] == [1, 2]


def test_no_surviving_row_in_any_language_is_an_error():
    with pytest.raises(InputError, match="no row survives in de, nl"):
        lens_document({code: lens_rows([[0.1]], [False]) for code in ("de", "nl")})


def test_files_of_the_lens(tmp_path: Path):
    exemplars = tiny_world.write_data(tmp_path)
    data = ProbeData(tmp_path, exemplars, tiny_world.byte_tokenizer(), slice(0, 5))
    variables, mesh = tiny_world.variables(), make_mesh(8, 1, 1)
    document = write_logit_lens(
        ProbeRun(tmp_path / "out", tiny_world.DECODER, variables, mesh, data, ["en", "de", "zh"], 8, {"model": "tiny"})
    )
    assert json.loads((tmp_path / "out/logit_lens.json").read_text()) == document
    # In bytes, German words begin as the English ones do; Chinese shares nothing.
    assert document["surviving_rows"] == {"en": 5, "de": 0, "zh": 5}
    assert document["model"] == "tiny"
    with np.load(tmp_path / "out/logit_lens.npz") as arrays:
        assert set(arrays) == set(document["axes"])
        assert all(array.shape == (3, 3) for array in arrays.values())
        assert all(np.isnan(array[1]).all() and np.isfinite(array[[0, 2]]).all() for array in arrays.values())
        lens = dict(arrays)
    # The last layer again, scored row by row: gold class of each row, and both words together.
    rows = read_task_rows(tmp_path, TASKS["emotion"], "zh", "test", data.rows)
    queries = label_queries(rows, exemplars, data.tokenizer, "in_language", "study")
    sets = word_sets(data, "zh")
    scores = Scorer(tiny_world.DECODER, variables, mesh).score(variables, queries, sets.all()).prefix_mass
    gold = [TASKS["emotion"].classes.index(row.gold_class) for row in rows]
    last = {
        "latent": np.mean([scores[i, c] for i, c in enumerate(gold)]),
        "out": np.mean([scores[i, 2 + c] for i, c in enumerate(gold)]),
        "all_possible_latent": scores[:, 4].mean(),
        "all_possible_out": scores[:, 5].mean(),
    }
    assert {name: lens[f"{name}_mean"][2, -1] for name in last} == pytest.approx(last, abs=1e-6)
