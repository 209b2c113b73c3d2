"""Label masses of prompts: the next-token probability of each label's candidate ids after the last prompt token."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.model.next_token import label_masses, pad_label_sets
from jaxalign.model.prompt_batches import PromptRunner, RunCounts, decode_prompts, last_position
from jaxalign.model.transformer import Decoder


class Scorer:
    """Scores prompts with one decoder, compiled once per batch shape.

    A base model and the same model with adapters are two structures and take a scorer each.
    """

    def __init__(self, decoder: Decoder, variables: Any, mesh: Mesh, batch_size: int = 8):
        """
        Args:
          decoder: with the `lora` of the adapters where `variables` holds some.
          variables: {"params": base} or {"params": base, "lora": adapters}; only shapes and types are read.
          mesh: axes "data", "fsdp", "tensor".
          batch_size: prompts in a full batch, a multiple of data * fsdp.
        """

        def scores(variables: Any, tokens: jax.Array, lengths: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array]:
            hidden = last_position(decode_prompts(decoder, variables, tokens, lengths).hidden, lengths)
            logits: Any = decoder.apply(variables, hidden, method="logits")
            return label_masses(logits, labels), jnp.isfinite(logits).all(-1)

        self.runner = PromptRunner(scores, variables, mesh, batch_size, decoder.config.max_positions)

    @property
    def counts(self) -> RunCounts:
        return self.runner.counts

    def place(self, variables: Any) -> Any:
        """The variables as the mesh holds them: placed once, they are not moved again for every call."""
        return self.runner.place(variables)

    def masses(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        label_sets: Sequence[Sequence[int]],
        on_rows: Callable[[int], object] = lambda rows: None,
    ) -> np.ndarray:
        """The mass of every label after every prompt.

        Args:
          variables: of the structure given at the start; the values may change between calls.
          prompts: token ids of each prompt.
          label_sets: candidate ids of each label.
          on_rows: told after each batch how many prompts it held.

        Returns:
          float32 [prompts, labels], in the order given; it does not depend on batches, order or padding beyond 1e-5.

        Raises:
          InputError: a prompt is empty or too long, or the model's logits are not finite.
        """
        masses, finite = self.runner(variables, prompts, pad_label_sets(label_sets), on_rows)
        if not finite.all():
            raise InputError(
                f"prompt {int(np.argmin(finite))}: the model's logits are not finite; "
                "check the weights, or compute in float32"
            )
        return masses[:, : len(label_sets)]
