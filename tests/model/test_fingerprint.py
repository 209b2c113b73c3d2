import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.model.weights import weights_sha256
from jaxalign.runtime import make_mesh

TREE = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": {"c": np.ones(3, np.float16)}}


def test_equal_weights_have_equal_digests_on_any_mesh():
    spread = NamedSharding(make_mesh(2, 4, 1), PartitionSpec("data", "fsdp"))
    sharded = {"a": jax.device_put(TREE["a"], spread), "b": TREE["b"]}
    assert weights_sha256(sharded) == weights_sha256(TREE)


@pytest.mark.parametrize(
    "other",
    [
        {**TREE, "a": TREE["a"] * 2},
        {**TREE, "a": np.nextafter(TREE["a"], np.float32(99))},
        {**TREE, "a": -TREE["a"]},
        {**TREE, "a": TREE["a"].reshape(4, 16)},
        {**TREE, "a": jnp.asarray(TREE["a"], jnp.bfloat16)},
        {"d": TREE["a"], "b": TREE["b"]},
    ],
    ids=["doubled", "last bit", "sign", "shape", "type", "path"],
)
def test_other_weights_have_another(other: dict):
    assert weights_sha256(other) != weights_sha256(TREE)
