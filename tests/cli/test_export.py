"""`jaxalign export`: runs of every kind as other libraries read them."""

import json
import platform
import shutil
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from jaxalign.configuration import config_with
from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError
from jaxalign.files import whole_folder
from jaxalign.loading import Model
from jaxalign.model.peft import load_adapter
from jaxalign.training.checkpoint import read_adapter
from jaxalign.verbs.export import logits_of, name_from, save_tokenizer, token_ids
from jaxalign.verbs.settings import load_model
from tests.cli.conftest import TRAIN
from tests.data.test_tokenizer import save_sentence_piece
from tests.data.tiny_sentence_piece import USER_DEFINED, sentence_piece_model
from tests.data.tiny_tokenizers import byte_level
from tests.model.vision import save_vision_model

TOKENS = np.arange(1, 40, dtype=np.int32)[None]
ALL_TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
KINDS = {
    "dora": (
        "--config.lora.dora=true",
        "--config.lora.rslora=true",
        f"--config.lora.targets={ALL_TARGETS}",
        "--config.param_dtype=int8",
    ),
    "all": ("--config.tune=all",),
}
"""Beside `run`, which is plain LoRA."""


@pytest.fixture(scope="module")
def runs(ok, run, model_folder, tmp_path_factory) -> dict[str, Path]:
    """A run of each kind on the same model."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, flags in KINDS.items():
        short = ("--config.steps=4", "--config.heldout=0", "--config.loss.chunk=512")
        ok(*TRAIN, *flags, *short, model=model_folder, out=folder / kind)
    return {"lora": run} | {kind: folder / kind for kind in KINDS}


def our_logits(model_folder: Path, run: Path) -> np.ndarray:
    """The base model with what the run tuned, unmerged."""
    return logits_of(load_model(config_with({"model": str(model_folder), "adapter": str(run)})), TOKENS)


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


def in_transformers(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["lora", *KINDS])
def test_the_merged_model_in_transformers_is_base_plus_adapter(ok, model_folder, runs, kind, tmp_path):
    out = tmp_path / "merged"
    ok("export", runs[kind], format="merged", model=model_folder, out=out)
    merged, base = in_transformers(out), in_transformers(model_folder)
    assert merged.dtype == torch.float32
    logits = torch_logits(merged)
    # Float32 in both; the update is added to the weights here, to their products there. Logits are of order 1.
    np.testing.assert_allclose(logits, our_logits(model_folder, runs[kind]), atol=1e-4)
    assert np.abs(logits - torch_logits(base)).max() > 1e-2
    if kind != "all":  # and without a line of ours
        ok("export", runs[kind], out=tmp_path / "adapter")
        adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        np.testing.assert_allclose(logits, torch_logits(adapted), atol=1e-4)


def test_the_merged_folder_is_a_whole_model(ok, model_folder, run, tmp_path):
    command = ("export", run, "--config.format=merged", f"--config.model={model_folder}")
    ok(*command, param_dtype="bfloat16", out=tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    ours, base = tmp_path / "merged", model_folder
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (ours / name).read_bytes() == (base / name).read_bytes()
    assert load_tokenizer(ours).fingerprint == load_tokenizer(base).fingerprint
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, base)]
    assert configs[0]["bos_token_id"] == configs[1]["bos_token_id"] == 1
    assert in_transformers(ours).dtype == torch.bfloat16
    ok("evaluate", model=ours, languages="de", rows="0:2", out=tmp_path)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_exported_adapter_reads_back_bit_for_bit(ok, model_folder, runs, kind, tmp_path):
    ok("export", runs[kind], out=tmp_path)
    model = load_model(config_with({"model": str(model_folder)}))
    (lora, tree), (lora_before, tree_before) = load_adapter(tmp_path, model.config), read_adapter(runs[kind])
    assert lora == lora_before and lora.dora == (kind == "dora")
    assert jax.tree.structure(tree) == jax.tree.structure(tree_before)
    jax.tree.map(np.testing.assert_array_equal, tree, tree_before)


def base_of(folder: Path) -> str:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_the_base_is_named_after_its_weights_were_compared(ok, jaxalign, refused, model_folder, run, tmp_path):
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    code, _, err = jaxalign("export", run, model=copy, out=tmp_path / "adapter")
    assert code == 0 and base_of(tmp_path / "adapter") == "../copy"
    assert "names its base ../copy, a place that others do not have" in err
    assert f'from_pretrained("{base_of(tmp_path / "adapter")}")' in (tmp_path / "adapter" / "README.md").read_text()
    ok("verify", tmp_path / "adapter")  # found from where the adapter lies
    other = transformers.AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        other.model.norm.weight[3] += 2**-10
    other.save_pretrained(copy)
    for kind in ("peft", "merged"):
        message = refused("export", run, model=copy, format=kind)
        assert "not the weights that" in message and str(copy) in message
    assert base_of(tmp_path / "adapter") == "../copy"


def test_quantised_weights_of_another_device_are_not_compared(ok, jaxalign, model_folder, runs, tmp_path):
    """Their scales may differ in the last bit."""
    copy, run = shutil.copytree(model_folder, tmp_path / "copy"), shutil.copytree(runs["dora"], tmp_path / "run")
    command = ("export", run, f"--config.model={copy}")
    assert "not compared" not in jaxalign(*command, out=tmp_path / "here")[2]
    document = json.loads((run / "run.json").read_text())
    document["versions"]["device"] = "TPU v5e"
    (run / "run.json").write_text(json.dumps(document))
    code, _, err = jaxalign(*command, out=tmp_path / "there")
    assert code == 0 and "int8 weights were made on another device (TPU v5e)" in err


def test_a_gemma_with_vision_is_tuned_exported_and_read_back(ok, tmp_path):
    """vLLM 34186: the names must be those of the class that AutoModelForCausalLM makes of the base."""
    tokenizer = byte_level(special=("<pad>",))
    base = save_vision_model(tmp_path / "base", vocabulary=len(tokenizer))
    tokenizer.save_pretrained(base)
    short = ("--config.steps=4", "--config.heldout=0", "--config.loss.chunk=512")
    ok(*TRAIN, *short, model=base, out=tmp_path / "run")
    ok("export", tmp_path / "run", out=tmp_path / "adapter")
    certificate = json.loads((tmp_path / "adapter" / "certificate.json").read_text())
    assert certificate["holds"] is True, certificate["faults"]
    assert certificate["effect_of_the_adapter"]["largest_difference"] > 10 * certificate["logits"]["bound"]
    assert certificate["adapter"]["targets"] == ["q_proj", "v_proj"]
    command = ("evaluate", f"--config.model={base}", "--config.languages=de", "--config.rows=0:2")
    for name in ("run", "adapter"):
        ok(*command, adapter=tmp_path / name, out=tmp_path / f"{name}_scores")
    first, second = ((tmp_path / f"{name}_scores" / "predictions.jsonl").read_bytes() for name in ("run", "adapter"))
    assert first == second
    # The base gone, the run knows.
    shutil.move(base, tmp_path / "elsewhere")
    ok("export", tmp_path / "run", out=tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_what_is_published_names_no_place(ok, jaxalign, model_folder, tmp_path, monkeypatch):
    """Absolute paths within home and beside it; records write home as ~, and can be read from there."""
    home, beside = tmp_path / "home" / "alice", tmp_path / "beside"
    beside.mkdir()
    home.mkdir(parents=True)
    shutil.copytree(model_folder, home / "llama")
    monkeypatch.setenv("HOME", str(home))
    pairs, base = beside / "pairs.csv", f"--config.model={home / 'llama'}"
    rows = [f"Frage {i},Question {i},de,en" for i in range(24)]
    pairs.write_text("\n".join(["source,target,source_language,target_language", *rows]) + "\n")
    short = ("--config.steps=2", "--config.heldout=0", "--config.log.tensorboard=true")
    ok("train", pairs, base, *short, out=home / "run")
    scores = ("evaluate", base, "--config.languages=de", "--config.rows=0:2", "--config.tasks=emotion")
    ok(*scores, out=beside / "before")
    ok(*scores, adapter=home / "run", out=beside / "after")
    ok("export", home / "run", beside / "before", beside / "after", out=home / "adapter")
    ok("report", beside / "before", beside / "after", out=home / "report.html")
    ok("compare", beside / "before", beside / "after", out=home / "gains")
    assert base_of(home / "adapter") == "../llama"
    published = [
        *(home / "adapter").glob("*.json"),
        home / "adapter" / "README.md",
        home / "report.html",
        *(home / "gains").iterdir(),
    ]
    assert len(published) > 6
    for file in published:
        assert str(tmp_path) not in file.read_text() and "~/" not in file.read_text(), file
    records = [*home.glob("run/*.json*"), *beside.rglob("*.json")]
    assert any("~/llama" in file.read_text() for file in records)
    for file in records:
        assert str(home) not in file.read_text(), file
    for file in (home / "run").rglob("*"):
        assert platform.node() not in file.name
        # Orbax says in this one where it saved.
        assert file.is_dir() or file.name == "commit_success.txt" or str(home).encode() not in file.read_bytes(), file
    # What a record says can be given back.
    ok(*scores[:1], *scores[2:], model="~/llama", adapter="~/run", out=beside / "after")


def test_a_way_through_the_folders_above_home_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    assert name_from(Path("/home/alice/out/adapter"), "~/models/llama") == "../../models/llama"
    assert name_from(Path("/data/adapters/one"), "/data/llama") == "../../llama"
    assert name_from(Path("/data/adapters/one"), "~/models/llama") == "llama"
    assert name_from(Path("/home/alice/adapter"), "/home/bob/llama") == "llama"
    assert name_from(Path("/home/alice/adapter"), "org/llama@c0ffee") == "org/llama@c0ffee"
    monkeypatch.chdir(tmp_path)  # a relative path that is not here looks like an id
    assert name_from(tmp_path / "out" / "adapter", "models/llama") == "../../models/llama"


def test_what_cannot_be_exported(refused, jaxalign, model_folder, run, runs, tmp_path):
    merged = ("export", run, "--config.format=merged")
    assert "peft or merged" in refused("export", run, format="gguf")
    assert "config.model is needed" in refused(*merged)
    assert "param_dtype=int8" in refused(*merged, model=model_folder, param_dtype="int8")
    assert "absent" in refused("export", tmp_path / "absent", format="merged", model=model_folder)
    assert "tuned all parameters" in refused("export", runs["all"])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    code, _, err = jaxalign(*merged, model=model_folder, out=taken)
    assert code == 2 and str(taken) in err
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("kept", [0, 6, -1])
def test_curves_that_lack_the_end_of_a_finished_run(refused, run, tmp_path, kept):
    """An earlier held-out loss would stand in the model card as that of what is exported."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:kept]))
    said = refused("export", copy)
    assert f"{file}: " in said and "the run is finished at step 10: the file is cut off" in said
    assert f"remove {copy / 'checkpoints' / '10'} and start the run again" in said


def test_the_tokenizer_of_a_gguf_file_is_written_anew(tmp_path):
    """Such a model is one file: there is no folder to copy from."""
    tokenizer = Tokenizer(byte_level(special=("<|pad|>",)))
    tokenizer.backend.pad_token = "<|pad|>"
    file = tmp_path / "model.gguf"
    file.touch()
    model = Model(file, config=None, tokenizer=tokenizer, mesh=None, params=None, decoder=None)  # pyright: ignore[reportArgumentType]: a tokenizer is all it takes
    out = tmp_path / "out"
    out.mkdir()
    save_tokenizer(model, out)
    assert load_tokenizer(out).fingerprint == tokenizer.fingerprint
    assert token_ids(model) == {"eos_token_id": 256, "pad_token_id": 257}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_tokenizer_of_scores_alone_is_written_so_that_others_read_the_same(tmp_path, family):
    """Of a tokenizer.model by itself transformers makes other merges, and so other ids than the tuned model knows."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    save_sentence_piece(base, sentence_piece_model(extra=[("<sep>", USER_DEFINED)]), family, add_bos_token=True)
    tokenizer = load_tokenizer(base)
    save_tokenizer(Model(base, config=None, tokenizer=tokenizer, mesh=None, params=None, decoder=None), out)  # pyright: ignore[reportArgumentType]: a tokenizer is all it takes
    assert (out / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    shutil.copyfile(base / "config.json", out / "config.json")
    theirs = AutoTokenizer.from_pretrained(out)
    for text in ("the  thing", "  a", "a<sep>in == the ", "\u03c0 \u00e9\n", ""):
        assert theirs(text)["input_ids"] == tokenizer.prompt_ids(text), text
    assert load_tokenizer(out).fingerprint == tokenizer.fingerprint


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), whole_folder(out) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    out.mkdir()  # an empty one is no loss
    with whole_folder(out) as folder:
        (folder / "whole.txt").write_text("whole")
        assert not any(out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "whole.txt").read_text() == "whole"
    with pytest.raises(InputError, match="something already"), whole_folder(out):
        pass
    shutil.rmtree(out)
    out.write_text("a file")
    with pytest.raises(InputError, match="something already"), whole_folder(out):
        pass
