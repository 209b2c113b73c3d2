"""The chunked loss against torch's cross-entropy, values and gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.model.losses import next_token_loss, plain_nats, summed_nats
from tests.model.tiny_models import numpy_of

B, T, D, V = 3, 11, 8, 23
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(B, T, D)).astype(np.float32)
HEAD = RANDOM.normal(size=(D, V)).astype(np.float32)
TARGETS, TOKENS = RANDOM.integers(0, V, (2, B, T), dtype=np.int32)
MIX = RANDOM.normal(size=(D, D)).astype(np.float32)
# Rows of 5 scattered targets, of 7 at the end, and of none.
MASK = np.zeros((B, T), bool)
MASK[0, [1, 2, 5, 8, 10]] = True
MASK[1, 4:] = True

# Float32 sums of twelve terms in another order.
ROUNDING = 1e-5


def head(kernel):
    """Logits in float32, of states that may be in bfloat16."""

    def logits(states: jax.Array) -> jax.Array:
        return jnp.einsum("...D,DV->...V", states, kernel.astype(states.dtype), preferred_element_type=jnp.float32)

    return logits


def loss_of(hidden: Any, kernel: Any, targets_per_row: int = 7, chunk: int = 6) -> tuple[jax.Array, jax.Array]:
    targets, mask = jnp.asarray(TARGETS), jnp.asarray(MASK)
    return next_token_loss(head(kernel), hidden, targets, mask, targets_per_row=targets_per_row, chunk=chunk)


def torch_loss() -> tuple[float, np.ndarray, np.ndarray]:
    """The summed cross-entropy, and its gradients for hidden states and head."""
    hidden, kernel = (torch.tensor(array, requires_grad=True) for array in (HIDDEN, HEAD))
    mask = torch.tensor(MASK)
    labels = torch.tensor(TARGETS.astype(np.int64))[mask]
    loss = torch.nn.functional.cross_entropy((hidden @ kernel)[mask], labels, reduction="sum")
    loss.backward()
    assert hidden.grad is not None
    assert kernel.grad is not None
    return loss.item(), hidden.grad.numpy(), kernel.grad.numpy()


# Chunks that divide 3 rows x 7 targets and that do not, less than a row each, more than there is; R above T.
@pytest.mark.parametrize("targets_per_row", [7, 8, 11, 40])
@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 1000])
def test_sum_count_and_gradients(targets_per_row: int, chunk: int):
    loss = jax.jit(partial(loss_of, targets_per_row=targets_per_row, chunk=chunk))
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (total, count), (hidden_gradient, head_gradient) = gradient(HIDDEN, HEAD)
    reference, hidden_reference, head_reference = torch_loss()
    assert total.dtype == count.dtype == jnp.float32
    assert int(count) == MASK.sum()
    np.testing.assert_allclose(total, reference, rtol=ROUNDING)
    np.testing.assert_allclose(hidden_gradient, hidden_reference, atol=ROUNDING)
    np.testing.assert_allclose(head_gradient, head_reference, atol=ROUNDING)


def tied_in_torch(table: np.ndarray, mix: np.ndarray) -> list[np.ndarray]:
    """Gradients of the mean cross-entropy where one table is both looked up and the head."""
    leaves = [torch.tensor(array, requires_grad=True) for array in (table, mix)]
    looked_up = leaves[0][torch.tensor(TOKENS).long()]
    logits = torch.tanh(looked_up @ leaves[1]) @ leaves[0].T
    mask = torch.tensor(MASK)
    torch.nn.functional.cross_entropy(logits[mask], torch.tensor(TARGETS).long()[mask]).backward()
    return [numpy_of(leaf.grad) for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("tuned", [("table", "mix"), ("mix",), ("table",)], ids="-".join)
def test_a_tied_head_tuned_and_frozen(tuned: tuple[str, ...]):
    weights = {"table": jnp.asarray(HEAD.T), "mix": jnp.asarray(MIX)}

    def loss(leaves: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> jax.Array:
        both = frozen | leaves
        hidden = jnp.tanh(both["table"][TOKENS] @ both["mix"])
        total, count = loss_of(hidden, both["table"].T)
        return total / count

    leaves = {name: weights.pop(name) for name in tuned}
    gradients = jax.jit(jax.grad(loss))(leaves, weights)
    expected: dict[str, Any] = dict(zip(("table", "mix"), tied_in_torch(HEAD.T, MIX), strict=True))
    for name in tuned:
        np.testing.assert_allclose(gradients[name], expected[name], atol=ROUNDING)


@pytest.mark.parametrize("tuned_in", [jnp.float32, jnp.bfloat16])
def test_a_head_tuned_in_bfloat16(tuned_in: Any):
    """States in bfloat16, and a head that is computed in it: the gradients of float32 arithmetic, rounded twice."""
    hidden, kernel = jnp.asarray(HIDDEN, jnp.bfloat16), jnp.asarray(HEAD).astype(jnp.bfloat16)

    def mean(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        total, count = loss_of(hidden, kernel)
        return total / count

    def dense(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        nats = -jax.nn.log_softmax(hidden @ kernel)[np.arange(B)[:, None], np.arange(T)[None], TARGETS]
        return jnp.where(MASK, nats, 0.0).sum() / MASK.sum().astype(np.float32)

    ours = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(hidden, kernel.astype(tuned_in))
    exact = jax.value_and_grad(dense, argnums=(0, 1))(hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(ours[0], exact[0], rtol=ROUNDING)
    assert [gradient.dtype for gradient in ours[1]] == [jnp.bfloat16, tuned_in]
    for gradient, reference in zip(ours[1], exact[1], strict=True):
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), reference, rtol=2**-7, atol=1e-3 * np.abs(reference).max()
        )


def test_the_gradient_is_that_of_autodiff():
    chunks = tuple(jnp.asarray(array)[None] for array in (HIDDEN, TARGETS, MASK))

    def loss(hidden: jax.Array, kernel: jax.Array, sums: Any) -> jax.Array:
        return sums(lambda states, weight: head(weight)(states), (hidden[None], *chunks[1:]), (kernel,))

    ours, theirs = (jax.value_and_grad(loss, argnums=(0, 1))(HIDDEN, HEAD, sums) for sums in (summed_nats, plain_nats))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ROUNDING, rtol=ROUNDING), ours, theirs)


def test_every_logit_is_computed_once():
    """The gradient's program multiplies with the head twice, logits and states; a tuned head's gradient is a third."""

    def loss(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        return loss_of(hidden, kernel)[0]

    def products(argnums: Any) -> int:
        return str(jax.make_jaxpr(jax.grad(loss, argnums=argnums))(HIDDEN, HEAD)).count("dot_general")

    assert products(0) == 2 and products((0, 1)) == 3


def test_chunks_without_a_target_are_passed_over():
    """The states of the second chunk, in which nothing counts, meet no head: they would spoil a gradient."""
    hidden = jnp.where(jnp.asarray(MASK[:1, :, None]), HIDDEN[:1], jnp.nan)

    def loss(kernel, chunk: int):
        arguments = (head(kernel), hidden, jnp.asarray(TARGETS[:1]), jnp.asarray(MASK[:1]))
        return next_token_loss(*arguments, targets_per_row=10, chunk=chunk)[0]

    assert np.isfinite(jax.grad(loss)(HEAD, 5)).all()
    assert np.isnan(jax.grad(loss)(HEAD, 6)).any()


def test_large_logits_stay_finite():
    logits = jnp.asarray([[[0.0, 1e4, -1e4]]])
    mask = jnp.ones((1, 1), bool)
    total, _ = next_token_loss(lambda x: x, logits, jnp.zeros((1, 1), jnp.int32), mask, targets_per_row=1, chunk=1)
    assert total == 1e4


def test_no_target_at_all():
    nothing = jnp.zeros((B, T), bool)
    total, count = next_token_loss(
        head(HEAD), jnp.asarray(HIDDEN), jnp.asarray(TARGETS), nothing, targets_per_row=2, chunk=4
    )
    assert total == 0.0
    assert count == 0.0


def test_no_more_than_a_chunk_of_logits_is_made():
    """Every array in the program of the gradient that has a vocabulary axis holds at most `chunk` positions."""
    chunk, vocabulary = 6, 1009

    def loss(hidden, kernel):
        return loss_of(hidden, kernel, chunk=chunk)[0]

    kernel = jax.ShapeDtypeStruct((D, vocabulary), jnp.float32)
    program = str(
        jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(jax.ShapeDtypeStruct(HIDDEN.shape, jnp.float32), kernel)
    )
    assert f"f32[3,2,{vocabulary}]" in program
    for shape in set(program.replace("[", " ").replace("]", " ").split()):
        sizes = shape.split(",")
        if str(vocabulary) in sizes:
            others = [int(size) for size in sizes if size != str(vocabulary)]
            assert np.prod(others) <= max(chunk, D)
