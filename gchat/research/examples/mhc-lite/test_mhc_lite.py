"""mHC-lite: what the mixing keeps, and that it is the plain model where it does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaia.hyper_connections import convex

from hyper_connected import KeepsThePlainModel


class TestModel(KeepsThePlainModel):
    """The whole model, with this mixing."""


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_rows_and_columns_of_the_mixing_sum_to_one_exactly(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (5, 10, 24))
    mixing = np.asarray(jax.jit(convex)(logits), np.float64)
    np.testing.assert_allclose(mixing.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(mixing.sum(-2), 1, atol=1e-6)
    assert mixing.min() >= 0
    each = np.asarray(convex(50 * jnp.eye(24)[None]))[0].round(3)
    assert len({tuple(matrix.ravel()) for matrix in each}) == 24
