"""Ways to compute label masses of the same prompts, each in a process of its own that waits for its turn.

Arguments: a way, the model folder, the work file, threads, batch size. Started by evaluate.py. Says {"ready": ...} when
the model is loaded; then answers each line that names a task with {"seconds": ..., "masses": ...}.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers import answer, keep_to, peak_mib, torch_model

Cell = dict[str, Any]
"""prompts: token ids; words: (ids, scored_from) of each prompt's label words; label_sets: candidate ids."""
Way = Callable[[list[Cell]], list[list[list[float]]]]
"""The masses [cells][prompts][labels] of a task's cells."""

WAYS = ("study", "last logit", "batched", "jaxalign", "jaxalign, words too")


def masses_of(logits: Any, label_sets: list[list[int]]) -> list[list[float]]:
    """The softmax of logits [B,V], summed over each label's candidates."""
    probabilities = logits.softmax(-1)
    return [[float(row[ids].sum()) for ids in label_sets] for row in probabilities]


def one_at_a_time(model: Any, full_logits: bool) -> Way:
    """Prompt by prompt, as the study's scripts do; they take the logits of all positions."""
    import torch

    def run(cells: list[Cell]) -> list[list[list[float]]]:
        with torch.inference_mode():
            return [
                [
                    masses_of(
                        model(torch.tensor([prompt]), use_cache=False, logits_to_keep=0 if full_logits else 1).logits[
                            :, -1
                        ],
                        cell["label_sets"],
                    )[0]
                    for prompt in cell["prompts"]
                ]
                for cell in cells
            ]

    return run


def batched(model: Any, size: int) -> Way:
    """Batches of prompts of like length, padded on the left, only the last position at the head."""
    import torch

    def run(cells: list[Cell]) -> list[list[list[float]]]:
        results = []
        for cell in cells:
            prompts: list[list[int]] = cell["prompts"]
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            found: dict[int, list[float]] = {}
            for first in range(0, len(order), size):
                members = order[first : first + size]
                longest = len(prompts[members[-1]])
                pads = [longest - len(prompts[i]) for i in members]
                ids = torch.tensor([[0] * pad + prompts[i] for pad, i in zip(pads, members, strict=True)])
                mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                with torch.inference_mode():
                    logits = model(
                        ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
                    ).logits[:, -1]
                    found |= dict(zip(members, masses_of(logits, cell["label_sets"]), strict=True))
            results.append([found[i] for i in range(len(prompts))])
        return results

    return run


def ours(folder: Path, words: bool) -> tuple[Way, Any]:
    """jaxalign's scorer, and the way."""
    import jax.numpy as jnp

    from jaxalign.data.prompts import Continuation, LabelQuery
    from jaxalign.evaluation.score import Scorer
    from jaxalign.model.config import read_config
    from jaxalign.model.transformer import Decoder
    from jaxalign.model.weights import load_params, place_on
    from jaxalign.runtime import make_mesh

    config, mesh = read_config(folder), make_mesh(1, -1, 1)
    variables = {"params": load_params(folder, config, jnp.float32, place_on(mesh))}
    scorer = Scorer(Decoder(config), variables, mesh)

    def run(cells: list[Cell]) -> list[list[list[float]]]:
        results = []
        for cell in cells:
            queries = [
                LabelQuery(prompt, tuple(Continuation(*word) for word in own) if words else ())
                for prompt, own in zip(cell["prompts"], cell["words"], strict=True)
            ]
            results.append(scorer.score(variables, queries, cell["label_sets"]).prefix_mass.tolist())
        return results

    return run, scorer


def main(way: str, folder: Path, work_file: Path, threads: int, batch_size: int) -> None:
    keep_to(threads)
    work = json.loads(work_file.read_text())
    scorer = None
    if way.startswith("jaxalign"):
        run, scorer = ours(folder, words="words" in way)
    else:
        model = torch_model(folder, threads)
        run = batched(model, batch_size) if way == "batched" else one_at_a_time(model, full_logits=way == "study")
    loaded = peak_mib()
    begun = time.perf_counter()
    # Ours meets every shape once, which compiles; torch's first calls are slower than the rest.
    for cells in work.values():
        run(cells if scorer else [{**cells[0], "prompts": cells[0]["prompts"][:2]}])
    ready = {"loaded_mib": loaded, "warm_up_seconds": time.perf_counter() - begun}
    if scorer:
        ready |= {
            "compile_seconds": sum(scorer.runner.compile_seconds.values()),
            "compilations": scorer.runner.compilations.total(),
        }
    answer({"ready": ready})
    for line in sys.stdin:
        begun = time.perf_counter()
        masses = run(work[json.loads(line)])
        answer({"seconds": time.perf_counter() - begun, "masses": masses, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
