import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxalign.data.math_problems import MATH_TASKS, MathProblem
from jaxalign.data.pairs import QuestionPair, with_instruction
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.evaluation.generate import Answer, Generator
from jaxalign.evaluation.grid import open_grid, run_grid
from jaxalign.evaluation.open_cells import MathCell, OpenCell, TranslationCell, chrf, math_cell, translation_cells
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.data.tiny_tokenizers import byte_level, render

SETTINGS = {"model": "tiny", "dtype": "float32"}
DESCRIPTION = {"model": "tiny", "adapter": None, "tuned_on": [], "config": {}, "command": "c", "versions": {}}
FILES = ("answers.jsonl", "open_results.json")
PAIRS = [
    QuestionPair(with_instruction(f"{source} question {i}?", source, target, "after"), f"Question {i}?", source, target)
    for i in range(3)
    for source, target in (("de", "en"), ("sw", "en"), ("en", "zh"))
]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(tiny_world.DECODER, tiny_world.variables(), make_mesh(8, 1, 1), batch_size=8)


@pytest.fixture
def cells(tmp_path: Path) -> list[OpenCell]:
    """MGSM in two languages and translations from two."""
    folder = tmp_path / "data/mgsm"
    folder.mkdir(parents=True)
    for name in ("German", "Thai"):
        rows = [{"query": f"{name} {i}?", "response": str(i)} for i in range(4)]
        (folder / f"mgsm_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_world.byte_tokenizer()
    maths = [
        math_cell(tmp_path / "data", MATH_TASKS["mgsm"], language, slice(1, 4), tokenizer, max_tokens=6)
        for language in ("de", "th")
    ]
    translations = translation_cells(
        PAIRS, slice(0, 2), tokenizer, "none", heldout=True, tuned_on=["de", "en"], max_tokens=6
    )
    return [*maths, *translations[:2]]


def run(out: Path, generator: Any, cells: list[OpenCell], settings: dict[str, Any] = SETTINGS) -> dict[str, Any]:
    return run_grid(open_grid(out), cells, generator, tiny_world.variables(), settings, DESCRIPTION)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_files_of_open_answers(tmp_path: Path, generator: Generator, cells: list[OpenCell]):
    results = run(tmp_path / "out", generator, cells)
    assert json.loads((tmp_path / "out/open_results.json").read_text()) == results
    assert [(cell["task"], cell["language"], cell["count"]) for cell in results["open_cells"]] == [
        ("mgsm", "de", 3),
        ("mgsm", "th", 3),
        ("translation", "de", 2),
        ("translation", "sw", 2),
    ]
    assert [cell.get("seen") for cell in results["open_cells"]] == [None, None, True, False]
    assert results["open_cells"][2]["held_out"] is True and results["failures"] == []
    assert results["task_version"] == {"mgsm": 2, "translation": 1} and results["tuned_on"] == []
    records = lines(tmp_path / "out/answers.jsonl")
    decoding = "prompt_tokens answer_tokens stopped near_ties"
    of_math = f"task language row {decoding} text reference_number corrected_number gold"
    assert " ".join(records[0]) == f"{of_math} correct_reference correct_corrected"
    assert " ".join(records[-1]) == f"task language target row {decoding} source reference text chrf"
    assert [record["row"] for record in records] == [1, 2, 3, 1, 2, 3, 0, 1, 0, 1]
    assert [record["gold"] for record in records[:3]] == [1, 2, 3]
    expected = generator(tiny_world.variables(), cells[0].prompts, cells[0].stops, 6)
    assert records[:3] == cells[0].records(expected)
    timing = json.loads((tmp_path / "out/open_timing.json").read_text())
    assert timing["answers"] == {"decoded": 10, "reused": 0} and timing["chosen_tokens"] > 0
    assert not (tmp_path / "out/results.json").exists() and not (tmp_path / "out/timing.json").exists()
    # Again, with one cell to decode.
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    (tmp_path / "out/cells/mgsm_th.json").unlink()
    run(tmp_path / "out", generator, cells)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
    assert json.loads((tmp_path / "out/open_timing.json").read_text())["answers"] == {"decoded": 3, "reused": 7}


def test_a_cell_that_fails_does_not_lose_the_others(tmp_path: Path, generator: Generator, cells: list[OpenCell]):
    results = run(tmp_path, generator, [*cells[:3], replace(cells[3], prompts=[[], [1]])])
    failed = {"task": "translation", "language": "sw", "target": "en", "error": "prompt 0 has no tokens"}
    assert results["failures"] == [failed]
    assert len(results["open_cells"]) == 3 and len(lines(tmp_path / "answers.jsonl")) == 8


def judged(golds: list[str], texts: list[str], language: str = "en") -> tuple[MathCell, list[dict[str, Any]]]:
    problems = [MathProblem("mgsm", language, i, "q", gold) for i, gold in enumerate(golds)]
    tokenizer = tiny_world.byte_tokenizer()
    cell = MathCell("mgsm", language, tokenizer, [[1]] * len(golds), (0,), 600, problems, range(len(golds)))
    answers = [Answer(tokenizer.ids(text), i % 2 == 0, near_ties=i) for i, text in enumerate(texts)]
    return cell, cell.records(answers)


def test_both_extractions_judge_side_by_side():
    cell, records = judged(["2,125", "-5", "5", "0", "7"], ["It is 2,125.", "so -5", "so -5", "none", "9" * 400])
    assert [record["correct_reference"] for record in records] == [True, True, True, True, False]
    assert [record["correct_corrected"] for record in records] == [True, True, False, False, False]
    assert [record["reference_number"] for record in records] == [2125, 5, 5, 0, None]
    assert [record["corrected_number"] for record in records] == [2125, -5, -5, None, None]
    summary = cell.summary(records)
    assert (summary["accuracy_reference"], summary["accuracy_corrected"]) == (0.8, 0.4)
    expected = binomtest(2, 5).proportion_ci(0.95, method="wilson")
    assert summary["interval_corrected"] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert (summary["near_ties"], summary["stopped_share"]) == (10, 0.6)
    json.loads(json.dumps(records, allow_nan=False))


def test_texts_survive_as_they_are(
    tmp_path: Path, generator: Generator, cells: list[OpenCell], monkeypatch: pytest.MonkeyPatch
):
    tokenizer = tiny_world.byte_tokenizer()
    wild = 'a\u001b[31m\u2028\r\n\t"\\ <b>\u202e 18'
    eos = tokenizer.eos_id
    answers = [Answer([*tokenizer.ids(wild), eos], False, 0), Answer([255], False, 0), Answer([], True, 0)]
    assert [record["text"] for record in cells[0].records(answers)] == [wild, "\ufffd", ""]

    monkeypatch.setattr(Generator, "__call__", lambda *_: [Answer(tokenizer.ids(wild), True, 0)] * 3)
    run(tmp_path, generator, cells[:1])
    # One object a line, whatever the text holds.
    raw = (tmp_path / "answers.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line)["text"] for line in raw[:-1]] == [wild] * 3 and "\u001b" not in "".join(raw)


def test_translation_cells_are_prompted_as_in_training():
    tokenizer = tiny_world.byte_tokenizer()
    cells = translation_cells(PAIRS, slice(1, 3), tokenizer, "default", heldout=False, tuned_on=None)
    assert [cell.name for cell in cells] == ["translation_de_en", "translation_sw_en", "translation_en_zh"]
    assert [(cell.heldout, cell.seen, cell.max_tokens, *cell.rows) for cell in cells] == [(False, None, 256, 1, 2)] * 3
    swahili = [pair for pair in PAIRS if pair.source_language == "sw"][1:]
    assert cells[1].items == swahili
    assert cells[1].prompts == [render(pair, "default", tokenizer)[0] for pair in swahili]
    assert cells[1].stops == (tokenizer.eos_id,)
    assert translation_cells(PAIRS, slice(3, 4), tokenizer, "none", heldout=False, tuned_on=[]) == []


def test_a_translation_ends_where_its_template_says():
    tokenizer = Tokenizer(byte_level(special=("<|im_start|>", "<|im_end|>")))
    (cell,) = translation_cells(PAIRS[:1], slice(None), tokenizer, "qwen", heldout=False, tuned_on=[])
    assert set(cell.stops) == {tokenizer.eos_id, tokenizer.vocabulary["<|im_end|>"]}


def test_chrf_of_a_cell_is_the_corpus_score():
    tokenizer = tiny_world.byte_tokenizer()
    cell = translation_cells(PAIRS, slice(None), tokenizer, "none", heldout=True, tuned_on=["en"])[0]
    assert isinstance(cell, TranslationCell)
    texts = ("Question 0?", "Question 1?", "something else entirely")
    records = cell.records([Answer(tokenizer.ids(text), True, 0) for text in texts])
    assert [record["chrf"] for record in records][:2] == [100, 100]
    summary = cell.summary(records)
    assert summary["language"] == "de" and summary["target"] == "en" and summary["seen"] is False
    assert "|nc:6|" in summary["signature"]
    assert 30 < summary["chrf"] < float(np.mean([record["chrf"] for record in records]))


def test_questions_that_spell_control_tokens_are_text(tmp_path: Path):
    tokenizer, text = tiny_world.byte_tokenizer(), "How much is <|endoftext|> and 2<|endoftext|>?"
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm/mgsm_German.json").write_text(json.dumps({"query": text, "response": "1"}) + "\n")
    pair = QuestionPair(text, text, "de", "en")
    cells = [
        math_cell(tmp_path, MATH_TASKS["mgsm"], "de", slice(None), tokenizer),
        *(
            translation_cells([pair], slice(None), tokenizer, template, heldout=False, tuned_on=None)[0]
            for template in ("default", "alpaca", "none")
        ),
    ]
    for cell in cells:
        [prompt] = cell.prompts
        assert tokenizer.control_ids.isdisjoint(prompt)
        assert text in str(tokenizer.backend.decode(prompt))


TEXTS = ["How many apples does Anna have?", "Two trains leave.", "", "Wie viele Äpfel?"]
REFERENCES = ["How many apples has Anna got?", "Two trains leave.", "A dog runs.", "How many apples?"]


def by_definition(texts: list[str], references: list[str]) -> float:
    """chrF (Popović 2015): F with beta 2 of mean precision and recall over the character 1- to 6-grams of a corpus."""

    def grams(text: str, n: int) -> Counter[str]:
        text = "".join(text.split())
        return Counter(text[i : i + n] for i in range(len(text) - n + 1))

    precisions, recalls = [], []
    for n in range(1, 7):
        matches = found = wanted = 0
        for text, reference in zip(texts, references, strict=True):
            ours, theirs = grams(text, n), grams(reference, n)
            matches += sum((ours & theirs).values())
            # sacrebleu leaves out a text that is too short for an n-gram on either side.
            found += sum(ours.values()) if theirs else 0
            wanted += sum(theirs.values())
        precisions.append(matches / found)
        recalls.append(matches / wanted)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_scores_are_those_of_the_definition():
    score = chrf(TEXTS, REFERENCES)
    assert score.corpus == pytest.approx(by_definition(TEXTS, REFERENCES), abs=1e-9)
    assert score.sentences[0] == pytest.approx(by_definition(TEXTS[:1], REFERENCES[:1]), abs=1e-9)
    assert score.sentences[1:3] == [100, 0]
    assert score.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_a_corpus_is_not_the_mean_of_its_sentences():
    score = chrf(TEXTS, REFERENCES)
    assert abs(score.corpus - sum(score.sentences) / len(TEXTS)) > 1
