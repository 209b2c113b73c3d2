"""Malformed files, for the verbs that read them: one line that names the file, exit code 2, and nothing is written.

Readers' own tests have every way to be wrong; here is one of each kind at every door, those among them where a file is
of the right form and yet no model, no adapter, no run: wrong types, numbers out of range, names that lead elsewhere.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gguf
import numpy as np
import pytest
from gguf import GGUFValueType
from safetensors.numpy import load_file, save_file

from jaxalign.files import MINI
from jaxalign.log import warn
from tests.model.test_gguf import gguf_tensors, tiny
from tests.reporting.folders import write_evaluation, write_lens, write_run

EVALUATE = ("evaluate", "--config.languages=en,de", "--config.rows=0:2")
PROBE = ("probe", "--config.languages=en,de", "--config.rows=0:4")
TRAIN = ("train", "--config.tasks=paws", "--config.build.sources=de", "--config.steps=2")
BUILD = ("data", "build", "--config.build.sources=de")
VERBS = {"evaluate": EVALUATE, "probe": PROBE, "train": TRAIN}
Spoil = Callable[[Path], object]

STUDY = '[{"input": "Wo?\\nTranslate the input from German to English:\\n", "answer": "Where?"}]'
HEADER = "source,target,source_language,target_language\n"
JSON_LINE = '{"source": "Wo?", "target": "Where?", "source_language": "de", "target_language": "en"}\n'


def written(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def changed(name: str, **fields: Any) -> Spoil:
    """Other fields in a JSON file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **fields}))

    return spoil


def without(pattern: str) -> Spoil:
    """The folder lacks the files of the pattern."""
    return lambda folder: [file.unlink() for file in folder.glob(pattern)]


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def spoilt(source: Path, place: Path, spoil: Spoil) -> Path:
    """A copy of a folder, spoilt."""
    spoil(shutil.copytree(source, place))
    return place


# Pairs


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("pairs.json", STUDY[:50], "line 1"),
        ("pairs.json", STUDY.replace("answer", "reply"), "row 0: no field 'answer'"),
        ("pairs.json", "", "empty"),
        ("pairs.json", '{"rows": []}', "row 0: a row of rows; pairs are read from"),
        ("pairs.json", STUDY.replace("German", "Klingon"), "row 0, field 'input': unknown language 'Klingon'"),
        ("pairs.jsonl", JSON_LINE + JSON_LINE.replace("Where?", ""), "row 1, field 'target': empty"),
        ("pairs.jsonl", JSON_LINE.replace("Wo?", "\\ud83d"), "row 0, field 'source': '\\ud83d' is half a character"),
        ("pairs.csv", HEADER.replace("target,", "source,", 1), "'source' more than once"),
        ("pairs.csv", HEADER + "Wo?,Where?,de\n", "3 columns"),
        ("pairs.csv", HEADER + "Wo?,Where?,dee,en\n", "row 0, field 'source_language'"),
        ("train.de", "Wo?\n", "1 lines"),
        ("other.de", "Wo?\nWann?\n", "other.en"),
        ("pairs.txt", "Wo?\nWann?\n", "suffix"),
    ],
)
def test_files_of_pairs(refused, tmp_path, model_folder, name, content, named):
    file = tmp_path / name
    file.write_text(content)
    (tmp_path / "train.en").write_text("Where?\nWhen?\n")
    message = refused("train", file, model=model_folder)
    assert name in message and named in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "set"),
        ({"notes.doc": "x"}, "neither files of pairs"),
        ({"dataset_info.json": "{}", "state.json": "[]"}, "does not load"),
        ([{"translation": {"de": "x"}}], "no text in en"),
        ([{"input": 3, "answer": "x"}], "row 0, field 'input': text is needed"),
    ],
)
def test_data_sets(refused, tmp_path, model_folder, content, named):
    """A folder of files, or the rows of a Hugging Face data set."""
    folder = tmp_path / "set"
    if isinstance(content, list):
        datasets.Dataset.from_list(content).save_to_disk(folder)
    elif content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    message = refused("train", folder, model=model_folder)
    assert str(folder) in message and named in message


# Task files and exemplars


@pytest.fixture
def data(tmp_path) -> Path:
    """A copy of the mini set to spoil."""
    return shutil.copytree(MINI, tmp_path / "data")


def edit(change: Callable[[list[dict]], object]) -> Spoil:
    """A change of a file's rows."""

    def spoil(file: Path) -> None:
        rows = json.loads(file.read_text())
        change(rows)
        file.write_text(json.dumps(rows))

    return spoil


SPOILT = [
    pytest.param(lambda file: file.write_text(file.read_text()[:500]), ["line"], id="truncated"),
    pytest.param(edit(lambda rows: rows[1].pop("input")), ["row 1", "'input'"], id="missing field"),
    pytest.param(edit(lambda rows: rows[0].update(answer="gut")), ["row 0", "gut"], id="no label"),
    pytest.param(edit(lambda rows: rows.pop()), ["rows"], id="fewer rows than English"),
    pytest.param(lambda file: file.unlink(), ["emotion_de"], id="no file"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILT)
def test_task_files(jaxalign, refused, data, model_folder, tmp_path, spoil, named):
    spoil(data / "ap_emotion" / "emotion_de40_test.json")
    spoil(data / "ap_emotion" / "emotion_de48_train.json")
    where = (f"--config.model={model_folder}", f"--config.data={data}")
    for command in (PROBE, (*EVALUATE, "--config.languages=de"), BUILD, ("train", *BUILD[2:])):
        message = refused(*command, *where)
        assert "emotion_de" in message and all(words in message for words in named)
    # The other language is evaluated, and the exit code says that it is not all.
    code, out, err = jaxalign(*EVALUATE, *where, out=tmp_path / "rest")
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in named)
    results = json.loads((tmp_path / "rest" / "results.json").read_text())
    assert [cell["language"] for cell in results["cells"]] == ["en"]
    assert [failure["language"] for failure in results["failures"]] == ["de"]
    assert "emotion  en" in out and "emotion  de  english failed: " in out


def test_exemplars(jaxalign, refused, data, model_folder, tmp_path):
    file = data / "exemplars.json"
    document = json.loads(file.read_text())
    del document["emotion"]["de"]
    where = (f"--config.model={model_folder}", f"--config.data={data}")
    file.write_text(json.dumps(document))
    assert "'de'" in refused(*PROBE, *where)
    code, _, err = jaxalign(*EVALUATE, *where, out=tmp_path / "rest")
    assert code == 2 and err.count("\n") == 1 and "exemplars.json" in err and "'de'" in err
    for content, named in ((json.dumps(document)[:999], "line"), ("[]", "object")):
        file.write_text(content)
        for verb in (EVALUATE, PROBE):
            message = refused(*verb, *where)
            assert "exemplars.json" in message and named in message


def test_what_is_no_error_is_warned_of_once(jaxalign, data, model_folder, tmp_path):
    """Also where a command reads the files several times over."""
    file, exemplars = data / "ap_emotion" / "emotion_de40_test.json", data / "exemplars.json"
    rows = json.loads(file.read_text())
    rows[0]["answer"] = {"positiv": "negativ", "negativ": "positiv"}[rows[0]["answer"]]
    file.write_text(json.dumps(rows))
    document = json.loads(exemplars.read_text())
    document["emotion"]["de"]["exemplars"][0]["text"] = rows[2]["input"]
    exemplars.write_text(json.dumps(document))
    for number, command in enumerate(((*EVALUATE, "--config.rows=0:4"), PROBE)):
        warn.cache_clear()
        where = (f"--config.model={model_folder}", f"--config.data={data}", f"--config.out={tmp_path / str(number)}")
        code, _, err = jaxalign(*command, *where)
        warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert code == 0 and [line.partition(" contradict")[0].partition(" are an")[0] for line in warnings] == [
            f"warning: {file}: 1 of 40 answers",
            f"warning: {exemplars}: 1 of 8 test rows",
        ]


def test_data_import_of_what_is_no_clone(refused, tmp_path):
    for clone in (tmp_path, tmp_path / "absent"):
        assert str(clone) in refused("data", "import", clone, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


# Models


MODEL = tiny("llama")
SIZE = MODEL.config.vocab_size
METADATA: dict[str, Any] = {
    "llama.context_length": MODEL.config.max_positions,
    "llama.embedding_length": MODEL.config.width,
    "llama.block_count": MODEL.config.layers,
    "llama.feed_forward_length": MODEL.config.mlp_dim,
    "llama.attention.head_count": MODEL.config.heads,
    "llama.attention.head_count_kv": MODEL.config.kv_heads,
    "llama.attention.layer_norm_rms_epsilon": MODEL.config.norm_eps,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*(f"t{index}" for index in range(SIZE - 2)), "t", "1"],
    "tokenizer.ggml.merges": ["t 1"],
}


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.alignment": "x"}, "general.alignment x"),
        ({"llama.block_count": 2**31}, "block_count must be a whole number from 1 to 1000"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "the tokenizer in it does not load"),
        ({"tokenizer.ggml.merges": ["q x"]}, "`q` out of vocabulary"),
    ],
)
def test_gguf_metadata(refused, tmp_path, metadata, named):
    """Read by a command that takes a model's config and tokenizer alone."""
    model, pairs = tmp_path / "model.gguf", tmp_path / "pairs.csv"
    pairs.write_text(HEADER + "Wo?,Where?,de,en\n")
    writer = gguf.GGUFWriter(model, "llama")
    kinds = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    for name, value in (METADATA | metadata).items():
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kinds[type(value)])
    for name, array in gguf_tensors(MODEL).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refused("data", "describe", pairs, model=model)
    assert "model.gguf" in message and named in message


ARRAYS_OF_ARRAYS = (
    b"GGUF"
    + struct.pack("<IQQQ", 3, 0, 1, 1)
    + b"k"
    + struct.pack("<I", GGUFValueType.ARRAY)
    + 20_000 * struct.pack("<IQ", GGUFValueType.ARRAY, 1)
)
"""Each holds one other."""


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_what_is_no_model(refused, tmp_path, verb):
    assert "config.model" in refused(*verb)
    assert "nowhere" in refused(*verb, model="nowhere")
    file = tmp_path / "model.gguf"
    for content in (b"", b"GG", b"no such thing" * 10, b"GGUF", b"GGUF\3\0\0\0\1" + bytes(15), ARRAYS_OF_ARRAYS):
        file.write_bytes(content)
        assert str(file) in refused(*verb, model=file)


def indexed(content: Any) -> Spoil:
    """Weights in a file that only an index leads to."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def with_tensors(name: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Spoil:
    """Other tensors in a safetensors file."""
    return lambda folder: save_file(change(load_file(folder / name)), folder / name)


MODELS = [
    pytest.param(without("tokenizer*"), "tokenizer", id="no tokenizer"),
    pytest.param(written("tokenizer.json", "[]"), "tokenizer", id="a tokenizer that is a list"),
    pytest.param(without("config.json"), "config.json", id="no config"),
    pytest.param(changed("config.json", frobnicate=1), "frobnicate", id="an unknown key"),
    pytest.param(changed("config.json", model_type="mamba"), "mamba", id="another family"),
    pytest.param(changed("config.json", vocab_size=200), "embedding of 200", id="a smaller vocabulary"),
    pytest.param(changed("config.json", num_hidden_layers=10**9), "from 1 to 1000, not 1000000000", id="layers"),
    pytest.param(without("model.safetensors"), "model.safetensors", id="no weights"),
    pytest.param(cut("model.safetensors"), "model.safetensors", id="truncated weights"),
    pytest.param(
        with_tensors("model.safetensors", lambda held: {k: v for k, v in held.items() if k != "model.norm.weight"}),
        "model.norm.weight",
        id="a missing tensor",
    ),
    pytest.param(indexed({"weight_map": {"x": "../model/model.safetensors"}}), "no weight_map", id="elsewhere"),
    pytest.param(indexed({"weight_map": {"x": "model-9.safetensors"}}), "model-9.safetensors", id="no such shard"),
]


@pytest.mark.parametrize(("spoil", "named"), MODELS)
def test_model_folders(refused, tmp_path, model_folder, spoil, named):
    folder = spoilt(model_folder, tmp_path / "model", spoil)
    for verb in VERBS.values():
        message = refused(*verb, model=folder)
        assert str(folder) in message and named in message


# Adapters: PEFT folders, and training runs


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_what_is_no_adapter_or_another_model_s(refused, tmp_path, model_folder, other_model_folder, run, adapter, verb):
    command = (*verb, f"--config.model={model_folder}")
    assert "absent" in refused(*command, adapter=tmp_path / "absent")
    assert "adapter_config.json" in refused(*command, adapter=model_folder)
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint yet" in refused(*command, adapter=tmp_path / "started")
    for name, spoil in {"cut": cut, "lacking": without}.items():
        folder = spoilt(adapter, tmp_path / name, spoil("adapter_model.safetensors"))
        assert str(folder / "adapter_model.safetensors") in refused(*command, adapter=folder)
    for other in (run, adapter):
        message = refused(*verb, model=other_model_folder, adapter=other)
        assert str(other) in message and "model" in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (changed("adapter_config.json", r=10**9), "wrong tensors"),
        (changed("adapter_config.json", lora_alpha=float("inf")), "lora_alpha must be a positive number"),
        (changed("adapter_config.json", target_modules=["q_proj", {}]), "target_modules"),
        (
            changed("adapter_config.json", layers_to_transform=0),
            "layers_to_transform 0: q_proj has an adapter in 1 of 2",
        ),
        (written("adapter_config.json", "[]"), "one JSON object"),
        (
            with_tensors("adapter_model.safetensors", lambda held: {k: v.astype(np.int32) for k, v in held.items()}),
            "is stored as I32, which is not supported",
        ),
    ],
)
def test_peft_folders(refused, tmp_path, model_folder, adapter, spoil, named):
    folder = spoilt(adapter, tmp_path / "adapter", spoil)
    (folder / "certificate.json").unlink()  # which would tell that a file changed
    message = refused(*EVALUATE, model=model_folder, adapter=folder)
    assert str(folder) in message and named in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("adapter_config.json", "[]"), "an object is needed"),
        (changed("adapter_config.json", base_model_name_or_path=3), "names no model"),
        (changed("adapter_config.json", r=None), "no LoRA adapter"),
        (written("adapter_model.safetensors", "x"), "safetensors"),
    ],
)
def test_what_verify_cannot_read(refused, tmp_path, adapter, spoil, named):
    folder = spoilt(adapter, tmp_path / "adapter", spoil)
    (folder / "certificate.json").unlink()
    message = refused("verify", folder)
    assert str(folder) in message and named in message


def another_record(folder: Path) -> None:
    """JSON, and not what a checkpoint says of its run."""
    (record,) = folder.glob("checkpoints/*/record/metadata")
    record.write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "named", "is_exported"),
    [
        (written("run.json", "{}"), "run.json: no field 'languages'", False),
        (changed("run.json", languages={"sources": ["de"], "targets": ["en"], "seen": 3}), "field 'seen'", False),
        (another_record, "its record is not one that was saved", False),
        (written("run.json", "[]"), "run.json: an object is needed", True),
        (changed("run.json", files="x"), "field 'files': an array is needed", True),
        (changed("run.json", config={}), "run.json, config: no field 'tune'", True),
        (written("metrics.jsonl", '{"step": 1, "loss": "x"}\n'), "field 'loss': a number is needed", True),
        (written("metrics.jsonl", '{"loss": 1}\n'), "row 0: a JSON object with its step is needed", True),
        (cut("run.json"), "run.json", True),
    ],
)
def test_runs(refused, tmp_path, model_folder, run, spoil, named, is_exported):
    """As adapters, and as what is exported."""
    folder = spoilt(run, tmp_path / "run", spoil)
    evaluate = (*EVALUATE, f"--config.model={model_folder}", f"--config.adapter={folder}")
    message = refused(*(("export", folder) if is_exported else evaluate))
    assert str(folder) in message and named in message


def test_export_of_what_is_no_run(refused, run, tmp_path):
    assert str(tmp_path) in refused("export", tmp_path)
    assert "absent" in refused("export", tmp_path / "absent")
    started = tmp_path / "started"
    shutil.copytree(run, started, ignore=lambda folder, names: names if Path(folder).name == "checkpoints" else [])
    assert "no checkpoint yet" in refused("export", started)


# Results


def first_cell(**fields: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / "results.json").read_text())
        document["cells"][0].update(fields)
        (folder / "results.json").write_text(json.dumps(document))

    return spoil


@pytest.mark.parametrize("verb", ["compare", "report"])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (written("results.json", "[]"), "an object is needed"),
        (cut("results.json"), "results.json"),
        (without("results.json"), "no results.json"),
        (first_cell(accuracy_corrected=float("nan")), "field 'accuracy_corrected': nan"),
        (first_cell(language="xx"), "unknown language 'xx'"),
        (changed("results.json", failures=[3]), "failure 0: a JSON object is needed"),
        (written("predictions.jsonl", "[]\n"), "row 0: a JSON object is needed"),
        (changed("logit_lens.json", rows=3), "field 'rows'"),
        (lambda folder: np.savez(folder / "logit_lens.npz"), "no array"),
        (changed("../run/run.json", languages=3), "field 'languages'"),
    ],
)
def test_results(refused, tmp_path, verb, spoil, named):
    write_run(tmp_path / "run")
    before, after = (write_evaluation(tmp_path / name, {("emotion", "en"): 0.6}) for name in ("before", "after"))
    changed("results.json", adapter="run")(after)
    write_lens(after, ["en"], layers=2)
    changed("logit_lens.json", adapter="run")(after)
    spoil(after)
    message = refused(verb, before, after)
    assert str(tmp_path) in message and named in message


def test_results_of_nothing_in_common(refused, tmp_path):
    before, other = (write_evaluation(tmp_path / task, {(task, "en"): 0.6}) for task in ("emotion", "paws"))
    assert "in common" in refused("report", before, other)
    assert "absent" in refused("report", before, tmp_path / "absent")
