import json
from pathlib import Path
from typing import Any

import pytest

from jaxalign.data.math_problems import MATH_TASKS, alpaca_prompt, read_problems
from jaxalign.errors import InputError

MGSM, MSVAMP = MATH_TASKS["mgsm"], MATH_TASKS["msvamp"]
ALL = slice(None)


def write(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("folder", ["", "qalign/"])
def test_rows_of_both_tasks(tmp_path: Path, folder: str):
    mgsm = [{"query": f"প্রশ্ন {i}?", "response": answer} for i, answer in enumerate(("18", "2,125", "-3"))]
    write(tmp_path / f"{folder}mgsm/mgsm_Bengali.json", mgsm)
    write(
        tmp_path / f"{folder}msvamp/test_Swahili.json",
        [{"query": "in English", "m_query": "Ngapi?", "equation": "+ a b", "response": "8.0"}],
    )
    problems = read_problems(tmp_path, MGSM, "bn", slice(1, 3))
    assert [(p.row, p.question, p.gold) for p in problems] == [(1, "প্রশ্ন 1?", 2125.0), (2, "প্রশ্ন 2?", -3.0)]
    assert {(p.task, p.language) for p in problems} == {("mgsm", "bn")}
    (problem,) = read_problems(tmp_path, MSVAMP, "sw", ALL)
    assert (problem.question, problem.answer, problem.gold) == ("Ngapi?", "8.0", 8.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "1"}, "row 1: no field 'query'"),
        ({"query": " ", "response": "1"}, "row 1, field 'query': empty"),
        ({"query": "q", "response": 1}, "row 1, field 'response': text is needed, found 1"),
        ({"query": "q", "response": "1,23"}, "row 1, field 'response': a number is needed.*'1,23'"),
        (["q", "1"], "row 1: an object is needed"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str):
    write(tmp_path / "mgsm/mgsm_German.json", [{"query": "q", "response": "1"}, row])
    with pytest.raises(InputError, match=f"mgsm_German.json, {message}"):
        read_problems(tmp_path, MGSM, "de", slice(0, 1))


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no folder mgsm \(nor qalign/mgsm\)"):
        read_problems(tmp_path, MGSM, "de", ALL)
    file = write(tmp_path / "mgsm/mgsm_German.json", [{"query": "q", "response": "1"}])
    with pytest.raises(InputError, match=r"mgsm: there is no it file; its languages are bn,th"):
        read_problems(tmp_path, MGSM, "it", ALL)
    with pytest.raises(InputError, match=r"mgsm_French.json: no such file"):
        read_problems(tmp_path, MGSM, "fr", ALL)
    with pytest.raises(InputError, match=r"no row in 1:2; the file has 1"):
        read_problems(tmp_path, MGSM, "de", slice(1, 2))
    file.write_text('{"query": "q", "respo', encoding="utf-8")
    with pytest.raises(InputError, match=r"not JSON"):
        read_problems(tmp_path, MGSM, "de", ALL)


def test_the_prompt_ends_with_its_colon():
    assert alpaca_prompt("How many?\n{x}") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHow many?\n{x}\n\n### Response:"
    )


def test_other_names_of_a_language(tmp_path: Path):
    write(tmp_path / "mgsm/mgsm_German.json", [{"query": "q", "response": "1"}])
    assert [problem.language for problem in read_problems(tmp_path, MGSM, "deu_Latn", ALL)] == ["de"]
