"""A way to tune an adapter, in a process that waits for its turn.

Arguments: jaxalign or a setting of train_peer.py, the model folder, the folder of the work, threads. Started by
train.py. Says {"ready": ...} when the model is loaded and has made one step; then answers each line, a number of steps
to make from the start, with {"seconds": ..., "losses": ..., "gradient_norms": ..., "peak_mib": ...}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from train_peer import Run, peer, peer_computes, product_flops_per_second
from workers import answer, keep_to, peak_mib

OURS = "jaxalign"


def ours(folder: Path, work: dict[str, Any], start: dict[str, np.ndarray]) -> Run:
    """The compiled step of `jaxalign train`, fed as the loop feeds it."""
    import jax
    import jax.numpy as jnp

    from jaxalign import runtime
    from jaxalign.data.batches import BatchPlan, TokenisedPairs, prefetch
    from jaxalign.model.config import read_config
    from jaxalign.model.lora import LoraConfig
    from jaxalign.model.transformer import Decoder
    from jaxalign.model.weights import load_params, place_on
    from jaxalign.training.optimizer import OptimizerConfig, cosine_schedule, make_optimizer
    from jaxalign.training.step import (
        StepConfig,
        init_state,
        make_loss_sums,
        make_shardings,
        make_train_step,
        place_batch,
    )

    runtime.start()
    config, mesh = read_config(folder), runtime.make_mesh()
    frozen = {"params": load_params(folder, config, jnp.float32, place_on(mesh))}
    ids = [ids for pairs in work["steps"] for ids, _ in pairs]
    prompts = [prompt for pairs in work["steps"] for _, prompt in pairs]
    pairs = TokenisedPairs(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), np.array(prompts))
    plan = BatchPlan(pairs, work["rows"], work["length"], {})

    optimizer_config, step_config = OptimizerConfig(**work["optimizer"]), StepConfig(**work["step"])
    schedule = cosine_schedule(optimizer_config, plan.steps)
    optimizer = make_optimizer(optimizer_config, schedule)
    trainable: Any = {"lora": {"layers": {}}}
    for path, array in start.items():
        module, target, factor = path.split("/")
        trainable["lora"]["layers"].setdefault(module, {}).setdefault(target, {})[factor] = array
    shardings = make_shardings(trainable, frozen, optimizer, mesh)
    lora = LoraConfig(**{**work["lora"], "targets": tuple(work["lora"]["targets"])})
    loss_sums = make_loss_sums(Decoder(config, lora), plan.targets_per_row, step_config.loss_chunk)
    train_step = make_train_step(loss_sums, optimizer, schedule, shardings, step_config)

    def run(steps: int) -> tuple[list[float], list[float]]:
        state = init_state(trainable, optimizer, shardings)
        each = []
        for batch in prefetch(plan.rows_at, 0, steps):
            state, metrics = train_step(state, frozen, place_batch(batch, shardings.batch))
            each.append(metrics)
        each = jax.device_get(each)
        return [float(row.loss) for row in each], [float(row.gradient_norm) for row in each]

    return run


def we_compute(work: dict[str, Any]) -> dict[str, Any]:
    """As `peer_computes`: blocks of rows that hold a pair, and the chunks of their target positions that hold one."""
    rows, head_positions = [], 0
    pairs = [pair for step in work["steps"] for pair in step]
    at_once = work["step"]["rows_at_once"] or len(work["rows"][0])
    columns = min(max(1, work["step"]["loss_chunk"] // at_once), work["targets_per_row"])
    for step in work["rows"]:
        for first in range(0, len(step), at_once):
            block = step[first : first + at_once]
            most = max(sum(len(pairs[i][0]) - pairs[i][1] for i in row) for row in block)
            if most:
                rows += [work["length"]] * len(block)
                head_positions += -(-most // columns) * columns * len(block)
    return {"rows": rows, "head_positions": head_positions, "recomputed": False}


def main(way: str, folder: Path, work_folder: Path, threads: int) -> None:
    keep_to(threads)
    work = json.loads((work_folder / "work.json").read_text())
    start = dict(np.load(work_folder / "adapter.npz"))
    run = ours(folder, work, start) if way == OURS else peer(folder, work, start, way, threads)
    ready: dict[str, Any] = {"loaded_mib": peak_mib()}
    begun = time.perf_counter()
    run(1)
    ready["first_step_seconds"] = time.perf_counter() - begun
    ready["computed"] = we_compute(work) if way == OURS else peer_computes(work, way)
    ready["product_flops_per_second"] = 0.0 if way == OURS else product_flops_per_second()
    answer({"ready": ready})
    for line in sys.stdin:
        begun = time.perf_counter()
        losses, norms = run(json.loads(line))
        seconds = time.perf_counter() - begun
        answer({"seconds": seconds, "losses": losses, "gradient_norms": norms, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
