"""Plans side by side."""

from collections.abc import Sequence
from typing import Any

from jaxalign.planning.chips import parse_slice
from jaxalign.planning.plan import gib

COLUMNS = ("model", "program", "slice", "chips", "stored in", "fits", "peak a device", "step", "positions/s a chip")


def table(plans: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines, a row a plan."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(row, plans)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def row(plan: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one plan; times are those at peak rates, the largest bound."""
    memory, step = plan["memory"], plan.get("step")
    return (
        plan["architecture"],
        plan["program"],
        plan["topology"],
        str(plan["chips"]),
        plan["param_dtype"],
        "yes" if plan["fits"] else f"no, {gib(memory['over'])} over",
        f"{gib(memory['peak'])} of {gib(memory['capacity'])}",
        f"{step['seconds']['roofline'] * 1e3:.3g} ms" if step else "",
        f"{step['tokens_per_second_per_chip']:,.0f}" if step else "",
    )


def smallest_that_fits(plans: Sequence[dict[str, Any]]) -> str | None:
    """The slice of fewest chips, then of least memory, on which all planned programs fit."""
    names = dict.fromkeys(plan["topology"] for plan in plans)
    fitting = [name for name in names if all(plan["fits"] for plan in plans if plan["topology"] == name)]

    def size(name: str) -> tuple[int, int]:
        slice = parse_slice(name)
        return slice.chips, slice.chip.capacity

    return min(fitting, key=size, default=None)
