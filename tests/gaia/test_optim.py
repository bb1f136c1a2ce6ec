"""Optimizers and schedules against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
from gaia.errors import ConfigError
from gaia.muon import orthogonalize
from gaia.optim import OptimConfig, make_optimizer, schedule

SHAPES = {
    ("embed", "table"): (11, 6),
    ("blocks", "attn", "q", "kernel"): (2, 6, 4),
    ("blocks", "mlp", "up", "kernel"): (2, 6, 9),
    ("blocks", "attn_norm", "scale"): (2, 6),
    ("head", "kernel"): (6, 11),
    ("final_norm", "scale"): (6,),
}
ROLES = {"table": "embed", "kernel": "matrix", "scale": "gain"}
MATRICES = {path for path in SHAPES if path[-1] == "kernel"}


def tree(flat):
    nested = {}
    for path, value in flat.items():
        at = nested
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value if isinstance(value, str) else jnp.asarray(value, jnp.float32)
    return nested


def leaf(nested, path):
    for name in path:
        nested = nested[name]
    return np.asarray(nested, np.float64)


def random(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.standard_normal(shape) for path, shape in SHAPES.items()}


def roles():
    """The head is a matrix too, with a rate of its own."""
    return {path: "head" if path[0] == "head" else ROLES[path[-1]] for path in SHAPES}


def run(config, steps, grads, total=20):
    """Parameters after each of `steps` updates."""
    optimizer = make_optimizer(config, total, tree(roles()))
    params = tree(random(0))
    state = jax.jit(optimizer.init)(params)  # eagerly, each array would compile its own zeros

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    seen = []
    for k in range(steps):
        params, state = update(params, state, tree(grads[k]))
        seen.append(params)
    return seen


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adamw_follows_the_paper_for_several_steps(clip):
    config = OptimConfig(
        lr=0.01, embed_lr=0.02, head_lr=0.005, weight_decay=0.3, warmup_steps=3, clip_norm=clip
    )
    grads = [random(k + 1, scale=10.0**-k) for k in range(5)]  # the norm is above and below 1
    peaks = {"table": 0.02, "scale": 0.01}
    expected = random(0)
    rules = {
        path: reference.AdamW(0.9, 0.95, 1e-10, 0.3 if path in MATRICES else 0.0) for path in SHAPES
    }
    for k, got in enumerate(run(config, 5, grads)):
        share = reference.cosine_share(k, 20, 3, 0.05)
        clipped = reference.clip_by_global_norm(grads[k], clip) if clip else grads[k]
        for path in SHAPES:
            peak = 0.005 if path[0] == "head" else peaks.get(path[-1], 0.01)
            expected[path] = rules[path].step(expected[path], clipped[path], peak * share)
            np.testing.assert_allclose(
                leaf(got, path), expected[path], atol=2e-6, err_msg=f"{path} after step {k + 1}"
            )


def test_decay_touches_matrices_only():
    """With zero gradients only decay moves a parameter."""
    zeros = [{path: np.zeros(shape) for path, shape in SHAPES.items()}]
    config = OptimConfig(lr=0.1, weight_decay=0.5, warmup_steps=0, schedule="constant")
    (got,) = run(config, 1, zeros)
    before = random(0)
    for path in SHAPES:
        factor = 1 - 0.1 * 0.5 if path in MATRICES else 1.0
        np.testing.assert_allclose(leaf(got, path), factor * before[path], rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (3, 48, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orthogonalize_against_svd(shape, dtype):
    g = np.random.default_rng(0).standard_normal(shape)
    compiled = jax.jit(orthogonalize, static_argnums=(1, 2))
    got = np.asarray(compiled(jnp.asarray(g, jnp.float32), 5, dtype), np.float64)
    values = np.linalg.svd(got, compute_uv=False)
    assert values.min() > 0.7 and values.max() < 1.2
    expected = np.vectorize(reference.polar, signature="(n,m)->(n,m)")(g)
    # Same singular vectors: the product with the exact answer is close to the identity.
    overlap = (got * expected).sum((-2, -1)) / np.linalg.norm(got, axis=(-2, -1))
    np.testing.assert_allclose(overlap / np.linalg.norm(expected, axis=(-2, -1)), 1.0, atol=0.02)


def test_muon_updates_block_matrices_and_adamw_the_rest():
    config = OptimConfig(
        name="muon",
        matrix_lr=0.1,
        matrix_weight_decay=0.2,
        lr=0.01,
        weight_decay=0.0,
        warmup_steps=0,
        schedule="constant",
        clip_norm=0.0,
    )
    grads = [random(1), random(2)]
    first, second = run(config, 2, grads)
    for path in (("blocks", "attn", "q", "kernel"), ("blocks", "mlp", "up", "kernel")):
        p, momentum = random(0)[path], 0.0
        for k, got in enumerate((first, second)):
            momentum = 0.95 * momentum + 0.05 * grads[k][path]
            nesterov = 0.95 * momentum + 0.05 * grads[k][path]
            scale = max(1.0, nesterov.shape[-1] / nesterov.shape[-2]) ** 0.5
            update = scale * np.stack([reference.polar(m) for m in nesterov])
            moved = (p - leaf(got, path)) / 0.1 - 0.2 * p
            # Newton-Schulz leaves singular values within 0.7 .. 1.2 of the exact update's.
            cosine = (moved * update).sum() / np.linalg.norm(moved) / np.linalg.norm(update)
            assert cosine > 0.98
            assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(update), rel=0.1)
            p = leaf(got, path)
    # The head is a matrix too, but not one of a block: its first AdamW step is lr * sign(g).
    moved = random(0)["head", "kernel"] - leaf(first, ("head", "kernel"))
    np.testing.assert_allclose(moved, 0.01 * np.sign(grads[0]["head", "kernel"]), rtol=1e-4)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedules(warmup):
    steps, floor = 50, 0.1
    for name, expected in (
        ("cosine", lambda k: reference.cosine_share(k, steps, warmup, floor)),
        ("wsd", lambda k: reference.wsd_share(k, steps, warmup, floor, 0.4)),
        ("constant", lambda k: min(1.0, (k + 1) / max(1, warmup))),
    ):
        share = schedule(
            OptimConfig(
                schedule=name, warmup_steps=warmup, final_lr_fraction=floor, decay_fraction=0.4
            ),
            steps,
        )
        got = jax.jit(share)(jnp.arange(steps + 1))
        np.testing.assert_allclose(got, [expected(k) for k in range(steps + 1)], atol=1e-6)
        if warmup:
            assert float(got[0]) == pytest.approx(1 / warmup)  # the first update is not wasted at 0
        if name != "constant":
            assert float(got[steps - 1]) == pytest.approx(floor)  # steps count from 0
            assert float(got[steps - 2]) > floor


def test_steps_of_several_updates_each_keep_their_places():
    changes = ("0.25@100", "0.125@300")
    config = OptimConfig(lr=1.0, warmup_steps=10, weight_decay=0.5, weight_decay_steps=changes)
    four = config.repeated(4)
    rates = schedule(config, 1000), schedule(four, 4000)
    for step in (0, 3, 9, 500, 990):
        last = rates[1](4 * step + 3)  # of the step's updates
        np.testing.assert_allclose(rates[0](step), last, rtol=0.01)
    assert four.weight_decay_steps == ("0.25@400", "0.125@1200") and config.repeated(1) == config


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps is 9, the run has only 8 steps"):
        OptimConfig(warmup_steps=9).check(8)


def test_a_rate_of_zero_is_a_rate():
    """Embeddings that are not to move must not move at `lr` instead."""
    scaled, _ = OptimConfig(lr=0.01, embed_lr=0.0, head_lr=None).scaled(1024, 64)
    assert (scaled.embed_lr, scaled.head_lr) == (0.0, 0.01)
    params = {"table": jnp.ones((4, 4)), "head": jnp.ones((4, 4))}
    roles = {"table": "embed", "head": "head"}
    optimizer = make_optimizer(OptimConfig(lr=0.01, embed_lr=0.0, warmup_steps=0), 10, roles)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert float(jnp.abs(updates["table"]).max()) == 0.0
    assert float(jnp.abs(updates["head"]).max()) > 0.0
