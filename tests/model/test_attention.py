"""Attention and its gradient against torch's, on masks of packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxalign.model.attention import attend, grouped_attention, plain_attention

B, T, K, G, H = 2, 13, 2, 3, 8
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 13])
SCALE = 0.3


def inputs() -> tuple[np.ndarray, ...]:
    """q [B,T,N,H], k and v [B,T,K,H], the gradient that comes back [B,T,N,H]; that of padding is 0."""
    random = np.random.default_rng(0)
    q, k, v, back = (random.standard_normal((B, T, heads, H), dtype=np.float32) for heads in (K * G, K, K, K * G))
    return q, k, v, back * (SEGMENTS != 0)[:, :, None, None]


def seen() -> np.ndarray:
    """bool [B,T,T]: a query's own segment, up to itself."""
    same = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & (SEGMENTS != 0)[:, :, None]
    return same & np.tril(np.ones((T, T), bool))


# In float32 the order of the sums differs; bfloat16 rounds at each of some ten places, 2^-9 each.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_value_and_gradient_are_those_of_torch(dtype: jnp.dtype, tolerance: float):
    q, k, v, back = inputs()
    heads_first = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()).requires_grad_() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=torch.from_numpy(seen())[:, None], scale=SCALE, enable_gqa=True
    )
    expected.backward(torch.from_numpy(back.transpose(0, 2, 1, 3).copy()))

    ours = [jnp.asarray(x, dtype) for x in (q, k, v)]
    value, pull = jax.vjp(lambda q, k, v: attend(q, k, v, jnp.asarray(seen()), SCALE), *ours)
    assert value.dtype == dtype
    real = SEGMENTS != 0
    pairs = [(np.asarray(value, np.float32)[real], expected.detach().numpy().transpose(0, 2, 1, 3)[real])]
    for gradient, factor in zip(pull(jnp.asarray(back, dtype)), heads_first, strict=True):
        assert factor.grad is not None
        pairs.append((np.asarray(gradient, np.float32), factor.grad.numpy().transpose(0, 2, 1, 3)))
    for ours_, theirs in pairs:
        np.testing.assert_allclose(ours_, theirs, atol=tolerance * np.abs(theirs).max())


def test_the_gradient_is_that_of_autodiff():
    q, k, v, back = (jnp.asarray(x) for x in inputs())
    back = back.reshape(B, T, K, G, H).transpose(2, 0, 3, 1, 4)
    grouped = (q.reshape(B, T, K, G, H).transpose(2, 0, 3, 1, 4), k, v)
    ours, theirs = (
        jax.vjp(lambda *arrays, function=function: function(*arrays, jnp.asarray(seen()), SCALE), *grouped)
        for function in (grouped_attention, plain_attention)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    for gradient, expected in zip(ours[1](back), theirs[1](back), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_nothing_of_queries_times_keys_is_kept_for_the_gradient():
    q, k, v, _ = inputs()
    _, pull = jax.vjp(lambda q, k, v: attend(q, k, v, jnp.asarray(seen()), SCALE), q, k, v)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.dtype != bool]
    assert kept and all(leaf.shape[-2:] != (T, T) for leaf in kept)
