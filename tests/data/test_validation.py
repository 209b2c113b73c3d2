"""Every error of a file is told of, with row and field."""

import json
import shutil

import pytest

from jaxalign.data.check import errors_of, warn_of_exemplars
from jaxalign.data.pairs import Rendering, read_pairs
from jaxalign.data.prompts import read_exemplars
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.errors import InputError, InputErrors, gather
from jaxalign.files import MINI
from tests import tiny_world
from tests.data.tfds_copies import paws_x

GOOD = {"source": "Wo?", "target": "Where?", "source_language": "de", "target_language": "en"}
INSTRUCTED = "x\nTranslate the input from German to English:\n"


def told(path):
    """The errors of the one file, without its name in front."""
    ((file, errors),) = errors_of(path, Rendering()).items()
    assert all(error.startswith(file) and "\n" not in error for error in errors)
    return [error.removeprefix(file) for error in errors]


def starts(errors, expected):
    assert len(errors) == len(expected), errors
    for error, start in zip(errors, expected, strict=True):
        assert error.startswith(start), error


def test_json_lines(tmp_path):
    file = tmp_path / "pairs.jsonl"
    bad = {**GOOD, "source": " ", "target": 3, "source_language": "dee"}
    lines = [json.dumps(GOOD), json.dumps(bad), '{"source": ', "", '"x"', '{"question": "q"}', '{"source": "\\ud83d"}']
    file.write_text("\n".join(lines))
    starts(
        told(file),
        [
            ", row 1, field 'source': empty",
            ", row 1, field 'target': text is needed, found 3",
            ", row 1, field 'source_language': unknown language 'dee'; known: en zh",
            ", row 2: not JSON at column 12",
            ', row 3: an object is needed, found "x"',
            ", row 4: no field 'answer'",
            ", row 5, field 'source': '\\ud83d' is half a character",
            ", row 5: no field 'target'",
            ", row 5: no field 'source_language'",
            ", row 5: no field 'target_language'",
        ],
    )
    with pytest.raises(
        InputError, match=r"row 1, field 'source': empty.* \(and 9 more; jaxalign data validate lists them"
    ):
        read_pairs([file])


def test_study_json(tmp_path):
    file = tmp_path / "pairs.json"
    rows = [
        {"input": INSTRUCTED.replace("German", "Germn"), "answer": ""},
        {"input": INSTRUCTED, "answer": "y"},
        {"input": "x", "answer": "y", "source_language": "de", "target_language": "e"},
    ]
    file.write_text(json.dumps(rows))
    starts(
        told(file),
        [
            ", row 0, field 'answer': empty",
            ", row 0, field 'input': unknown language 'Germn'",
            ", row 2, field 'target_language': unknown language 'e'",
        ],
    )


def test_tables(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text(f'{",".join(GOOD)}\n,b,de,en\na,b,de\na,b,xx,yy\na,"b"c,de,en\na,,de,en\n')
    starts(
        told(file),
        [
            ", row 0, field 'source': empty",
            ", row 1: 3 columns, but the header has 4",
            ", row 2, field 'source_language': unknown language 'xx'",
            ", row 2, field 'target_language': unknown language 'yy'",
            ", row 3 (line 5): ",  # where quoting is broken the rows after it are not known
        ],
    )
    file.write_text("source,source\n")
    starts(told(file), [": the header has 'source' more than once"])


def test_aligned_text(tmp_path):
    (tmp_path / "train.de").write_text("a\n\nc\n \n")
    (tmp_path / "train.en").write_text("a\nb\n\nd\n")
    (errors,) = errors_of(tmp_path / "train.de", Rendering()).values()
    assert [error.partition(": ")[0].removeprefix(str(tmp_path)) for error in errors] == [
        "/train.de, row 1",
        "/train.en, row 2",
        "/train.de, row 3",
    ]


def test_task_files(tmp_path):
    shutil.copytree(MINI / "snli", tmp_path / "snli")
    file = tmp_path / "snli" / "snli_de12_test.json"
    rows = json.loads(file.read_text())
    rows[1] = {**rows[1], "premise": "", "answer": "ja"}
    rows[2] = {"premise": None, "hypothesis": "x"}
    rows[3] = "x"
    file.write_text(json.dumps(rows))
    starts(
        told(file),
        [
            ", row 1, field 'premise': empty; fill it in or leave the row out of every language",
            ", row 1, field 'answer': 'ja' is no label word",
            ", row 2, field 'premise': text is needed, found null",
            ", row 2: no field 'answer'",
            ', row 3: an object is needed, found "x"',
        ],
    )
    french = tmp_path / "snli" / "snli_fr12_test.json"
    french.write_text(json.dumps(json.loads(french.read_text())[:-1]))
    starts(told(french), [": 11 rows, but "])


def test_a_data_folder_is_read_whole_and_each_error_told_once(tmp_path):
    assert set(map(tuple, errors_of(MINI, Rendering()).values())) == {()}
    assert len(errors_of(MINI, Rendering())) == 3 * 20 * 2 + 1
    data = tmp_path / "data"
    shutil.copytree(MINI, data)
    english = data / "ap_emotion" / "emotion_en40_test.json"
    english.write_text("[]")
    (data / "exemplars.json").write_text('{"emotion": []}')
    (data / "paws" / "notes.json").write_text("3")
    errors = {file: found for file, found in errors_of(data, Rendering()).items() if found}
    assert sum(map(len, errors.values())) == 3
    assert [found[0].partition(" is needed")[0] for found in errors.values()] == [
        f"{english}: an array of rows",
        f"{data}/paws/notes.json: an array",
        f"{data}/exemplars.json, emotion: an object",
    ]


def test_paws_x(tmp_path):
    paws_x(tmp_path, "en", [("a", "b", 0), ("c", "d", 1)])
    paws_x(tmp_path, "de", [("a", "", 0), ("", "d", 1)])
    ((_, english), (_, german)) = sorted(errors_of(tmp_path, Rendering()).items(), reverse=True)
    assert english == [] and len(german) == 2
    assert all("empty; fill it in" in error for error in german)


def test_gather_makes_all_calls_and_ends_with_the_iterator():
    def fails(message):
        raise InputError(message)

    def reads():
        yield lambda: 1
        yield lambda: fails("a")
        yield lambda: gather([lambda: fails("b"), lambda: fails("c")])
        yield lambda: 2
        raise InputError("d")

    with pytest.raises(InputErrors) as error:
        gather(reads())
    assert error.value.messages == ["a", "b", "c", "d"]
    assert gather([lambda: 1, lambda: 2]) == [1, 2]


def test_broken_files_are_told_of(tmp_path):
    starts(told(tmp_path / "absent.json"), [": no such file"])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    starts(told(tmp_path / "deep.json"), [": JSON nested too deeply"])
    (tmp_path / "long.jsonl").write_text("9" * 5000)
    starts(told(tmp_path / "long.jsonl"), [", row 0: JSON nested too deeply, or a number of too many digits"])
    (tmp_path / "latin1.csv").write_bytes("source,größe\n".encode("latin-1"))
    starts(told(tmp_path / "latin1.csv"), [": not UTF-8 text (byte 9)"])


def test_exemplars_of_one_class_and_of_test_rows_are_warned_of(tmp_path, capsys):
    """Once, and counted over the cells."""
    exemplars = tiny_world.write_data(tmp_path)
    rows = {code: TaskData(tmp_path).rows(TASKS["emotion"], code) for code in ("en", "de", "zh")}
    warn_of_exemplars(exemplars, rows.values())
    assert capsys.readouterr().err == "" and errors_of(tmp_path, Rendering())[str(exemplars.file)] == []
    document = json.loads(exemplars.file.read_text())
    document["emotion"]["de"]["exemplars"][1]["text"] = "DE  input 3"
    document["emotion"]["zh"]["exemplars"][0] |= {"text": "zh input 0", "label": "negative"}
    exemplars.file.write_text(json.dumps(document))
    for _ in range(2):
        warn_of_exemplars(read_exemplars(exemplars.file), rows.values())
        assert errors_of(tmp_path, Rendering())[str(exemplars.file)] == []
    count = 3 * tiny_world.ROWS
    every = f"2 of {2 * count} test rows are an exemplar of their own prompt"
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if every not in line] == [
        f"warning: {exemplars.file}: all exemplars are of one class in 1 cells, first emotion zh (negative)",
        f"warning: {exemplars.file}: 2 of {count} test rows are an exemplar of their own prompt, which shows their "
        "answer; first emotion de row 3, emotion zh row 0",
    ]
    assert sum(every in line for line in lines) == 1
