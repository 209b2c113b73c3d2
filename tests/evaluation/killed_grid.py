"""A tiny grid in a process of its own, to be killed. Arguments: data folder, output folder."""

import sys
import tempfile
from pathlib import Path
from typing import get_args

from jaxalign.data.prompts import Variant, read_exemplars
from jaxalign.data.tasks import TASKS, TaskData
from jaxalign.evaluation.cells import GridData, cell_keys, label_cells
from jaxalign.evaluation.grid import Grid, run_grid
from jaxalign.evaluation.score import Scorer
from jaxalign.runtime import make_mesh
from tests import tiny_world

KEYS = cell_keys([TASKS["emotion"], TASKS["snli"]], tiny_world.LANGUAGES, get_args(Variant))
DESCRIPTION = {"model": "tiny", "adapter": None, "tuned_on": [], "config": {}, "command": "c", "versions": {}}


def main(folder: Path, out: Path) -> None:
    exemplars = read_exemplars(folder / "exemplars.json")
    data = GridData(TaskData(folder), exemplars, tiny_world.byte_tokenizer(), slice(None), "study", seed=0)
    scorer = Scorer(tiny_world.DECODER, tiny_world.variables(), make_mesh(1, 1, 1))
    # Once for its programs: kills are to fall on scoring and writing, not on compilation.
    with tempfile.TemporaryDirectory() as unused:
        run_grid(Grid(Path(unused)), label_cells(data, KEYS), scorer, tiny_world.variables(), {}, DESCRIPTION)
    print("ready", flush=True)
    run_grid(Grid(out), label_cells(data, KEYS), scorer, tiny_world.variables(), {}, DESCRIPTION)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
