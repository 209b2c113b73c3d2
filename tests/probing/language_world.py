"""Probes of the tiny world; and three languages with letters of their own, and two neurons for each of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.data.prompts import Exemplars
from jaxalign.data.tasks import TaskData
from jaxalign.model.ragged import Runner
from jaxalign.probing.probe import TASK, ProbeRun, probe_texts
from jaxalign.runtime import make_mesh
from tests import tiny_world

LETTERS = {"en": "abcdefghijklm", "de": "nopqrstuvwxyz", "zh": "ABCDEFGHIJKLM"}
PLANTED = {"en": [[0, 3], [2, 1]], "de": [[0, 17], [1, 9]], "zh": [[1, 20], [2, 23]]}
"""(layer, index) of the neurons that are active on this language's letters alone."""


def probe_run(
    folder: Path,
    rows: slice = slice(0, 6),
    languages: Sequence[str] = tiny_world.LANGUAGES,
    variables: Any = None,
    mesh: tuple[int, int, int] = (8, 1, 1),
    exemplars: Exemplars | None = None,
) -> ProbeRun:
    """The tiny model on the tiny world's rows, which are written where no exemplars are given."""
    exemplars = exemplars or tiny_world.write_data(folder)
    files, tokenizer = TaskData(folder), tiny_world.byte_tokenizer()
    texts = probe_texts([files.rows(TASK, language, rows) for language in languages], exemplars, tokenizer)
    variables = tiny_world.variables() if variables is None else variables
    return ProbeRun(Runner(tiny_world.DECODER, variables, make_mesh(*mesh), 8), variables, texts)


def write_languages(folder: Path, shuffled: bool = False) -> Exemplars:
    """Emotion files whose texts use their own language's letters; shuffled, every file has two texts of each."""
    exemplars = tiny_world.write_data(folder)
    random = np.random.default_rng(0)
    texts = [["".join(random.choice(list(letters), 12)) for _ in range(6)] for letters in LETTERS.values()]
    if shuffled:
        texts = [[texts[(row + shift) % 3][row] for row in range(6)] for shift in range(3)]
    for language, own in zip(LETTERS, texts, strict=True):
        file = next(folder.glob(f"*/emotion_{language}*"))
        rows = json.loads(file.read_text())
        file.write_text(json.dumps([row | {"input": text} for row, text in zip(rows, own, strict=True)]))
    return exemplars


def planted_variables() -> dict[str, Any]:
    """Parameters of `tiny_world.DECODER`: the first three dimensions say which language a letter is of.

    Nothing writes to those three, and nothing but the planted neurons and the head reads them.
    """
    variables = jax.tree.map(lambda leaf: np.array(leaf), tiny_world.variables())
    params = variables["params"]
    embedding, layers = params["embed_tokens"]["embedding"], params["layers"]
    embedding[:, :3] = 0
    for dimension, letters in enumerate(LETTERS.values()):
        embedding[tiny_world.byte_tokenizer().prompt_ids(letters), dimension] = 4
    for writer in ("self_attn/o_proj", "mlp/down_proj"):
        module, name = writer.split("/")
        layers[module][name]["kernel"][:, :, :3] = 0
    for reader in ("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj", "mlp/up_proj", "mlp/gate_proj"):
        module, name = reader.split("/")
        layers[module][name]["kernel"][:, :3] = 0
    gate, up, down = (layers["mlp"][f"{name}_proj"]["kernel"] for name in ("gate", "up", "down"))
    for dimension, (language, pairs) in enumerate(PLANTED.items()):
        # Towards this language's letters in the head, so that without its neurons they are less likely.
        letters = params["lm_head"]["kernel"][:, tiny_world.byte_tokenizer().prompt_ids(LETTERS[language])].mean(axis=1)
        letters[:3] = 0
        for layer, index in pairs:
            # Far above 0 on this language, far below on the others: there the activation is 0 in float32.
            gate[layer, :, index] = 0
            gate[layer, :3, index] = -200
            gate[layer, dimension, index] = 200
            up[layer, :, index] = 0
            up[layer, dimension, index] = 0.01
            down[layer, index] = 0.1 * letters / np.linalg.norm(letters)
    return variables
