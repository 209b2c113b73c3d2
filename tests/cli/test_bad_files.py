"""Malformed files, for every verb that reads them: the line names the file, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest

from jaxalign.files import MINI
from jaxalign.log import warn
from tests.reporting.folders import write_evaluation

EVALUATE = ("evaluate", "--config.languages=en,de", "--config.rows=0:4")
PROBE = ("probe", "--config.languages=en,de", "--config.rows=0:4")
BUILD = ("data", "build", "--config.build.sources=de")

STUDY = '[{"input": "Wo?\\nTranslate the input from German to English:\\n", "answer": "Where?"}]'
HEADER = "source,target,source_language,target_language\n"
JSON_LINE = '{"source": "Wo?", "target": "Where?", "source_language": "de", "target_language": "en"}\n'


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("pairs.json", STUDY[:50], "line 1"),
        ("pairs.json", STUDY.replace("answer", "reply"), "row 0: no field 'answer'"),
        ("pairs.json", "", "empty"),
        ("pairs.json", "[]", "no question pairs"),
        ("pairs.json", '{"rows": []}', "row 0: a row of rows; pairs are read from"),
        ("pairs.json", STUDY.replace("German", "Klingon"), "row 0, field 'input': unknown language 'Klingon'"),
        ("pairs.json", '[{"input": "Wo?", "answer": "a", "source_language": "dee", "target_language": "en"}]', "'dee'"),
        ("pairs.json", STUDY.replace("Where?", " "), "row 0, field 'answer': empty"),
        ("pairs.json", STUDY.replace('"Where?"', "3"), "row 0, field 'answer': text"),
        ("pairs.jsonl", JSON_LINE + JSON_LINE[:40], "row 1: not JSON"),
        ("pairs.jsonl", JSON_LINE.replace("target", "goal", 1), "row 0: no field 'target'"),
        ("pairs.jsonl", "", "no question pairs"),
        ("pairs.jsonl", JSON_LINE + JSON_LINE.replace('"de"', '"dee"'), "row 1, field 'source_language'"),
        ("pairs.jsonl", JSON_LINE.replace("Where?", ""), "row 0, field 'target': empty"),
        ("pairs.jsonl", JSON_LINE.replace("Wo?", "\\ud83d"), "row 0, field 'source': '\\ud83d' is half a character"),
        ("pairs.jsonl", "9" * 5000, "row 0: a number of too many digits"),
        ("pairs.json", "[" * 100_000, "nested too deeply"),
        ("pairs.csv", HEADER.replace("target,", "source,", 1), "'source' more than once"),
        ("pairs.csv", HEADER + 'Wo?,"Whe', "row 0"),
        ("pairs.csv", HEADER + "Wo?,Where?,de\n", "3 columns"),
        ("pairs.csv", HEADER.replace("target,", "goal,", 1) + "Wo?,Where?,de,en\n", "no field 'target'"),
        ("pairs.csv", "", "no question pairs"),
        ("pairs.csv", HEADER, "no question pairs"),
        ("pairs.csv", HEADER + "Wo?,Where?,dee,en\n", "row 0, field 'source_language'"),
        ("pairs.csv", HEADER + "Wo?,Where?,de,en\n,Where?,de,en\n", "row 1, field 'source': empty"),
        ("train.de", "Wo?\n", "1 lines"),
        ("train.de", "", "train.de"),
        ("train.de", "Wo?\n\n", "row 1: empty line"),
        ("train.dee", "Wo?\nWann?\n", "'.dee'"),
        ("other.de", "Wo?\nWann?\n", "other.en"),
        ("pairs.txt", "Wo?\nWann?\n", "suffix"),
    ],
)
def test_files_of_pairs(refused, tmp_path, model_folder, name, content, named):
    file = tmp_path / name
    file.write_text(content)
    (tmp_path / "train.en").write_text("Where?\nWhen?\n")
    message = refused("train", file, f"--config.model={model_folder}")
    assert name in message and named in message


def test_files_of_pairs_that_are_not_there(refused, tmp_path, model_folder):
    assert "absent.json" in refused("train", tmp_path / "absent.json", f"--config.model={model_folder}")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(JSON_LINE.replace("Wo", "Wär").encode("latin-1"))
    assert "UTF-8" in refused("train", latin, f"--config.model={model_folder}")


@pytest.fixture
def data(tmp_path) -> Path:
    """A copy of the mini set to spoil."""
    return shutil.copytree(MINI, tmp_path / "data")


def truncate(file):
    file.write_text(file.read_text()[:500])


def empty(file):
    file.write_text("")


def remove(file):
    file.unlink()


def edit(change):
    """A change of the rows."""

    def spoil(file):
        rows = json.loads(file.read_text())
        change(rows)
        file.write_text(json.dumps(rows))

    return spoil


SPOILT = [
    pytest.param(truncate, ["line"], id="truncated"),
    pytest.param(empty, ["empty"], id="empty"),
    pytest.param(edit(lambda rows: rows[1].pop("input")), ["row 1", "'input'"], id="missing field"),
    pytest.param(edit(lambda rows: rows[1].update(input=" ")), ["row 1", "'input'"], id="empty text"),
    pytest.param(edit(lambda rows: rows[0].update(answer="gut")), ["row 0", "gut"], id="no label"),
    pytest.param(edit(lambda rows: rows.pop()), ["rows"], id="fewer rows than English"),
    pytest.param(remove, ["emotion_de"], id="no file"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILT)
def test_test_files(jaxalign, refused, data, model_folder, tmp_path, spoil, named):
    file = data / "ap_emotion" / "emotion_de40_test.json"
    spoil(file)
    where = (f"--config.model={model_folder}", f"--config.data={data}")
    for command in (PROBE, (*EVALUATE, "--config.languages=de")):
        message = refused(*command, *where)
        assert "emotion_de" in message and all(words in message for words in named)
    # The other language is evaluated, and the exit code says that it is not all.
    code, out, err = jaxalign(*EVALUATE, *where, f"--config.out={tmp_path / 'rest'}")
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
    code, _, err = jaxalign(*EVALUATE, *where, f"--config.out={tmp_path / 'rest'}")
    assert code == 2 and err.count("\n") == 1 and "exemplars.json" in err and "'de'" in err
    for content, named in ((json.dumps(document)[:999], "line"), ("", "empty"), ("[]", "object")):
        file.write_text(content)
        for verb in (EVALUATE, PROBE):
            message = refused(*verb, *where)
            assert "exemplars.json" in message and named in message


@pytest.mark.parametrize("verb", [BUILD, ("train", "--config.build.sources=de")], ids=["data build", "train"])
@pytest.mark.parametrize(("spoil", "named"), SPOILT)
def test_train_files(refused, data, model_folder, verb, spoil, named):
    spoil(data / "ap_emotion" / "emotion_de48_train.json")
    message = refused(*verb, f"--config.model={model_folder}", f"--config.data={data}")
    assert "emotion_de" in message and all(words in message for words in named)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.build.control=foo", "'foo'"),
        ("--config.build.instruction=foo", "'foo'"),
        ("--config.build.sources=dee", "build.sources: unknown language 'dee'"),
        ("--config.build.sources=de,de", "de,de"),
        ("--config.build.sources=", "unknown language ''"),
        ("--config.build.target=de", "target"),
        ("--config.tasks=emotoin", "'emotion'"),
        ("--config.tasks=paws,paws", "paws,paws"),
        ("--config.rows=0:500", "48"),
        ("--config.data=nowhere", "nowhere"),
    ],
)
def test_data_build_settings(refused, flag, named):
    assert named in refused(*BUILD, flag)


def test_data_import_of_what_is_no_clone(refused, tmp_path):
    for clone in (tmp_path, tmp_path / "absent"):
        assert str(clone) in refused("data", "import", clone, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_report_of_what_are_no_results(refused, tmp_path):
    cells = {("emotion", "en"): 0.6}
    before, after = (write_evaluation(tmp_path / name, cells) for name in ("before", "after"))
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "bare: no results.json" in refused("report", before, bare)
    assert "bare: no results.json" in refused("report", bare, after)
    assert "absent" in refused("report", before, tmp_path / "absent")
    other = write_evaluation(tmp_path / "other", {("paws", "de"): 0.6})
    assert "in common" in refused("report", before, other)
    for name in ("results.json", "predictions.jsonl"):
        file = after / name
        whole = file.read_text()
        file.write_text(whole[: len(whole) // 2])
        assert str(file) in refused("report", before, after)
        file.write_text(whole)


def test_export_of_what_is_no_run(refused, run, tmp_path):
    assert str(tmp_path) in refused("export", tmp_path)
    assert "absent" in refused("export", tmp_path / "absent")
    assert "format" in refused("export", run, "--config.format=gguf")
    started = tmp_path / "started"
    shutil.copytree(run, started, ignore=lambda folder, names: names if Path(folder).name == "checkpoints" else [])
    assert "no checkpoint yet" in refused("export", started)
    cut = shutil.copytree(run, tmp_path / "cut")
    (cut / "run.json").write_text((cut / "run.json").read_text()[:100])
    assert "run.json" in refused("export", cut)


def test_what_is_no_error_is_warned_of_once(jaxalign, data, model_folder, tmp_path):
    """Also where a command reads the files several times over."""
    file, exemplars = data / "ap_emotion" / "emotion_de40_test.json", data / "exemplars.json"
    rows = json.loads(file.read_text())
    rows[0]["answer"] = {"positiv": "negativ", "negativ": "positiv"}[rows[0]["answer"]]
    file.write_text(json.dumps(rows))
    document = json.loads(exemplars.read_text())
    document["emotion"]["de"]["exemplars"][0]["text"] = rows[2]["input"]
    exemplars.write_text(json.dumps(document))
    for number, command in enumerate((EVALUATE, PROBE)):
        warn.cache_clear()
        where = (f"--config.model={model_folder}", f"--config.data={data}", f"--config.out={tmp_path / str(number)}")
        code, _, err = jaxalign(*command, *where)
        warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert code == 0 and [line.partition(" contradict")[0].partition(" are an")[0] for line in warnings] == [
            f"warning: {file}: 1 of 40 answers",
            f"warning: {exemplars}: 1 of 8 test rows",
        ]
