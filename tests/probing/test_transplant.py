"""Transplants of language neurons in a model whose neurons were planted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.probing.masking import check_tuned, write_transplant
from jaxalign.probing.probe import ProbeData, ProbeRun
from jaxalign.reporting.folders import read_probe
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.probing.language_world import PLANTED, planted_variables, write_languages

OWN = {code: np.array(pairs, np.int32) for code, pairs in PLANTED.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ProbeRun:
    """The base model: as the planted one, but its planted neurons write nothing."""
    folder, variables = tmp_path_factory.mktemp("transplant"), planted_variables()
    for pairs in PLANTED.values():
        for layer, index in pairs:
            variables["params"]["layers"]["mlp"]["down_proj"]["kernel"][layer, index] = 0
    data = ProbeData(folder, write_languages(folder), tiny_world.byte_tokenizer(), slice(0, 6))
    return ProbeRun(
        folder, tiny_world.DECODER, variables, make_mesh(2, 2, 2), data, ["en", "de", "zh"], 8, {"model": "tiny"}
    )


def test_a_language_s_tuned_neurons_do_in_the_base_what_tuning_did_for_it(run: ProbeRun):
    document = write_transplant(run, planted_variables()["params"], OWN, seed=0)
    assert json.loads((run.out / "transplant.json").read_text()) == document
    assert document["weights"][:3] == ["base", "tuned", "en"] and len(document["weights"]) == 8
    assert document["model"] == "tiny" and read_probe(run.out, "transplant") is not None
    with np.load(run.out / "transplant.npz") as stored:
        arrays = dict(stored)
    assert set(arrays) == set(document["axes"])
    base, tuned, *transplants = arrays["nats"]
    assert (tuned < base).all()
    for k in range(3):
        for language in range(3):
            # The other planted neurons are silent on these texts, to the last bit.
            np.testing.assert_array_equal(transplants[k][language], (tuned if k == language else base)[language])
    change = arrays["log_perplexity_change"]
    assert change.shape == (3, 3, 3, 3) and (np.diagonal(change[0, :, :, 0]) < -0.01).all()


def test_a_tuning_of_attention_alone_is_refused(run: ProbeRun):
    tuned = planted_variables()["params"]
    base = {**tuned, "layers": {**tuned["layers"], "self_attn": run.variables["params"]["layers"]["self_attn"]}}
    with pytest.raises(InputError, match="changed no feed-forward weight"):
        check_tuned(base, tuned)
    other = replace(run, variables={"params": base}, out=Path(run.out / "none"))
    with pytest.raises(InputError, match=r"lora\.targets=gate_proj,up_proj,down_proj"):
        write_transplant(other, tuned, OWN, seed=0)
    assert not (run.out / "none").exists()
