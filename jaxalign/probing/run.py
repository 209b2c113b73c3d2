"""What every probe is given: a model on its mesh, prompts, and where the results go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxalign.model.ragged import PromptFunction, PromptRunner
from jaxalign.model.transformer import Decoder
from jaxalign.probing.prompts import ProbeData


@dataclass(frozen=True)
class ProbeRun:
    """One model, probed on one set of prompts.

    variables: the decoder's collections.
    languages: codes, in the order of every result's language axis.
    batch_size: prompts that run at once, a multiple of the mesh's data * fsdp.
    description: what the JSON files say besides: model, adapter, config, versions.
    on_rows: told after each batch how many prompts it held.
    """

    out: Path
    decoder: Decoder
    variables: Any
    mesh: Mesh
    data: ProbeData
    languages: Sequence[str]
    batch_size: int
    description: Mapping[str, Any]
    on_rows: Callable[[int], object] = lambda rows: None

    def runner(self, function: PromptFunction) -> PromptRunner:
        """Runs `function` on prompts of this model and mesh."""
        return PromptRunner(function, self.variables, self.mesh, self.batch_size, self.decoder.config.max_positions)
