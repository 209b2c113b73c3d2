"""Tokens/s a chip at peak rates as a slice grows: `python benchmarks/scaling.py --out TABLE.md`, and a plot beside it.

Mistral-7B-v0.1 with adapters of rank 8 on q and v, everything in bfloat16, parameters over all chips (`fsdp`), as many
rows of 2,048 positions as there are chips. Every program is compiled for its slice (jaxalign/planning); its rate is
what the slowest of compute, vector unit, memory and interconnect allows. What has been compiled once is kept.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from tqdm import tqdm

from jaxalign import files
from jaxalign.configuration import config_from_flags
from jaxalign.planning.chips import parse_slice
from jaxalign.verbs.plan import architecture_named, job_of, planned_job

SLICES = {
    "v5e": ("2x4", "4x8", "8x8", "16x16"),
    "v5p": ("2x2x2", "2x4x4", "4x4x4", "4x8x8"),
    "v6e": ("2x4", "4x8", "8x8", "16x16"),
}
"""Of 8, 32, 64 and 256 chips."""
SETTINGS = ("--config=align_mistral_7b", "--config.model=mistral-7b-v0.1", "--config.batch.length=2048")


def plan_of(topology: str, rows_of_a_chip: int) -> dict[str, Any]:
    """The plan of a step with so many rows on each chip."""
    rows = f"--config.batch.rows_per_step={parse_slice(topology).chips * rows_of_a_chip}"
    flags = (*SETTINGS, rows, "--config.batch.pairs_per_step=0", f"--config.topology={topology}")
    config = config_from_flags(flags, "base")
    return planned_job(job_of(config, architecture_named(config.model), topology, "train"), config)


def table(plans: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a number of chips, and the last against the first."""
    chips = [plan["chips"] for plan in next(iter(plans.values()))]
    rates = {kind: [plan["step"]["tokens_per_second_per_chip"] for plan in of_kind] for kind, of_kind in plans.items()}
    lines = [f"| chips | {' | '.join(plans)} |", f"|---{'|---' * len(plans)}|"]
    for i, size in enumerate(chips):
        cells = [f"{rates[kind][i]:,.0f} ({plans[kind][i]['step']['bound']})" for kind in plans]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    shares = [f"{of_kind[-1] / of_kind[0]:.0%}" for of_kind in rates.values()]
    return "\n".join([*lines, f"| {chips[-1]} against {chips[0]} | {' | '.join(shares)} |"]) + "\n"


def plot(plans: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Tokens/s a chip over the number of chips, a line a kind of chip."""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for (kind, of_kind), marker in zip(plans.items(), "osD", strict=False):
        rates = [plan["step"]["tokens_per_second_per_chip"] for plan in of_kind]
        axes.plot([plan["chips"] for plan in of_kind], rates, marker=marker, label=kind)
    axes.set_xscale("log", base=2)
    axes.set_xticks([plan["chips"] for plan in next(iter(plans.values()))])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="chips", ylabel="tokens/s a chip, at most", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the table; plans (.json) and plot (.svg) beside it")
    parser.add_argument("--rows", type=int, default=1, help="rows on each chip")
    parser.add_argument("--kinds", default=",".join(SLICES))
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    plans: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    cells = [(kind, grid) for kind in kinds for grid in SLICES[kind]]
    for kind, grid in (bar := tqdm(cells, unit="plan", disable=None)):
        bar.set_description(f"{kind}:{grid}")
        plans[kind].append(plan_of(f"{kind}:{grid}", arguments.rows))
    lines = table(plans)
    print(lines)
    files.write_text(arguments.out, lines)
    files.write_json(arguments.out.with_suffix(".json"), plans)
    plot(plans, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
