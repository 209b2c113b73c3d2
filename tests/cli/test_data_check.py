"""`jaxalign data validate` and `data describe`, as a user meets them."""

import json

from jaxalign.files import MINI

HEADER = "source,target,source_language,target_language\n"


def test_validate_lists_every_error(jaxalign, tmp_path):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(HEADER + "Wo?,Where?,de,en\n")
    bad.write_text(HEADER + ",Where?,de,enk\nWo?\n")
    code, out, err = jaxalign("data", "validate", good, bad)
    assert code == 2
    assert [line.partition(";")[0] for line in out.splitlines()] == [
        f"{bad}, row 0, field 'source': empty",
        f"{bad}, row 0, field 'target_language': unknown language 'enk'",
        f"{bad}, row 1: 1 columns, but the header has 4",
    ]
    assert err == "jaxalign: 3 errors in 1 of 2 files; they are listed above\n"
    half = tmp_path / "half.jsonl"
    half.write_text('{"te\\ud83dxt": "Wo?"}\n')
    code, out, _ = jaxalign("data", "validate", half)
    assert code == 2 and out.startswith(f"{half}, row 0: a row of te[U+D83D]xt; pairs are read from")
    assert jaxalign("data", "validate", good) == (0, "1 files, no errors\n", "")
    assert jaxalign("data", "validate")[0] == jaxalign("data", "describe")[0] == 2


def test_describe(ok, model_folder, tmp_path):
    pairs = tmp_path / "pairs.json"
    ok("data", "build", "--config.build.sources=de,zh", tasks="snli", out=pairs)
    ok(
        *("data", "describe", pairs, "--config.tasks=snli,emotion", "--config.languages=de,zh,sw"),
        *(f"--config.model={model_folder}", "--config.batch.length=300", f"--config.out={tmp_path / 'out'}"),
    )
    document = json.loads((tmp_path / "out" / "describe.json").read_text())
    assert document["pairs"] == {str(pairs): 24}
    assert document["directions"] == {"de→en": 12, "zh→en": 12}
    assert (document["repeated_pairs"], document["prompts_of_several_responses"]) == (0, 0)
    # The model's tokens are bytes.
    rows = json.loads(pairs.read_text())
    lengths = [len((row["input"] + row["answer"]).encode()) for row in rows]
    assert document["rows"]["max"] == max(lengths)
    assert document["rows"]["dropped"] == sum(length > 300 for length in lengths) > 0
    assert document["languages"]["en"]["length"]["max"] == max(len(row["answer"].encode()) for row in rows)
    assert [(record["task"], record["language"], record["count"]) for record in document["test_rows"]] == [
        ("snli", "de", 12),
        ("snli", "zh", 12),
        ("emotion", "de", 40),
        ("emotion", "zh", 40),
    ]
    assert {record["language"] for record in document["label_words"]} <= {"en", "de", "zh", "sw"}


def test_describe_finds_test_rows_and_goes_without_a_model(ok, tmp_path):
    (file,) = (MINI / "paws").glob("paws_de*_test.json")
    rows = [
        {
            "source": f"{row['sentence1']}\n{row['sentence2']}",
            "target": "x",
            "source_language": "de",
            "target_language": "en",
        }
        for row in json.loads(file.read_text())[:3]
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    out = ok("data", "describe", pairs, tasks="paws")
    assert "test rows of paws de among the pairs: 3 of 8" in out
    assert "test rows and label words of emotion, snli were not looked at: --config.tasks=all does" in out
    assert "1 pairs repeat an earlier one" in out and "lengths in characters" in out
    assert "control characters" not in out
    pairs.write_text('{"source": "a\\rb", "target": "c\\td\\r", "source_language": "de", "target_language": "en"}\n')
    out = ok("data", "describe", pairs, tasks="paws")
    assert "control characters in the texts: 1 U+0009, 1 U+000D; " in out
