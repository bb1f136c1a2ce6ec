"""mHC: what the mixing keeps, and that it is the plain model where it does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaia.hyper_connections import sinkhorn

from hyper_connected import KeepsThePlainModel


class TestModel(KeepsThePlainModel):
    """The whole model, with this mixing."""


@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_rows_and_columns_of_the_mixing_sum_to_one(scale):
    """The identity's bias of 2, and on it what depends on the input: 0.01 when training begins."""
    logits = scale * jax.random.normal(jax.random.key(0), (50, 4, 4, 4)) + 2 * jnp.eye(4)
    mixing = np.asarray(jax.jit(sinkhorn)(logits))
    assert np.abs(mixing.sum(-1) - 1).max() < 1e-3
    assert np.abs(mixing.sum(-2) - 1).max() < 1e-3
    assert mixing.min() >= 0


def test_a_stack_of_mixings_keeps_the_streams_size():
    """Products of doubly stochastic matrices have operator norm 1; the paper's bound is 1.6."""
    layers = sinkhorn(jax.random.normal(jax.random.key(1), (1, 8, 4, 4)))[0]
    product = np.linalg.multi_dot(np.asarray(layers))
    gains = np.abs(product).sum(-1).max(), np.abs(product).sum(-2).max()
    assert max(gains) <= 1.6
