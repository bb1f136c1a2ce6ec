"""`project` against float64 NumPy and against autodiff, in both of its gradient layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.kernels import matmul
from gaia.kernels.matmul import project


def inputs(shape=(3, 5, 7), widths=(4, 6)):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    return (
        x,
        [rng.standard_normal((shape[-1], f)) for f in widths],
        [rng.standard_normal((*shape[:-1], f)) for f in widths],
    )


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 7), (9, 7)])
def test_matches_float64(shape):
    x, ws, dys = inputs(shape)
    x32, ws32 = jnp.asarray(x, jnp.float32), [jnp.asarray(w, jnp.float32) for w in ws]
    ys, vjp = jax.vjp(project, x32, *ws32)
    dx, *dws = vjp(tuple(jnp.asarray(dy, jnp.float32) for dy in dys))
    np.testing.assert_allclose(
        dx, sum(dy @ w.T for dy, w in zip(dys, ws, strict=True)), rtol=1e-5, atol=1e-5
    )
    for w, dy, got_y, got_dw in zip(ws, dys, ys, dws, strict=True):
        np.testing.assert_allclose(got_y, x @ w, rtol=1e-5, atol=1e-5)
        dw = x.reshape(-1, shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
        np.testing.assert_allclose(got_dw, dw, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widths", [(4, 6), (2, 3)])  # wider and narrower than x
def test_both_layouts_of_the_weight_gradient_agree(widths):
    x, _, dys = inputs(widths=widths)
    x, dys = jnp.asarray(x), [jnp.asarray(dy) for dy in dys]
    pairs = zip(matmul._weight_grads(x, dys), matmul._weight_grads_cpu(x, dys), strict=True)
    for default, cpu in pairs:
        np.testing.assert_allclose(default, cpu, rtol=1e-5, atol=1e-5)


# Compiled and of a training step's size: smaller products are made otherwise, and XLA has none of
# bf16 with both operands transposed on CPUs without bf16 instructions.
@pytest.mark.parametrize("d, width", [(768, 256), (256, 768)])
def test_bfloat16_activations_give_float32_weight_gradients(d, width):
    x, ws, dys = inputs((8, 512, d), (width,))
    x16, dy16 = jnp.asarray(x, jnp.bfloat16), jnp.asarray(dys[0], jnp.bfloat16)

    @jax.jit
    def gradients(x, w, dy):
        (y,), vjp = jax.vjp(project, x, w)
        return y, *vjp((dy,))

    y, dx, dw = gradients(x16, jnp.asarray(ws[0], jnp.float32), dy16)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    x_ND = np.asarray(x16, np.float64).reshape(-1, d)
    exact = x_ND.T @ np.asarray(dy16, np.float64).reshape(-1, width)
    np.testing.assert_allclose(dw, exact, rtol=1e-4, atol=1e-3)  # 4,096 products each


def test_remat_saves_products_by_name():
    """The backward pass of a checkpointed layer computes y again, unless the policy names it."""
    w = jnp.ones((8, 8))

    def layer(x):
        return jnp.sin(project(jnp.sin(x), w)[0])

    def products(policy):
        loss = jax.value_and_grad(lambda x: jax.checkpoint(layer, policy=policy)(x).sum())
        return jax.jit(loss).lower(jnp.ones((4, 8))).as_text().count("dot_general")

    assert products(jax.checkpoint_policies.save_only_these_names(matmul.PRODUCT)) == 2  # y, dx
    assert products(None) == 3
