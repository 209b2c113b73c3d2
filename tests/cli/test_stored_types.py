"""The base as its checkpoint stores it: evaluated, tuned, probed and exported from a folder of bfloat16 weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxalign.configuration import config_from_flags
from jaxalign.loading import merged
from jaxalign.log import warn
from jaxalign.model import architectures, weights
from jaxalign.verbs.plan import stored_type
from jaxalign.verbs.settings import load_model
from tests.cli.conftest import TRAIN
from tests.cli.test_plan import TOY

FEW = ("--config.languages=de,th", "--config.rows=0:2")
SHORT = ("--config.steps=4", "--config.heldout=0", "--config.loss.chunk=512", "--config.lora.targets=v_proj,gate_proj")
TOKENS = np.arange(1, 40, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def model(model_folder, tmp_path_factory):
    """The tests' model as most are released: in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16") / "model"
    transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(folder)
    for file in model_folder.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def tuned(ok, model, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    ok(*TRAIN, *SHORT, model=model, out=run)
    return run


def loaded(folder, *flags):
    return load_model(config_from_flags([f"--config.model={folder}", *flags], "base"))


def types(params):
    return {leaf.dtype.name for leaf in jax.tree.leaves(params)}


def recorded(folder):
    results = json.loads((folder / "results.json").read_text())
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return results["param_dtype"], [record["prefix_mass"] for record in predictions]


def test_the_base_keeps_its_type_and_the_masses_are_those_of_float32(ok, model, tmp_path):
    assert types(loaded(model).params) == {"bfloat16"}
    assert types(loaded(model, "--config.param_dtype=float32").params) == {"float32"}
    found = {}
    for stored in ("auto", "float32"):
        flags = (f"--config.param_dtype={stored}", f"--config.out={tmp_path / stored}")
        ok("evaluate", *FEW, *flags, model=model)
        found[stored] = recorded(tmp_path / stored)
    assert (found["auto"][0], found["float32"][0]) == ("bfloat16", "float32")
    for ours, theirs in zip(found["auto"][1], found["float32"][1], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_what_was_tuned_is_not_rounded_away(model, tuned, tmp_path):
    """Merged for evaluation, kernels with an adapter are as wide as the arithmetic; the rest stays as it is stored."""
    adapted = loaded(model, f"--config.adapter={tuned}")
    params = merged(adapted, "auto").params["layers"]
    assert types(params["self_attn"]["v_proj"]) == types(params["mlp"]["gate_proj"]) == {"float32"}
    assert types(params["mlp"]["up_proj"]) == types(params["self_attn"]["q_proj"]) == {"bfloat16"}
    exact = merged(loaded(model, f"--config.adapter={tuned}", "--config.param_dtype=float32"), "float32").params
    np.testing.assert_array_equal(params["mlp"]["gate_proj"]["kernel"], exact["layers"]["mlp"]["gate_proj"]["kernel"])
    narrow = merged(loaded(model, f"--config.adapter={tuned}", "--config.dtype=bfloat16"), "auto")
    assert types(narrow.params) == {"bfloat16"}


def test_tuning_a_bfloat16_base(model, tuned):
    """Adapters are float32 whatever the base is; the record says what auto has found."""
    document = json.loads((tuned / "run.json").read_text())
    assert document["config"]["param_dtype"] == "bfloat16"
    assert types(loaded(model, f"--config.adapter={tuned}").adapter.tree) == {"float32"}  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("kind", ["lora", "all"])
def test_a_merged_export_keeps_the_types_of_the_base_and_is_sharded(ok, model, tuned, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 10_000)
    run = tuned
    if kind == "all":
        run = tmp_path / "run"
        ok(*TRAIN, *SHORT, tune="all", model=model, out=run)
        assert types(loaded(model, f"--config.adapter={run}").params) == {"float32"}
    out = tmp_path / "merged"
    ok("export", run, format="merged", model=model, out=out)
    names = {file.name for file in out.glob("*.safetensors")}
    assert len(names) > 1 and f"model-00001-of-{len(names):05}.safetensors" in names
    assert {tensor.dtype.name for name in names for tensor in load_file(out / name).values()} == {"bfloat16"}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["holds"] is True and names < certificate["files"].keys()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.bfloat16
    if kind == "lora":
        ok("export", run, out=tmp_path / "adapter")
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        merged_by_peft = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
        state = theirs.state_dict()
        for name, tensor in merged_by_peft.state_dict().items():
            # A sum that lies between two bfloat16s may fall to either.
            torch.testing.assert_close(state[name].float(), tensor, rtol=2**-7, atol=0.0)


def test_a_base_of_mixed_types_is_exported_as_it_is(ok, model, tuned, tmp_path):
    """transformers loads such a file in float32 all through, so config.json says so; no weight is rounded anew."""
    mixed = shutil.copytree(model, tmp_path / "mixed")
    tensors = load_file(mixed / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})
    assert loaded(mixed).param_dtype == "bfloat16+float32"
    out = tmp_path / "merged"
    ok("export", tuned, format="merged", model=mixed, out=out)
    found = {name: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    assert found == {name: tensor.dtype for name, tensor in tensors.items()}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    assert json.loads((out / "certificate.json").read_text())["holds"] is True


def test_neurons_transplanted_into_a_bfloat16_base(ok, model, tuned, tmp_path):
    languages = ("--config.languages=en,de", "--config.rows=0:4", f"--config.out={tmp_path}")
    ok("probe", "--config.probes=logit_lens,attribution,pca,geometry,neurons", *languages, model=model)
    ok("neurons", tmp_path / "neuron_counts.npz", "--config.neurons.top_rate=0.2", out=tmp_path)
    selection = f"--config.neurons.selection={tmp_path / 'selection.npz'}"
    tuned_flags = (f"--config.adapter={tuned}", "--config.probes=transplant", selection)
    ok("probe", *tuned_flags, *languages[:2], model=model, out=tmp_path / "after")
    nats = np.load(tmp_path / "after" / "transplant.npz")["nats"]
    assert np.isfinite(nats).all() and not np.array_equal(nats[0], nats[1])


def test_a_plan_counts_the_type_that_is_stored(model, tmp_path):
    assert stored_type(str(model)) == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(TOY | {"torch_dtype": "float16"}))
    assert stored_type(str(tmp_path)) == "float16"
    (tmp_path / "config.json").write_text(json.dumps(TOY))
    assert stored_type(str(tmp_path)) == "float32"
    found = {name: stored_type(name) for name in architectures.names()}
    assert found["mistral-7b-v0.1"] == "bfloat16" and found["llama-2-7b"] == "float16"


def test_a_head_of_its_own_is_used_throughout(ok, model, tuned, tmp_path, jaxalign):
    """LLaMA-Factory 10560: config.json ties, the file holds another head; evaluated and exported untied."""
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    (other / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    untied = loaded(other)
    assert not untied.config.tied_head and not untied.decoder.config.tied_head
    jax.tree.map(np.testing.assert_array_equal, untied.params, loaded(model).params)
    warn.cache_clear()
    out = tmp_path / "merged"
    code, _, err = jaxalign("export", tuned, format="merged", model=other, out=out)
    assert code == 0 and "ties the head" in err, err
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert jnp.bfloat16 == load_file(out / "model.safetensors")["lm_head.weight"].dtype
