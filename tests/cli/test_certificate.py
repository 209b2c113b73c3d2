"""`certificate.json`: what export and verify say of a folder, and that a wrong one is refused and not left behind."""

import hashlib
import json
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

from jaxalign import loading
from jaxalign.verbs import export


def read(folder):
    return json.loads((folder / "certificate.json").read_text())


def compared(found):
    return {name: found[name] for name in ("logits", "merged_against_adapter", "against_the_run") if name in found}


def test_the_certificate_of_an_adapter(adapter, model_folder):
    found = read(adapter)
    assert found["holds"] is True and found["faults"] == [] and found["base_model"] == model_folder.name
    assert set(found["independent"]) == {"transformers", "torch", "peft"}
    assert (found["adapter"]["rank"], found["adapter"]["alpha"], found["adapter"]["scale"]) == (8, 16, 2.0)
    assert found["independent_scale"] == 2.0
    assert found["tied_head"] == {"config": False, "independent": False}
    assert set(compared(found)) == {"logits", "merged_against_adapter", "against_the_run"}
    for difference in compared(found).values():
        assert difference["mean_difference"] <= difference["largest_difference"] <= difference["bound"]
    # What the adapter does is far above what is allowed: the comparison could tell.
    assert found["effect_of_the_adapter"]["largest_difference"] > 10 * found["logits"]["bound"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert found["files"][name] == hashlib.sha256((adapter / name).read_bytes()).hexdigest()


def test_its_figures_are_those_of_peft(adapter, model_folder):
    """The largest logit of the tokens that were compared, in torch without a line of ours."""
    found = read(adapter)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = export.Tokenizer(transformers.AutoTokenizer.from_pretrained(model_folder))
    tokens = torch.from_numpy(export.some_tokens(tokenizer)).long()
    with torch.no_grad():
        plain = base(tokens).logits
        adapted = peft.PeftModel.from_pretrained(base, str(adapter))(tokens).logits
    assert found["logits"]["largest_logit"] == pytest.approx(float(adapted.abs().max()), rel=1e-5)
    effect = float((adapted - plain).abs().max())
    assert found["effect_of_the_adapter"]["largest_difference"] == pytest.approx(effect, rel=1e-3)


@pytest.fixture(scope="module")
def merged(ok, run, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "model"
    flags = (f"--config.model={model_folder}", "--config.format=merged", "--config.param_dtype=bfloat16")
    ok("export", run, *flags, out=folder)
    return folder


def test_the_certificate_of_a_merged_model(merged):
    found = read(merged)
    assert found["holds"] is True
    # Read back in bfloat16 by both sides, so float32's bound; against the unmerged adapter there is the rounding.
    assert found["logits"]["largest_difference"] < found["logits"]["bound"] < 1e-3
    assert found["merged_against_adapter"]["largest_difference"] > found["logits"]["bound"]
    assert {key: found[key] for key in found["base_tokenizer"]} == found["base_tokenizer"]
    assert set(found["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_other_libraries_load_both_without_a_warning(adapter, merged, model_folder, caplog):
    logging.enable_propagation()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            transformers.AutoModelForCausalLM.from_pretrained(merged)
            transformers.AutoTokenizer.from_pretrained(merged)
            base = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
            peft.PeftModel.from_pretrained(base, str(adapter))
    finally:
        logging.disable_propagation()
    # The one that peft 0.21 makes of every model under transformers 5.24.
    said = [str(warning.message) for warning in caught if "is_gradient_checkpointing" not in str(warning.message)]
    assert said == [] and [record.getMessage() for record in caplog.records] == []


def test_verify_says_the_same_of_folders_as_they_are(ok, adapter, merged, model_folder, tmp_path):
    for folder in (adapter, merged, model_folder):
        out = tmp_path / folder.name
        assert "certificate" in ok("verify", folder, out=out)
        again = read(out)
        assert again["holds"] is True
        if folder != model_folder:
            assert again["logits"] == read(folder)["logits"] and again["files"] == read(folder)["files"]
    assert not (model_folder / "certificate.json").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_changed_adapter_is_noticed(ok, refused, jaxalign, adapter, model_folder, name, tmp_path):
    """One byte that leaves a file that can be read: neither scored nor certified anew."""
    copy = shutil.copytree(adapter, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    if name.endswith("json"):
        content[-1:] = b" "
    else:
        content[-3] ^= 1  # of the last number
    (copy / name).write_bytes(content)
    before = (copy / "certificate.json").read_bytes()
    evaluate = ("evaluate", f"--config.model={model_folder}", "--config.languages=en", "--config.rows=0:2")
    for command in (("verify", copy), (*evaluate, f"--config.adapter={copy}")):
        assert f"{name} changed since certificate.json" in refused(*command)
    code, _, err = jaxalign("verify", copy)
    assert code == 2 and name in err and (copy / "certificate.json").read_bytes() == before
    (copy / "certificate.json").unlink()  # the change is meant
    ok("verify", copy, model=model_folder)
    assert read(copy)["files"][name] != read(adapter)["files"][name]
    ok(*evaluate, adapter=copy, out=tmp_path / "scores")


def test_a_changed_or_missing_file_of_a_model_is_noticed(refused, merged, tmp_path):
    copy = shutil.copytree(merged, tmp_path / "copy")
    (copy / "README.md").write_text("mine")
    (copy / "notes.txt").write_text("mine")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    (copy / "generation_config.json").unlink()
    message = refused("verify", copy)
    assert f"generation_config.json, {copy / 'model.safetensors'} changed" in message and "notes" not in message


def test_what_verify_refuses(refused, tmp_path):
    assert "no adapter_config.json" in refused("verify", tmp_path)


def test_an_adapter_written_wrong_is_not_exported(refused, run, model_folder, monkeypatch):
    """One that peft loads, and another than the run's."""
    save = export.save_adapter

    def save_wrong(folder, *given):
        save(folder, *given)
        tensors = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] = np.ascontiguousarray(tensors[name][::-1])
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "save_adapter", save_wrong)
    message = refused("export", run)
    assert "against the run differ" in message and "nothing was written" in message


def test_a_model_merged_wrong_is_not_exported(refused, run, model_folder, monkeypatch):
    monkeypatch.setattr(loading, "merged", lambda model, _: model)  # the base alone
    command = ("export", run, "--config.format=merged", f"--config.model={model_folder}")
    assert "merged against adapter differ" in refused(*command)


def test_what_other_libraries_read_otherwise_is_not_exported(jaxalign, refused, adapter, run, monkeypatch, tmp_path):
    read_rightly = export.independent_run

    def read_otherwise(model, folder, tokens):
        """As a peft would that takes 17 for alpha."""
        copy = shutil.copytree(folder, tmp_path / "otherwise", dirs_exist_ok=True)
        document = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(document | {"lora_alpha": 17}))
        return read_rightly(model, copy, tokens)

    monkeypatch.setattr(export, "independent_run", read_otherwise)
    message = refused("export", run)
    assert "logits differ" in message and "2.125 in peft" in message
    copy = shutil.copytree(adapter, tmp_path / "copy")
    code, _, err = jaxalign("verify", copy)
    assert code == 2 and "does not hold" in err
    assert read(copy)["holds"] is False and len(read(copy)["faults"]) == 2


def test_logits_that_are_no_numbers_do_not_hold(adapter):
    found = read(adapter)
    found["logits"]["largest_difference"] = float("nan")
    assert export.faults_of(found)
    found = read(adapter) | {"tied_head": {"config": True, "independent": False}}
    assert "tied" in export.faults_of(found)[0]
    found = read(adapter) | {"base_tokenizer": {"tokenizer_sha256": "another"}}
    assert "tokenizer" in export.faults_of(found)[0]


def test_without_the_extra_it_is_not_checked(ok, run, adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert "not checked" in ok("export", run, out=tmp_path / "adapter")
    found = read(tmp_path / "adapter")
    assert found["holds"] == "not checked" and "jaxalign[verify]" in found["reason"]
    assert found["adapter"] == read(adapter)["adapter"] and found["files"] == read(adapter)["files"]


def test_a_certificate_stays_where_nothing_can_be_compared(ok, adapter, tmp_path):
    """An adapter that was sent on names its base by a way that leads nowhere here."""
    sent = shutil.copytree(adapter, tmp_path / "elsewhere" / "adapter")
    assert "stays as it is" in ok("verify", sent)
    assert read(sent) == read(adapter) and read(sent)["holds"] is True


def test_without_the_base_it_is_not_checked(ok, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    facts = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(facts | {"model": str(tmp_path / "gone")}))
    ok("export", moved, out=tmp_path / "adapter")
    found = read(tmp_path / "adapter")
    assert found["holds"] == "not checked" and found["reason"].startswith("gone: no such folder")
    assert "not checked" in (tmp_path / "adapter" / "README.md").read_text()
