"""Every shipped architecture on TPU slices from one Colab chip to a pod, as `jaxalign plan` sees it: a Markdown table.

A row for each model and stored form, a column for each slice. A cell gives GiB a device and positions/s a chip at peak
rates; or how many GiB a device lacks of 95 % of its memory; or a dash where the mesh does not divide the weights.

    python benchmarks/plan_table.py [--out TABLE.md] [--slices v5e:1x1,...] [--stored bfloat16,int8,nf4] [--models ...]

Hundreds of compilations, minutes each for the large slices; each is kept (jaxalign/planning/compile.py), so that the
command goes on where it was interrupted and, once through, makes the table again in seconds.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxalign import files
from jaxalign.configuration import config_from_flags
from jaxalign.model import architectures
from jaxalign.planning.chips import GIB
from jaxalign.planning.plan import estimate
from jaxalign.verbs.plan import architecture_named, job_of, planned_job

SLICES = (
    *("v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4"),
    *("v6e:1x1", "v6e:2x4", "v6e:16x16", "tpu7x:2x2x1"),
)
SETTINGS = (
    "--config.batch.length=512",
    "--config.batch.rows_at_once=1",
    "--config.loss.chunk=1024",
    "--config.remat=full",
    "--config.dtype=bfloat16",
)
"""Adapters of rank 8 on q and v, 16 rows of 512 positions a step, one at a time on each device: the least memory."""


def table(plans: Iterable[dict[str, Any]]) -> str:
    """The Markdown table, its slices and rows in the order of their first plans."""
    cells = {(plan["architecture"], plan["param_dtype"], plan["topology"]): cell(plan) for plan in plans}
    slices = list(dict.fromkeys(slice for _, _, slice in cells))
    lines = [f"| model | stored in | {' | '.join(slices)} |", f"|---|---{'|---' * len(slices)}|"]
    for model, stored in dict.fromkeys((model, stored) for model, stored, _ in cells):
        row = (cells.get((model, stored, slice), "–") for slice in slices)
        lines.append(f"| {model} | {stored} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def cell(plan: dict[str, Any]) -> str:
    """What one plan says, in short."""
    if not plan["fits"]:
        return f"lacks {plan['memory']['over'] / GIB:.1f}"
    return f"{plan['memory']['peak'] / GIB:.1f}, {plan['step']['tokens_per_second_per_chip']:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the table, with plan.json's documents beside it")
    parser.add_argument("--slices", default=",".join(SLICES))
    parser.add_argument("--stored", default="bfloat16,int8,nf4")
    parser.add_argument("--models", default=",".join(architectures.names()))
    arguments = parser.parse_args()
    cells = [
        (model, slice, stored)
        for model in arguments.models.split(",")
        for slice in arguments.slices.split(",")
        for stored in arguments.stored.split(",")
    ]
    plans = []
    for model, slice, stored in (bar := tqdm(cells, unit="plan", disable=None)):
        bar.set_description(f"{model} in {stored} on {slice}")
        flags = [*SETTINGS, f"--config.model={model}", f"--config.topology={slice}", f"--config.param_dtype={stored}"]
        config = config_from_flags(flags, "base")
        job = job_of(config, architecture_named(model), slice, "train")
        try:
            estimate(job)
        except ValueError as error:  # the mesh does not divide this model's weights
            tqdm.write(f"{model} in {stored} on {slice}: {error}")
        else:
            plans.append(planned_job(job, config))
    lines = table(plans)
    print(lines)
    if arguments.out:
        files.write_text(arguments.out, lines)
        files.write_json(arguments.out.with_suffix(".json"), plans)


if __name__ == "__main__":
    main()
