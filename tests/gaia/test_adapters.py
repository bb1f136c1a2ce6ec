"""Adapters: nothing at first, the same as merged, and alone in being trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia import parallel, params
from gaia.adapters import merged
from gaia.data.batch import Batch
from gaia.errors import ConfigError
from gchat import train_state
from gchat.model import GPTConfig
from gchat.model_shape import flops_per_token, matmul_params, model_shape
from gchat.scaling.counts import trained_bytes
from gchat.train_step import make_train_step

CHANGES = {"kv_heads": 1, "lora_rank": 4, "lora_alpha": 6.0}


@pytest.fixture(scope="module")
def adapted():
    """(config, graph, params) with adapters that are not zero."""
    config = tiny.gpt_config(**CHANGES)
    graph, arrays = tiny.make(config)
    rng = np.random.default_rng(5)
    paths = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
            if "adapter" in jax.tree_util.keystr(path)
            else x
        ),
        arrays,
    )
    return config, graph, paths


def test_fresh_adapters_change_nothing(adapted):
    config, graph, arrays = adapted
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if jax.tree_util.keystr(path).endswith("['b']") else x, arrays
    )
    plain = config.without_adapters()
    ids = tiny.tokens(2, 32)
    ours = tiny.logits(graph, fresh, ids)
    theirs = tiny.logits(tiny.graph_of(plain), merged(arrays, 0.0), ids)
    np.testing.assert_array_equal(ours, theirs)


def test_merged_computes_the_same(adapted):
    config, graph, arrays = adapted
    ids = tiny.tokens(2, 32)
    plain = config.without_adapters()
    whole = merged(arrays, config.lora_scale)
    assert jax.tree.structure(whole) == jax.tree.structure(tiny.shapes_of(plain))
    np.testing.assert_allclose(
        tiny.logits(graph, arrays, ids),
        tiny.logits(tiny.graph_of(plain), whole, ids),
        rtol=1e-4,
        atol=1e-4,
    )


def test_gradients_are_those_of_the_merged_matrix(adapted):
    """y = x (W + s A B): dA = s dW B^T and dB = s A^T dW, with dW of the plain model."""
    config, graph, arrays = adapted
    ids, plain = tiny.tokens(2, 32), config.without_adapters()

    def loss(graph, arrays):
        x, _ = nnx.merge(graph, arrays)(ids)
        return jnp.mean(jnp.sin(x.astype(jnp.float32)))

    ours = jax.jit(jax.grad(lambda a: loss(graph, a)))(arrays)
    whole = merged(arrays, config.lora_scale)
    theirs = jax.jit(jax.grad(lambda a: loss(tiny.graph_of(plain), a)))(whole)
    for name in ("q", "k", "v", "out"):
        dw, scale = np.asarray(theirs["blocks"]["attn"][name]["kernel"]), config.lora_scale
        here, slope = (tree["blocks"]["attn"][name]["adapter"] for tree in (arrays, ours))
        a, b = np.asarray(here["a"]), np.asarray(here["b"])
        np.testing.assert_allclose(slope["a"], scale * dw @ b.mT, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(slope["b"], scale * a.mT @ dw, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accum", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_update_changes_adapters_alone(accum):
    config = tiny.train_config(
        model={"lora_rank": 2, "lora_targets": ("out", "down")}, training={"grad_accum": accum}
    )
    mesh = parallel.make_mesh()
    state = train_state.init_state(config, mesh)
    before = jax.tree.map(np.asarray, state.params)
    step = make_train_step(train_state.graphdef(config), config, mesh)
    rows = Batch(tiny.tokens(4, 32), tiny.tokens(4, 32, seed=1))
    # b is zero at first, so a moves at the second update only.
    for _ in range(2):
        state, metrics = step(state, rows)
    assert np.isfinite(metrics.loss)
    changed = {
        jax.tree_util.keystr(path)
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda x, y: bool((x == np.asarray(y)).all()), before, state.params)
        )
        if not same
    }
    assert changed == {
        f"['blocks']['{room}']['{name}']['adapter']['{part}']"
        for room, name in (("attn", "out"), ("mlp", "down"))
        for part in "ab"
    }
    sizes = {leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    adapters = params.trained(state.params, model_shape(config.model).placements)
    assert sizes == {leaf.size for leaf in jax.tree.leaves(adapters)}


def test_counts_know_that_matrices_stay():
    config = tiny.train_config(model={"lora_rank": 2})
    adapters = [p for p in model_shape(config.model).parameters if p.role == "adapter"]
    plain = replace(config, model=config.model.without_adapters())
    assert trained_bytes(config, parallel_of_one()) == 4 * sum(p.size for p in adapters)
    assert matmul_params(config.model) == matmul_params(plain.model)
    assert flops_per_token(config.model) < flops_per_token(plain.model)


def parallel_of_one():
    from gchat.scaling.layout import layout_of
    from gchat.scaling.sku import parse_fleet

    return layout_of(tiny.train_config(), parse_fleet("v5e-1"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 4, "lora_targets": ("head",), "tied": True}, "one table for embedding"),
        ({"lora_rank": 4, "lora_targets": ("embed",)}, "names 'embed', outside the blocks"),
        ({"lora_rank": 4, "lora_targets": ("w1",)}, "names 'w1'"),
        ({"lora_rank": 4, "lora_targets": ()}, "is empty"),
        ({"lora_rank": 64}, "the smallest matrix has 32 columns"),
        ({"lora_rank": -1}, "model.lora_rank is -1"),
        ({"lora_alpha": 4.0}, "no effect while model.lora_rank is 0"),
        ({"lora_targets": ("q",)}, "no effect while model.lora_rank is 0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        GPTConfig(depth=2, dim=32, head_dim=16, hidden=64, seq_len=32, **changes).derive(100, 128)
