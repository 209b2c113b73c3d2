import csv
import json
from typing import Any

import pytest

from jaxalign.data.pair_files import read_pairs
from jaxalign.data.pairs import QuestionPair, Rendering, instruction_languages, languages_of, with_instruction
from jaxalign.errors import InputError

# What str.splitlines, csv without newline="" or a strip would lose.
ODD = '  "Zwei\u2028Zeilen\x85 und\tmehr", sagt er.\r '


def written(file, text):
    file.write_bytes(text.encode("utf-8"))
    return file


def as_json(file, document):
    return written(file, json.dumps(document, ensure_ascii=False))


def message_of(*paths):
    with pytest.raises(InputError) as error:
        read_pairs(paths)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_instruction_patterns():
    assert with_instruction("Wie viele?", "de", "en", "after") == (
        "Wie viele?\nTranslate the input from German to English:\n"
    )
    assert with_instruction("Ngapi?", "sw", "en", "before") == (
        "Translate the following sentences from Swahili (macrolanguage) to English. Ngapi?"
    )
    unknown: Any = "middle"
    with pytest.raises(InputError, match="'middle' is none of after, before"):
        with_instruction("x", "de", "en", unknown)


@pytest.mark.parametrize("instruction", ["after", "before"])
@pytest.mark.parametrize("languages", [("sw", "en"), ("no", "zh"), ("en", "en")])
def test_an_instruction_tells_its_languages(instruction, languages):
    source, target = languages
    assert instruction_languages(with_instruction("A. B to C.\nD:", source, target, instruction), "x") == languages
    assert instruction_languages("Translate nothing.", "x") is None


def test_the_last_instruction_line_counts():
    quoted = with_instruction("Er las:\nTranslate the input from Thai to Dutch:\nund ging.", "de", "en", "after")
    assert instruction_languages(quoted, "x") == ("de", "en")


def test_study_json(tmp_path):
    told = with_instruction(ODD, "de", "en", "after")
    rows = [
        {"input": told, "answer": ODD},
        {"input": "Bare.", "answer": "b", "source_language": "sw", "target_language": "zh"},
    ]
    pairs = read_pairs([as_json(tmp_path / "pairs.json", rows)])
    assert pairs == [QuestionPair(told, ODD, "de", "en"), QuestionPair("Bare.", "b", "sw", "zh")]
    assert languages_of(pairs) == ["en", "zh", "de", "sw"]


INSTRUCTED = "x\nTranslate the input from German to English:\n"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "an array of objects"),
        ([], "no question pairs"),
        (["x"], "row 0: an object is needed"),
        ([{"input": INSTRUCTED}], "row 0: no field 'answer'; the row has 'input'"),
        ([{"input": INSTRUCTED, "answer": 3}], "row 0, field 'answer': text is needed"),
        ([{"input": INSTRUCTED, "answer": " \n"}], "row 0, field 'answer': empty"),
        ([{"input": "x", "answer": "positive"}], "row 0: the input has no line 'Translate the input from X to Y:'"),
        ([{"input": "x", "answer": "y", "source_language": "de"}], "row 0: no field 'target_language'"),
        (
            [{"input": "x", "answer": "y", "source_language": "de", "target_language": "tr"}],
            "row 0, field 'target_language': unknown language 'tr'; known: en zh",
        ),
        (
            [{"input": INSTRUCTED, "answer": "y"}, {"input": INSTRUCTED.replace("German", "Germn"), "answer": "y"}],
            "row 1, field 'input': unknown language 'Germn'; did you mean 'German'?",
        ),
        (
            [{"input": INSTRUCTED, "answer": "y", "source_language": "sw", "target_language": "en"}],
            "row 0: the input's instruction says",
        ),
    ],
)
def test_bad_study_json_is_named(tmp_path, document, message):
    file = as_json(tmp_path / "pairs.json", document)
    assert message in message_of(file) and str(file) in message_of(file)


ROW = {"source": ODD, "target": 'Two\nlines, "quoted"', "source_language": "de", "target_language": "en"}
PAIR = QuestionPair(with_instruction(ODD, "de", "en", "after"), ROW["target"], "de", "en")


def test_json_lines(tmp_path):
    line = json.dumps(ROW, ensure_ascii=False) + "\n"
    assert read_pairs([written(tmp_path / "pairs.jsonl", line + "\n" + line)]) == [PAIR, PAIR]
    bad = written(tmp_path / "bad.jsonl", line + json.dumps({**ROW, "target": ""}) + "\n")
    assert f"{bad}, row 1, field 'target': empty" in message_of(bad)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_keep_quoted_newlines(tmp_path, suffix, delimiter, line_end, mark):
    file = tmp_path / f"pairs{suffix}"
    with open(file, "w", encoding="utf-8", newline="") as stream:
        stream.write(mark)
        writer = csv.DictWriter(stream, list(ROW), delimiter=delimiter, lineterminator=line_end)
        writer.writeheader()
        writer.writerows([ROW, ROW])
    assert read_pairs([file]) == [PAIR, PAIR]
    before = QuestionPair(with_instruction(ODD, "de", "en", "before"), ROW["target"], "de", "en")
    assert read_pairs([file], Rendering("before")) == [before, before]


HEADER = "source,target,source_language,target_language\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no question pairs"),
        (HEADER, "no question pairs"),
        ("source,target\na,b\n", "row 0: no field 'source_language'; the row has 'source', 'target'"),
        (HEADER + "a,b,de,en\na,b,de\n", "row 1: 3 columns, but the header has 4"),
        (HEADER + "a,b,de,en\n,b,de,en\n", "row 1, field 'source': empty"),
        (HEADER + "a,b,kor,en\n", "row 0, field 'source_language': unknown language 'kor'; known: en zh"),
        (HEADER + 'a,"b" c,de,en\n', "row 0 (line 2): "),
        (HEADER + 'a,"b,de,en\n', "row 0 (line 2): "),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message):
    assert message in message_of(written(tmp_path / "pairs.csv", text))


def test_aligned_text_breaks_at_newlines_only(tmp_path):
    path = written(tmp_path / "train.de", f"{ODD}\nZwei.\n")
    written(tmp_path / "train.en", "One\u2028still one.\nTwo.")
    assert read_pairs([path], Rendering("before")) == [
        QuestionPair(with_instruction(ODD, "de", "en", "before"), "One\u2028still one.", "de", "en"),
        QuestionPair(with_instruction("Zwei.", "de", "en", "before"), "Two.", "de", "en"),
    ]
    # The path names the source side, English too where the other side is alone.
    assert read_pairs([tmp_path / "train.en"])[1] == QuestionPair(
        "Two.\nTranslate the input from English to German:\n", "Zwei.", "en", "de"
    )
    written(tmp_path / "train.sw", "a\nb\n")
    assert [pair.target_language for pair in read_pairs([tmp_path / "train.sw"])] == ["en", "en"]
    assert "found train.de and train.sw" in message_of(tmp_path / "train.en")


def test_bad_aligned_text_is_named(tmp_path):
    path = written(tmp_path / "train.de", "a\nb\n")
    assert "its target side must lie beside it, as train.en" in message_of(path)
    other = written(tmp_path / "train.en", "a\nb\nc\n")
    assert f"{path}: 2 lines, but {other} has 3" in message_of(path)
    written(other, "a\n\n")
    assert f"{other}, row 1: empty line" in message_of(path)
    assert "unknown suffix '.tr'; known: .json, .jsonl," in message_of(written(tmp_path / "train.tr", "a\n"))
    assert "unknown suffix '.jsonlines'; did you mean '.jsonl'?" in message_of(tmp_path / "pairs.jsonlines")
    assert "no such file" in message_of(tmp_path / "absent.json")


def test_english_questions_with_answers(tmp_path):
    gsm8k = {"question": "How many?\u2028 Two", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}
    metamath = {"query": "How much?", "response": "The answer is: 2", "type": "GSM_Rephrased"}
    expected = [
        QuestionPair(gsm8k["question"], gsm8k["answer"], "en", "en"),
        QuestionPair(metamath["query"], metamath["response"], "en", "en"),
    ]
    lines = written(tmp_path / "lines.jsonl", "".join(json.dumps(row) + "\n" for row in (gsm8k, metamath)))
    array = written(tmp_path / "array.json", json.dumps([gsm8k, metamath]))
    # No instruction, wherever it would stand.
    assert read_pairs([lines], Rendering("before")) == read_pairs([array]) == expected
    unanswered = written(tmp_path / "unanswered.jsonl", json.dumps({"query": "How much?"}))
    assert "row 0: no field 'response'" in message_of(unanswered)


@pytest.mark.parametrize(("source", "target"), [("zh-CN", "English"), ("zho_Hans", "eng_Latn"), ("Chinese", "EN")])
def test_other_names_of_a_language(tmp_path, source, target):
    """In fields, in instructions and as suffixes; the prompt has the study's name."""
    expected = [QuestionPair(with_instruction("几个？", "zh", "en", "after"), "How many?", "zh", "en")]
    row = {"source": "几个？", "target": "How many?", "source_language": source, "target_language": target}
    assert read_pairs([written(tmp_path / "rows.jsonl", json.dumps(row))]) == expected
    cells = f"几个？,How many?,{source},{target}\n"
    assert (
        read_pairs([written(tmp_path / "rows.csv", f"source,target,source_language,target_language\n{cells}")])
        == expected
    )
    instructed = {"input": expected[0].prompt.replace("Chinese", "Mandarin Chinese"), "answer": "How many?"}
    (pair,) = read_pairs([as_json(tmp_path / "rows.json", [instructed])])
    assert (pair.source_language, pair.target_language) == ("zh", "en")
    folder = tmp_path / "aligned"
    folder.mkdir()
    side = written(folder / f"train.{source}", "几个？\n")
    written(folder / f"train.{target}", "How many?\n")
    written(folder / "train.md", "No language.")
    assert read_pairs([side]) == read_pairs([folder]) == expected


def test_two_files_of_one_language_are_told_of(tmp_path):
    side = written(tmp_path / "train.nb", "Hvor?\n")
    written(tmp_path / "train.en", "Where?\n")
    written(tmp_path / "train.eng", "Where?\n")
    assert "its target side must lie beside it, as train.en or as the only other; found train.en and train.eng" in (
        message_of(side)
    )
