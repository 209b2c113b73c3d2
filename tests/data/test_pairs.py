import csv
import json
import sys
from typing import Any

import pytest
import regex

from jaxalign.data.fields import is_visible
from jaxalign.data.pairs import (
    QuestionPair,
    Rendering,
    instruction_languages,
    languages_of,
    pair_of,
    read_pairs,
    with_instruction,
    without_instruction,
)
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


HEADER = "source,target,source_language,target_language\n"
INSTRUCTED = "x\nTranslate the input from German to English:\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.json", "3", "pairs.json: an array is needed, found 3"),
        ("pairs.json", '{"data": []}', "row 0: a row of data; pairs are read from"),
        ("pairs.json", "[]", "no question pairs"),
        ("pairs.json", [{"input": INSTRUCTED}], "row 0: no field 'answer'; there are 'input'"),
        ("pairs.json", [{"input": "x", "answer": "y"}], "row 0: the input has no line 'Translate the input from X"),
        (
            "pairs.json",
            [{"input": INSTRUCTED.replace("German", "Germn"), "answer": "y"}],
            "row 0, field 'input': unknown language 'Germn'; did you mean 'German'?",
        ),
        ("pairs.jsonl", '{"source": "a", "source": "b"}', "the key 'source' stands there twice"),
        ("pairs.csv", "", "no question pairs"),
        ("pairs.csv", "source,target\na,b\n", "row 0: no field 'source_language'; there are 'source', 'target'"),
        ("pairs.csv", HEADER + 'a,"b" c,de,en\n', "row 0 (line 2): a quoted cell ends"),
        ("pairs.csv", HEADER + 'a,"b,de,en\n', "row 0 (line 2): a quoted cell ends"),
        ("train.tr", "a\n", "unknown suffix '.tr'; known: .json, .jsonl,"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    file = written(tmp_path / name, content if isinstance(content, str) else json.dumps(content))
    assert message in message_of(file) and str(file) in message_of(file)


ROW = {"source": ODD, "target": 'Two\nlines, "quoted"', "source_language": "de", "target_language": "en"}
PAIR = QuestionPair(with_instruction(ODD, "de", "en", "after"), ROW["target"], "de", "en")


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


# Which fields make a pair


def lines(file, *rows):
    return written(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_two_texts_with_their_languages_come_before_all_else(tmp_path):
    """A row may have a question and its answer, too (LLaMA-Factory 7577, 3247)."""
    rows = [
        {**ROW, "question": "How many?", "answer": "2"},
        {"query": "How many?", "response": "2", **ROW},
        {**ROW, "question": "How many?"},
        {**ROW, "instruction": "Add.", "output": None, "language": "de", "lang": "de-en"},
    ]
    assert read_pairs([lines(tmp_path / "pairs.jsonl", *rows)]) == [PAIR] * 4
    assert read_pairs([as_json(tmp_path / "pairs.json", rows)]) == [PAIR] * 4
    with open(tmp_path / "pairs.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*ROW, "question", "answer", "query", "response"])
        writer.writeheader()
        writer.writerows(rows[:3])
    assert read_pairs([tmp_path / "pairs.csv"]) == [PAIR] * 3
    rendered = {"prompt": "P", "response": "R", "source_language": "sw", "target_language": "zh", "query": "Q"}
    assert pair_of(rendered, Rendering(), "row") == QuestionPair("P", "R", "sw", "zh")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A"},
        {"query": "Q", "response": "A", "target_language": "en", "answer": "18", "source": "a book"},
        {"question": "Q", "answer": "A", "prompt": "", "messages": [], "source": None, "language": "en"},
        {"input": "Q", "answer": "A", "source_language": "en", "target_language": "en", "instruction": " "},
    ],
)
def test_every_source_reads_the_same_fields(tmp_path, row):
    expected = [QuestionPair("Q", "A", "en", "en")]
    assert read_pairs([lines(tmp_path / "pairs.jsonl", row)]) == expected
    assert read_pairs([as_json(tmp_path / "pairs.json", [row])]) == expected
    cells = {name: value for name, value in row.items() if not isinstance(value, list)}
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with open(tmp_path / f"pairs{suffix}", "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(cells), delimiter=delimiter)
            writer.writeheader()
            writer.writerow(cells)
        assert read_pairs([tmp_path / f"pairs{suffix}"]) == expected


LANGUAGES = {"source_language": "de", "target_language": "en"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            {"question": "Q", "answer": "A", **LANGUAGES},
            ("question and answer", "source_language is de", "source and targ"),
        ),
        ({"query": "Q", "response": "A", "language": "sw"}, ("query and response", "language is sw", "input and")),
        ({"question": INSTRUCTED, "answer": "A"}, ("question and answer", "de into en", "input")),
        (
            {"question": "Q", "answer": "A", "query": "Q", "response": "A"},
            ("question and answer", "query and response"),
        ),
        ({"source": "S", "target": "T", "question": "Q", "answer": "A"}, ("source and target", "question and answer")),
        ({"input": INSTRUCTED, "answer": "A", "instruction": "Be brief."}, ("input and answer", "'instruction'")),
        ({"instruction": INSTRUCTED, "output": "A", "system": "Be brief."}, ("instruction and output", "'system'")),
        ({"instruction": INSTRUCTED, "output": "A", "kto_tag": False}, ("'kto_tag'",)),
        ({"instruction": "Q", "output": "A"}, ("the instruction has no line", "source_language")),
        (
            {"prompt": INSTRUCTED, "response": "A", **LANGUAGES, "source_language": "sw"},
            ("read as sw into en", "instruction says de into en"),
        ),
        # Whatever a field that tells a language is called, and whatever the fields of the pair.
        ({"query": "Q", "response": "A", "Locale": "sw-KE"}, ("English question", "Locale is sw")),
        ({"question": "Q", "answer": "A", "question_language": "tr"}, ("question_language is tr",)),
        ({**ROW, "targetLanguage": "zh", "language_code": "sw"}, ("targetLanguage is zh, language_code is sw",)),
        ({"input": INSTRUCTED, "answer": "A", "lang": "French"}, ("read as de into en, but lang is fr",)),
        ({"translation": {"de": "S", "en": "T"}, "target_language": "de"}, ("but target_language is de",)),
        ({"premise": "P", "label": 1}, ("a row of label, premise", "source, target", "instruction, output")),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path, row, named):
    """A language on a row read as English, two readings, what would belong to the prompt (LLaMA-Factory 7577)."""
    message = message_of(lines(tmp_path / "pairs.jsonl", ROW, row))
    assert "pairs.jsonl, row 1" in message and all(words in message for words in named), message


def test_rows_of_llama_factory(tmp_path):
    alpaca = {"instruction": "Translate the input from German to English:", "input": "Wo?", "output": "Where?"}
    rows = [
        {**alpaca, "system": "", "history": [], "images": None},
        {"instruction": INSTRUCTED, "input": "", "output": "Where?"},
        {"conversations": [{"from": "human", "value": "Wo?"}, {"from": "gpt", "value": "Where?"}], **LANGUAGES},
        {
            "messages": [{"role": "user", "content": INSTRUCTED}, {"role": "assistant", "content": "Where?"}],
            "tools": "",
        },
    ]
    prompts = [f"{alpaca['instruction']}\nWo?", INSTRUCTED, "Wo?", INSTRUCTED]
    expected = [QuestionPair(prompt, "Where?", "de", "en") for prompt in prompts]
    assert read_pairs([as_json(tmp_path / "alpaca.json", rows)]) == expected
    turns = rows[2]["conversations"]
    spelt = [{"from": "system", "value": ""}, {"role": None, "from": "Human", "value": "Wo?"}, turns[1]]
    assert pair_of({"conversations": spelt, **LANGUAGES}, Rendering(), "") == expected[2]
    for bad, message in (
        (turns * 2, "found ['human', 'gpt', 'human', 'gpt']"),
        ([{"from": "system", "value": "Be brief."}, *turns], "found ['system', 'human', 'gpt']"),
        (turns[::-1], "found ['gpt', 'human']"),
        ("Wo?", "an array is needed, found"),
        ([3, 4], "row 0: an object is needed"),
        ([turns[0], {"from": "gpt"}], "row 1: one of the fields content and value is needed, found 0"),
        ([{**turns[0], "content": "Wann?"}, turns[1]], "row 0: one of the fields content and value is needed, found 2"),
    ):
        file = as_json(tmp_path / "bad.json", [{"conversations": bad, **LANGUAGES}])
        assert f"{file}, row 0, field 'conversations'" in message_of(file) and message in message_of(file)


def test_a_text_per_language(tmp_path):
    """As the translation examples of transformers have it, one object a line."""
    file = lines(tmp_path / "pairs.jsonl", {"translation": {"en": "Where?", "de": "Wo?"}, "id": 3})
    assert read_pairs([file]) == [QuestionPair(with_instruction("Wo?", "de", "en", "after"), "Where?", "de", "en")]
    back = QuestionPair(with_instruction("Where?", "en", "de", "after"), "Wo?", "en", "de")
    assert read_pairs([file], Rendering(target="de")) == [back]
    for translation, message in (
        ({"de": "Wo?", "en": None}, "row 0, field 'target': text is needed, found null"),
        ({"de": "Wo?", "sw": "Wapi?"}, "a text in en (config.build.target) and one in another language are needed"),
        ("Where?", "field 'translation': an object is needed"),
    ):
        assert message in message_of(lines(tmp_path / "bad.jsonl", {"translation": translation}))


def test_json_of_one_object_a_line(tmp_path):
    row = {"input": INSTRUCTED, "answer": "y"}
    expected = [QuestionPair(INSTRUCTED, "y", "de", "en")]
    text = json.dumps(row)
    for name, content, count in (
        ("lines.json", f"{text}\n\n{text}\n", 2),
        ("windows.json", f"\ufeff{text}\r\n{text}\r\n", 2),
        ("one.json", text, 1),
        ("indented.json", json.dumps(row, indent=2), 1),
        ("array.jsonl", json.dumps([row, row], indent=2), 2),
    ):
        assert read_pairs([written(tmp_path / name, content)]) == expected * count
    assert "bad.json, row 1: not JSON at column" in message_of(written(tmp_path / "bad.json", f"{text}\n{text[:9]}\n"))


# Line ends and byte-order marks


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_marks_are_no_text(tmp_path, mark, end):
    """Whatever the door: what is tuned on is what is read (tensor2tensor 1395, NTREX 3)."""
    expected = [
        pair_of({**LANGUAGES, "source": f"Frage {n}", "target": f"Question {n}"}, Rendering(), "") for n in "12"
    ]
    written(tmp_path / "train.de", mark + "Frage 1\nFrage 2\n".replace("\n", end))
    written(tmp_path / "train.en", mark + "Question 1\nQuestion 2".replace("\n", end))
    assert read_pairs([tmp_path / "train.de"]) == expected
    header = "source,target,source_language,target_language\n"
    table = mark + (header + "Frage 1,Question 1,de,en\nFrage 2,Question 2,de,en\n").replace("\n", end)
    assert read_pairs([written(tmp_path / "pairs.csv", table)]) == expected
    assert read_pairs([written(tmp_path / "pairs.tsv", table.replace(",", "\t"))]) == expected
    rows = [{"input": pair.prompt, "answer": pair.response} for pair in expected]
    text = mark + json.dumps(rows, indent=1).replace("\n", end)
    assert read_pairs([written(tmp_path / "pairs.json", text)]) == expected
    text = mark + "".join(json.dumps(row) + end for row in rows)
    assert read_pairs([written(tmp_path / "pairs.jsonl", text)]) == expected


def test_a_carriage_return_inside_a_line_stays(tmp_path):
    written(tmp_path / "train.de", "Ein\rs\r\n\ufeffZw\ufeffei\r\r\n")
    written(tmp_path / "train.en", "One\nTw\ro\n")
    assert [(without_instruction(pair.prompt), pair.response) for pair in read_pairs([tmp_path / "train.de"])] == [
        ("Ein\rs", "One"),
        ("Zw\ufeffei", "Tw\ro"),
    ]
    tables = 'source,target,source_language,target_language\r\n"Ein\rs\r\nzwei",One\rtwo,de,en\r\n'
    for suffix, text in ((".csv", tables), (".tsv", tables.replace(",", "\t"))):
        (pair,) = read_pairs([written(tmp_path / f"pairs{suffix}", text)])
        assert (without_instruction(pair.prompt), pair.response) == ("Ein\rs\nzwei", "One\rtwo")


@pytest.mark.parametrize("end", ["\r\n", " \n", "\t", "\u3000\n", "\xa0", "", "\r"])
def test_an_instruction_line_may_end_in_blanks(tmp_path, end):
    prompt = f"Wo?\nTranslate the input from German to English:{end}"
    (pair,) = read_pairs([as_json(tmp_path / "pairs.json", [{"input": prompt, "answer": "Where?"}])])
    assert (pair.source_language, pair.target_language) == ("de", "en")
    assert without_instruction(pair.prompt) == "Wo?" and "\r" not in pair.prompt
    before = f"Translate the following sentences from German to English.{end or ' '}Wo?"
    (pair,) = read_pairs([as_json(tmp_path / "before.json", [{"input": before, "answer": "Where?"}])])
    assert (pair.source_language, pair.target_language) == ("de", "en")


# Tables of corpora and of spreadsheets

TSV_HEADER = HEADER.replace(",", "\t")


def tsv(tmp_path, *rows, header=TSV_HEADER):
    return written(tmp_path / "pairs.tsv", header + "".join("\t".join((*row, "de", "en")) + "\n" for row in rows))


@pytest.mark.parametrize(
    "rows",
    [
        [('"Danke.', '"Thanks.'), ("Bitte.", "Please.")],
        [('"Danke", sagte er.', '"Thanks," he said.')],
        [('Er sagte "Danke".', "He said thanks."), ('"Danke."', '"Thanks."')],
        [('""Danke""', '"'), ('"', '"""')],
        # The quote opened in one row seems to end in the other.
        [('"Ich komme.', "I am coming."), ('Du nicht."', "You are not.")],
    ],
)
def test_corpora_do_not_quote(tmp_path, rows):
    """A text in a Tatoeba or OPUS file may begin with a quotation mark (tatoeba2 2973)."""
    pairs = read_pairs([tsv(tmp_path, *rows)])
    assert [(without_instruction(pair.prompt), pair.response) for pair in pairs] == rows


def test_rows_may_be_quoted_below_a_header_that_is_not(tmp_path):
    text = TSV_HEADER + '"Danke."\t"Thanks."\t"de"\t"en"\n' * 2
    pairs = read_pairs([written(tmp_path / "pairs.tsv", text)])
    assert [(without_instruction(pair.prompt), pair.response) for pair in pairs] == [("Danke.", "Thanks.")] * 2


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(
    "texts",
    [
        ('"Danke."', "Thanks."),
        ("Eins\nZwei", "One\nTwo"),
        ("Eins\tzwei", "One"),
        ('"Eins\t\n\n"zwei"', '"""'),
    ],
)
def test_spreadsheets_quote(tmp_path, quoting, texts):
    rows = [texts, ("Ja.", "Yes."), texts[::-1]]
    with open(tmp_path / "pairs.tsv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, "excel-tab", quoting=quoting)
        writer.writerows([list(ROW), *((*row, "de", "en") for row in rows)])
    pairs = read_pairs([tmp_path / "pairs.tsv"])
    assert [(without_instruction(pair.prompt), pair.response) for pair in pairs] == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [('"Er sagte ""Ja"""', "a"), ('"Nein", sagte sie.', "b")],
            "quotation marks are text in line 3, but a spreads",
        ),
        ([('"Ja ""Ja"""', "a"), ('Sie "nickt".', "b")], "text in line 3, but a spreadsheet's around '\"Ja"),
        ([('"Ja, danke."', '"Yes, thanks."'), ("Nein.", "No.")], "in quotation marks, or quoted for its comma"),
        ([('"Ja.', "Yes."), ("Nein.", "No\tno")], "row 1: 5 columns, but the header has 4; line 2 shows that quot"),
        ([('"Ein\nZwei"', "One"), ("Nein.", "No\tno")], "row 1: 5 columns, but the header has 4"),
    ],
)
def test_tables_that_are_neither_are_refused(tmp_path, rows, message):
    assert message in message_of(tsv(tmp_path, *rows))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_be_long(tmp_path, suffix):
    """Python's csv module stops at 131,072 characters."""
    text = 'Wie "oft"?\n' * 20_000
    cells = (f'"{text.replace(chr(34), 2 * chr(34))}"', "x" * 140_000, "de", "en")
    delimiter = "," if suffix == ".csv" else "\t"
    content = HEADER.replace(",", delimiter) + delimiter.join(cells) + "\n"
    (pair,) = read_pairs([written(tmp_path / f"pairs{suffix}", content)])
    assert (without_instruction(pair.prompt), pair.response) == (text, "x" * 140_000)


# Values that pass for text


def test_what_can_be_seen_is_told_by_unicode():
    unseen = regex.compile(r"[\s\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]")
    for number in range(sys.maxunicode + 1):
        assert is_visible(chr(number)) == (unseen.fullmatch(chr(number)) is None), hex(number)
    assert not is_visible(" \u200b\ufe0f\n\u3164") and is_visible("\u200ba")


@pytest.mark.parametrize("text", ["\u200b", "\u2060 \ufeff\n", "\x00", "\u3164\u2800", "\U000e0020"])
def test_text_that_nobody_sees_is_empty(tmp_path, text):
    for row in ({**ROW, "target": text}, {"question": "Q", "answer": text}, {"input": INSTRUCTED, "answer": text}):
        for file in (lines(tmp_path / "pairs.jsonl", ROW, row), as_json(tmp_path / "pairs.json", [ROW, row])):
            message = message_of(file)
            assert f"{file}, row 1, field" in message and "no visible character" in message
    file = written(tmp_path / "pairs.csv", HEADER + f'a,"{text}",de,en\n')
    assert "row 0, field 'target': no visible character" in message_of(file)
    written(tmp_path / "train.en", "One\n" + text.replace("\n", ""))
    assert "train.en, row 1: empty line" in message_of(written(tmp_path / "train.de", "Eins\nZwei\n"))


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
