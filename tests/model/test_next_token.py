import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from jaxalign.model.readout import entropy_bits, label_masses, pad_label_sets

LOGITS = np.random.default_rng(0).normal(0, 3, (2, 5, 40)).astype(np.float32)


def test_masses_are_sums_of_softmax_probabilities():
    sets = [[3], [0, 7, 39], [], list(range(40))]
    masses = np.asarray(label_masses(jnp.asarray(LOGITS), pad_label_sets(sets)))[..., : len(sets)]
    probabilities = scipy.special.softmax(LOGITS.astype(np.float64), axis=-1)
    expected = np.stack([probabilities[..., ids].sum(-1) for ids in sets], axis=-1)
    # Float32 softmax of 40 terms; the padding of a label must not add the mass of id 0.
    np.testing.assert_allclose(masses, expected, atol=1e-6)


def test_padding_keeps_one_shape_for_ordinary_label_sets():
    few, many = pad_label_sets([[1], [2, 3]]), pad_label_sets([[1], list(range(30)), [5]])
    assert few.ids.shape == many.ids.shape == (8, 32)
    assert few.mask.sum() == 3
    assert pad_label_sets([list(range(33))] * 9).ids.shape == (16, 64)


def test_entropy_is_scipys_in_bits():
    entropy = entropy_bits(jnp.asarray(LOGITS))
    expected = scipy.stats.entropy(scipy.special.softmax(LOGITS.astype(np.float64), axis=-1), base=2, axis=-1)
    # Float32 sums of 40 terms of at most half a bit.
    np.testing.assert_allclose(entropy, expected, atol=1e-5)


def test_a_probability_that_underflows_adds_nothing():
    logits = jnp.asarray([[0.0, 0.0, -1000.0], [300.0, 0.0, 0.0]])
    np.testing.assert_allclose(entropy_bits(logits), [1.0, 0.0], atol=1e-6)
