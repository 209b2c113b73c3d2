"""The table of plans."""

from typing import Any

from plan_table import table

GIB = 2**30


def plan(model: str, stored: str, topology: str, over: float = 0.0) -> dict[str, Any]:
    document: dict[str, Any] = {"architecture": model, "param_dtype": stored, "topology": topology, "fits": not over}
    document["memory"] = {"peak": int(8.25 * GIB), "over": int(over * GIB)}
    return document | ({} if over else {"step": {"tokens_per_second_per_chip": 12345.6}})


def test_a_row_a_stored_form_and_a_column_a_slice():
    plans = [plan("a", "bfloat16", "v5e:1x1", over=3.5), plan("a", "bfloat16", "v5e:2x4"), plan("a", "nf4", "v5e:1x1")]
    assert table(plans).splitlines() == [
        "| model | stored in | v5e:1x1 | v5e:2x4 |",
        "|---|---|---|---|",
        "| a | bfloat16 | lacks 3.5 | 8.2, 12,346 |",
        "| a | nf4 | 8.2, 12,346 | – |",
    ]
