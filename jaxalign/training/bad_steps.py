"""A step whose loss or gradient is not finite: what is known of it, and its rows on disk, to look at and to replay."""

import jax
import numpy as np

from jaxalign import files
from jaxalign.data.batches import BatchPlan


class NonFiniteStep(Exception):
    """A step, which counts from 1, with its loss and the norm of its gradient."""

    def __init__(self, step: int, loss: float, gradient_norm: float):
        super().__init__(f"step {step}: the loss is {loss} and the gradient's norm {gradient_norm}")
        self.step, self.loss, self.gradient_norm = step, loss, gradient_norm


def dump_bad_step(run: files.AnyPath, plan: BatchPlan, bad: NonFiniteStep) -> files.AnyPath:
    """Writes the step's global batch, and which pairs stand in its rows: `RUN/nonfinite/STEP.npz` and `.json`."""
    folder = run / "nonfinite"
    if jax.process_index() == 0:
        with files.whole_file(folder / f"{bad.step}.npz") as partial, partial.open("wb") as file:
            np.savez_compressed(file, **plan.rows_at(bad.step - 1)._asdict())
        numbers = {"step": bad.step, "loss": str(bad.loss), "gradient_norm": str(bad.gradient_norm)}
        files.write_json(folder / f"{bad.step}.json", {**numbers, "pairs_in_rows": plan.rows[bad.step - 1]})
    return folder
