"""Whatever stands in a file of data, its reader returns rows, or raises InputError with one line."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.fields import is_visible, whole_text
from jaxalign.data.languages import LANGUAGES, parse_languages
from jaxalign.data.math_problems import MATH_TASKS, read_problems
from jaxalign.data.pairs import (
    QuestionPair,
    Rendering,
    instruction_languages,
    read_pairs,
    with_instruction,
    without_instruction,
)
from jaxalign.data.prompts import read_exemplars
from jaxalign.data.tasks import TASKS, TaskData, TaskRow, parse_rows
from jaxalign.data.tokenizer import TEMPLATES, Tokenizer, resolve_template
from tests.any_input import quick, value_or_one_line, written
from tests.data.tiny_tokenizers import byte_level, render, sentencepiece_style

CODES = st.sampled_from(list(LANGUAGES))
NAMES = st.sampled_from([
    "source", "target", "source_language", "target_language", "input", "answer", "question", "query", "m_query", "text",
    "response", "instruction", "output", "messages", "translation", "role", "content", "premise", "hypothesis", "label",
    "sentence1", "sentence2", "exemplars", "overrides",
])  # fmt: skip
# Half the texts are nearly right, so that readers come past their first check.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["de", "en", "positive", "Konsequenz", "x\nTranslate the input from German to English:\n", "\ud800"]
    ),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=4),
    max_leaves=5,
)
ROWS = st.dictionaries(NAMES, TEXTS | VALUES, max_size=6)
DOCUMENTS = st.lists(ROWS | VALUES, max_size=4) | VALUES


def check_pairs(pairs):
    for pair in pairs or []:
        assert is_visible(pair.prompt) and is_visible(pair.response)
        assert {pair.source_language, pair.target_language} <= set(LANGUAGES)
        (pair.prompt + pair.response).encode("utf-8")


CELLS = st.lists(st.lists(TEXTS, max_size=5), max_size=4)
HEADERS = st.sampled_from(["", "source,target,source_language,target_language\n", "source\ttarget\n"])
CONTENTS = st.one_of(
    DOCUMENTS.map(json.dumps),
    st.lists(ROWS | VALUES, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows))),
    st.tuples(HEADERS, CELLS, st.sampled_from(",\t")).map(
        lambda table: table[0] + "\n".join(table[2].join(cells) for cells in table[1])
    ),
    st.text(max_size=60),
    st.binary(max_size=80),
)


@settings(quick, max_examples=200)
@given(st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".de"]), CONTENTS, CONTENTS)
def test_files_of_pairs_of_any_content(tmp_path, suffix, content, english):
    written(tmp_path / "pairs.en", english)
    check_pairs(value_or_one_line(read_pairs, [written(tmp_path / f"pairs{suffix}", content)]))


@quick
@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), max_size=12))
def test_file_names_of_any_text(tmp_path, suffix):
    assert value_or_one_line(read_pairs, [tmp_path / f"absent.{suffix}"]) is None


@quick
@given(DOCUMENTS, st.sampled_from(list(TASKS)), st.sampled_from(["en", "de"]), st.sampled_from(["test", "train"]))
def test_task_files_of_any_shape(tmp_path, document, task, language, split):
    for code in ("en", "de"):
        written(tmp_path / TASKS[task].folder / f"{task}_{code}1_{split}.json", json.dumps(document))
    for row in value_or_one_line(TaskData(tmp_path).rows, TASKS[task], language, slice(None), split) or []:
        assert isinstance(row, TaskRow) and all(text.strip() for text in row.fields)


@quick
@given(
    st.dictionaries(st.sampled_from([*TASKS, "_note", "pawz"]), st.dictionaries(CODES | TEXTS, VALUES | ROWS)) | VALUES
)
def test_exemplars_of_any_shape(tmp_path, document):
    value_or_one_line(read_exemplars, written(tmp_path / "exemplars.json", json.dumps(document)))


@quick
@given(st.sampled_from(list(MATH_TASKS)), st.lists(ROWS | VALUES, max_size=3), st.binary(max_size=40))
def test_math_problems_of_any_shape(tmp_path, task, rows, content):
    file = tmp_path / task / MATH_TASKS[task].file.format("German")
    written(file, "\n".join(map(json.dumps, rows)) if rows else content)
    for problem in value_or_one_line(read_problems, tmp_path, MATH_TASKS[task], "de", slice(None)) or []:
        assert problem.question.strip() and problem.gold == problem.gold


@quick
@given(st.text(max_size=30) | st.from_regex(r"\s*\d*:\d*\s*", fullmatch=True))
def test_rows_and_languages_of_any_text(text):
    rows = value_or_one_line(parse_rows, text)
    assert rows is None or rows == slice(None) or 0 <= rows.start < rows.stop
    assert set(value_or_one_line(parse_languages, text) or []) <= set(LANGUAGES)

    assert value_or_one_line(parse_rows, f"0:{'9' * 5000}") is None


@quick
@given(st.text(min_size=1, max_size=40), CODES, CODES, st.sampled_from(["after", "before"]))
def test_instructions_are_read_back_from_any_text(text, source, target, instruction):
    prompt = with_instruction(text, source, target, instruction)
    assert instruction_languages(prompt, "x") == (source, target)
    assert without_instruction(prompt) == text
    value_or_one_line(instruction_languages, text, "x")


@quick
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.sampled_from([*TEMPLATES, "auto"]) | st.text(max_size=8),
    st.sampled_from(["mistral", "qwen2", "llama"]),
    st.sampled_from(["pieces", "bytes"]),
)
def test_templates_of_any_text(text, name, family, kind):
    tokenizer = TOKENIZERS[kind]
    template = value_or_one_line(resolve_template, name, family)
    if template is None:
        return
    pair = QuestionPair(text, text, "de", "en")
    rendered = value_or_one_line(render, pair, template, tokenizer)
    if rendered is not None:
        assert all(0 <= token < len(tokenizer.backend) for side in rendered for token in side)


TOKENIZERS = {
    "pieces": Tokenizer(sentencepiece_style()),
    "bytes": Tokenizer(byte_level(special=("<|im_start|>", "<|im_end|>"))),
}


@pytest.mark.parametrize("instruction", ["after", "before"])
def test_pairs_survive_being_written_as_json_lines(tmp_path, instruction):
    @quick
    @given(st.lists(st.tuples(READABLE, READABLE, CODES, CODES), min_size=1, max_size=4))
    def survive(rows):
        names = ("source", "target", "source_language", "target_language")
        lines = "\n".join(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows)
        pairs = read_pairs([written(tmp_path / "pairs.jsonl", lines)], Rendering(instruction))
        assert [(without_instruction(pair.prompt), pair.response) for pair in pairs] == [row[:2] for row in rows]

    survive()


READABLE = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: is_visible(text) and whole_text(text, "") == text
)
"""Texts that one can see, without the marks of files at their ends."""
