from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers.optimization import get_cosine_schedule_with_warmup

from jaxalign.errors import InputError
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from tests.defaults import base_optimizer


@pytest.mark.parametrize(
    ("total", "fraction", "warmup"),
    # The second to fourth are the study's runs on one, two and three languages.
    [(30, 0.1, 3), (1779, 0.1, 178), (3561, 0.1, 356), (5343, 0.1, 534), (7, 0.5, 4), (5, 0.0, 0), (3, 0.9, 3)],
)
def test_schedule_is_that_of_transformers(total, fraction, warmup):
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([parameter], lr=3e-4)
    theirs_schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs_schedule.step()
    ours = jax.vmap(cosine_schedule(base_optimizer(3e-4, fraction), total))(jnp.arange(total))
    assert theirs[0] == (0.0 if fraction else 3e-4)
    # float32 cosine: half an ulp of 1 near the end of the decay, times the learning rate.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-4 * 1e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_clipped_adamw_in_torch(weight_decay):
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(2, 3, 2)).astype(np.float32)}
    # Norms of about 0.2 and 20: some updates are clipped and some are not.
    gradients = [
        jax.tree.map(lambda x, s=scale: (s * rng.normal(size=x.shape)).astype(np.float32), start)
        for scale in [0.05, 5.0] * 10
    ]
    total, clip_norm = len(gradients), 1.0

    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    torch_optimizer = torch.optim.AdamW(
        parameters.values(), lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(torch_optimizer, round(0.2 * total), total)
    config = base_optimizer(1e-2, 0.2, weight_decay, 0.9, 0.99, 1e-6, clip_norm)
    optimizer = make_optimizer(config, cosine_schedule(config, total))
    ours: Any = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(ours)

    clipped = 0
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        clipped += float(torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)) > clip_norm
        torch_optimizer.step()
        schedule.step()
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    assert clipped == total // 2
    for name, parameter in parameters.items():
        assert np.abs(ours[name] - start[name]).max() > 1e-2
        # torch divides by norm + 1e-6 where optax divides by the norm: 1e-6 relative; the rest is float32 rounding.
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_state_is_float32():
    config = base_optimizer()
    state = make_optimizer(config, cosine_schedule(config, 10)).init({"a": jnp.zeros((2,))})
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("learning_rate", (0.0, -1.0, np.nan, np.inf)),
        ("warmup_fraction", (-0.1, 1.1, 1.5, np.nan)),
        ("weight_decay", (-1e-9, np.nan, np.inf)),
        ("b1", (-0.1, 1.0, 1.5, np.nan)),
        ("b2", (-0.1, 1.0, np.nan)),
        ("eps", (0.0, -1.0, np.nan)),
        ("clip_norm", (0.0, -1.0, np.nan, np.inf)),
    ],
)
def test_numbers_out_of_their_range_are_refused_by_name(key, values):
    for value in values:
        with pytest.raises(InputError, match=rf"optimizer\.{key}={value}"):
            base_optimizer(**{key: value})
