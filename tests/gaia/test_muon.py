"""Variants of Muon, decays and momenta by schedule, and rates by width, against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
from gaia.errors import ConfigError
from gaia.muon import Muon, orthogonalize, scale_by_muon
from gaia.optim import OptimConfig, make_optimizer

SHAPE = (2, 12, 30)


def matrices(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def directions(rule, grads):
    """Update that the rule makes of each gradient."""
    transform = scale_by_muon(rule)
    state, made = transform.init(jnp.asarray(grads[0])), []
    update = jax.jit(transform.update)
    for grad in grads:
        direction, state = update(jnp.asarray(grad), state)
        made.append(np.asarray(direction, np.float64))
    return made


@pytest.mark.parametrize("shape", [(2, 12, 30), (2, 30, 12)])
def test_normuon_evens_out_the_neurons_of_what_muon_gives(shape):
    grads = [matrices(k, shape) for k in range(4)]
    plain = directions(Muon(), grads)
    evened = directions(Muon(normuon_beta2=0.9), grads)
    for layer in range(shape[0]):
        expected = reference.normuon([g[layer] for g in plain], 0.9)
        for got, wanted in zip(evened, expected, strict=True):
            np.testing.assert_allclose(got[layer], wanted, rtol=2e-4, atol=1e-5)
    assert np.abs(evened[3] - plain[3]).max() > 0.01


def test_equilibration_forgets_the_scales_of_columns():
    scales = np.logspace(0, -4, SHAPE[-1], dtype=np.float32)
    (plain,), (equal,) = (
        directions(Muon(equilibrate=on), [matrices(0) * scales]) for on in (False, True)
    )
    columns = matrices(0) / np.linalg.norm(matrices(0), axis=1, keepdims=True)
    wanted = (30 / 12) ** 0.5 * np.stack([reference.polar(m) for m in columns])
    cosine = (equal * wanted).sum() / np.linalg.norm(equal) / np.linalg.norm(wanted)
    assert cosine > 0.99  # the equilibrated gradient forgets the scales of its columns
    assert (plain * wanted).sum() / np.linalg.norm(plain) / np.linalg.norm(wanted) < 0.9


def test_renormalization_gives_the_norm_of_an_orthogonal_matrix():
    (got,) = directions(Muon(renormalize=True, steps=2), [matrices(1)])
    norms = np.linalg.norm(got, axis=(-2, -1)) / (30 / 12) ** 0.5
    np.testing.assert_allclose(norms, 12**0.5, rtol=1e-4)


def test_the_first_quintic_is_jordan_s():
    x = matrices(2)[0].astype(np.float64)
    got = orthogonalize(jnp.asarray(x, jnp.float32), 3, iteration="quintic")
    y = x / (np.linalg.norm(x) * 1.02 + 1e-6)
    for _ in range(3):
        gram = y @ y.T
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-4)


def momenta(config, steps, grads):
    """The momentum of each step, read off the state."""
    optimizer = make_optimizer(config, steps, {"w": "matrix"})
    params = {"w": jnp.zeros(SHAPE)}
    state, seen, last = optimizer.init(params), [], np.zeros(SHAPE)
    update = jax.jit(optimizer.update)
    for grad in grads:
        _, state = update({"w": jnp.asarray(grad)}, state, params)
        now = np.asarray(optax.tree.get(state, "momentum")["w"], np.float64)
        # now = b * last + (1 - b) * grad
        seen.append(((now - grad) * (last - grad)).sum() / ((last - grad) ** 2).sum())
        last = now
    return seen


def test_momentum_rises_holds_and_falls_with_the_rates():
    config = OptimConfig(
        name="muon", momentum=0.9, momentum_start=0.5, momentum_warmup_steps=4,
        momentum_final=0.6, schedule="wsd", decay_fraction=0.5, warmup_steps=0, clip_norm=0.0,
    )  # fmt: skip
    got = momenta(config, 10, [matrices(k) for k in range(10)])
    fall = [0.6 + 0.3 * k / 5 for k in (5, 4, 3, 2, 1, 0)]
    np.testing.assert_allclose(got, [0.5, 0.6, 0.7, 0.8, *fall], atol=1e-5)


def moved(config, steps, grads, start, role="matrix"):
    """The parameter after each step."""
    optimizer = make_optimizer(config, steps, {"w": role})
    params, seen = {"w": jnp.asarray(start)}, []
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update({"w": grad}, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, jnp.asarray(grad))
        seen.append(np.asarray(params["w"], np.float64))
    return seen


@pytest.mark.parametrize(
    ("course", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [(1 + np.cos(np.pi * k / 4)) / 2 for k in range(5)]),
    ],
)
@pytest.mark.parametrize("cautious", [False, True])
def test_decay_follows_its_course_and_caution(course, shares, cautious):
    options = {"name": "muon", "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    decay = {
        "matrix_weight_decay": 0.5, "decay_schedule": course, "cautious_decay": cautious
    }  # fmt: skip
    grads = [matrices(k) for k in range(5)]
    start = matrices(9)
    plain = moved(OptimConfig(**options), 5, grads, start)
    decayed = moved(OptimConfig(**options, **decay), 5, grads, start)
    p, q = start.astype(np.float64), start.astype(np.float64)
    for k in range(5):
        direction = (p - plain[k]) / 0.02  # Muon's depends on the gradients alone
        shrinks = direction * q >= 0
        q = q - 0.02 * (direction + 0.5 * shares[k] * q * (shrinks if cautious else 1))
        np.testing.assert_allclose(decayed[k], q, atol=2e-5)
        p = plain[k]
    assert 0.2 < shrinks.mean() < 0.8


def test_tables_and_the_head_have_betas_and_a_decay_of_their_own():
    config = OptimConfig(
        lr=0.1, warmup_steps=0, schedule="constant", clip_norm=0.0, weight_decay=0.2,
        embed_betas=(0.8, 0.995), embed_weight_decay=0.3, head_betas=(0.7, 0.96), gain_lr=0.05,
    )  # fmt: skip
    grads = [matrices(k) for k in range(4)]
    for role, lr, rule in (
        ("embed", 0.1, reference.AdamW(0.8, 0.995, 1e-10, 0.3)),
        ("head", 0.1, reference.AdamW(0.7, 0.96, 1e-10, 0.2)),
        ("matrix", 0.1, reference.AdamW(0.9, 0.95, 1e-10, 0.2)),
        ("gain", 0.05, reference.AdamW(0.9, 0.95, 1e-10, 0.0)),
    ):
        p = matrices(7).astype(np.float64)
        for got, grad in zip(moved(config, 4, grads, p, role), grads, strict=True):
            p = rule.step(p, grad, lr)
            np.testing.assert_allclose(got, p, rtol=1e-4, atol=1e-5)


def test_rates_by_width():
    """Yang et al. 2022, table 8: Adam's rates of matrices and the head by 1 / width."""
    given = OptimConfig(
        lr=0.4, embed_lr=0.3, head_lr=0.2, weight_decay=0.1, width_reference=64, width_rule="mup"
    )
    wide, said = given.scaled(1024, 256)
    assert (wide.lr, wide.head_lr, wide.embed_lr) == pytest.approx((0.1, 0.05, 0.3))
    assert wide.gain_lr == pytest.approx(0.4) and wide.weight_decay == pytest.approx(0.4)
    assert "0.250 for the width (mup)" in said
    assert wide.scaled(1024, 256)[0] == wide  # once scaled, a resumed run scales no more
    at_reference, _ = given.scaled(1024, 64)
    assert (at_reference.lr, at_reference.gain_lr) == (0.4, 0.4)
    muon, _ = OptimConfig(name="muon", matrix_lr=0.02, width_reference=64, width_rule="mup").scaled(
        1024, 256
    )
    assert muon.matrix_lr == 0.02 and muon.lr == pytest.approx(3e-4)


def test_a_width_rule_needs_a_width():
    with pytest.raises(ConfigError, match="without optim"):
        OptimConfig(width_rule="mup").scaled(1, 1)
