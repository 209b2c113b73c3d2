"""The accuracy of every language with the neurons of each switched off: where evaluation and probing meet."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.evaluation.cells import CellKey, GridData, label_cell
from jaxalign.evaluation.score import Scorer
from jaxalign.probing.masking import effect_labels, effects, language_masks, mask_names
from jaxalign.probing.probe import TASK, ProbeRun, write_probe


def masked_params(params: Any, mask: np.ndarray) -> Any:
    """Parameters of a model in which the neurons at 0 in `mask` [L, F] do nothing: what they write is 0.

    The same as a neuron mask in the forward pass, for programs that know of none. The projection is not quantised.
    """

    def masked(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith("mlp/down_proj/kernel"):
            return leaf
        return leaf * jnp.asarray(mask, leaf.dtype)[:, :, None]

    return jax.tree_util.tree_map_with_path(masked, params)


def write_masked_accuracy(
    run: ProbeRun, own: Mapping[str, np.ndarray], data: GridData, batch_tokens: int
) -> dict[str, Any]:
    """Masks each language's neurons in turn; writes `masked_accuracy.npz` and, naming its axes, `masked_accuracy.json`.

    Args:
      own: language -> (layer, index) of its neurons, int [n, 2].
      data: the rows; its seed is that of the random controls and of the bootstrap.
      batch_tokens: as `Scorer` takes it.

    Returns:
      The content of the JSON file.
    """
    languages = list(run.languages)
    masks = language_masks(own, languages, run.decoder.config, data.seed)
    cells = [label_cell(data, CellKey(TASK.name, language, "english")) for language in languages]
    asked = [(cell, cell.queries()) for cell in cells]
    scorer = Scorer(run.decoder, run.variables, run.mesh, batch_tokens)
    answered = []
    for mask in masks:
        variables = scorer.runner.place({**run.variables, "params": masked_params(run.variables["params"], mask)})
        answered.append([cell.ask(scorer, variables, queries, run.on_rows) for cell, queries in asked])
    right = np.array([[[record["correct_corrected"] for record in cell] for cell in cells] for cells in answered])
    change = effects(right.astype(np.float64), np.ones(right.shape[1:], np.int64), data.seed)
    document = {
        "axes": {
            "right": ["mask", "language", "row"],
            "accuracy": ["mask", "language"],
            "accuracy_change": ["effect", "masked_language", "language", "estimate"],
        },
        **effect_labels("masked_language", own, languages, [row.row for row in cells[0].rows]),
        "mask": mask_names(languages),
        "variant": "english",
        **run.description,
    }
    arrays = {"right": right, "accuracy": right.mean(axis=2), "accuracy_change": change}
    write_probe(run.out, "masked_accuracy", arrays, document)
    return document
