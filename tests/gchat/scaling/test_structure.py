"""Blocks that the memory estimate was calibrated on, told from others by their structure."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import tiny
from gaia.layers import Attention, Linear, RMSNorm
from gaia.params import parameter
from gchat import model
from gchat.model_shape import flops_per_token, matmul_params
from gchat.scaling.counts import widths
from gchat.scaling.plan import make_plan
from gchat.scaling.sku import parse_fleet
from gchat.scaling.structure import calibrated

CONFIG = tiny.train_config(model={"hidden": 128}, training={"batch_size": 8}).model


class Plain(nnx.Module):
    """An MLP without a gate, under names that nothing knows."""

    def __init__(self, d, hidden, *, init, init_out, rngs):
        self.fc = Linear(d, hidden, init, rngs=rngs)
        self.back = Linear(hidden, d, init_out, split="in", rngs=rngs)

    def __call__(self, x):
        return self.back(jnp.square(jax.nn.relu(self.fc(x))))


class Block(model.Block):
    """The block that a test changes."""


class TwoNorms(Block):
    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.after = RMSNorm(config.sizes.dim, eps=1e-6)


class TwoAttentions(Block):
    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        sizes = config.sizes
        options = {"qk_norm": False, "eps": 1e-6, "rngs": rngs}
        init = model.normal(0.1)
        self.more = Attention(sizes.dim, 2, 2, config.head_dim, init=init, init_out=init, **options)


class Mixed(Block):
    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.mix = parameter(jnp.eye(2), (None, None), role="gain")


class TwoStreams(Block):
    """Adds no parameter: only what the layers hand on shows it."""

    def __call__(self, x, *args, **kwargs):
        y, cache = super().__call__(x[0], *args, **kwargs)
        return jnp.stack([y, x[1]]), cache


@pytest.fixture
def patched(monkeypatch):
    def patch(**changes):
        for name, value in changes.items():
            monkeypatch.setattr(model, name, value)
        tiny.forget_models()

    yield patch
    monkeypatch.undo()
    patch()


def test_ours_is_calibrated_and_so_is_an_mlp_without_a_gate(patched):
    assert calibrated(CONFIG)
    assert calibrated(replace(CONFIG, tied=True, positions="learned", qk_norm=False))
    assert calibrated(replace(CONFIG, window_pattern="SL", remat="dots"))
    assert widths(CONFIG) == (256, 128)
    patched(SwiGLU=Plain)
    assert calibrated(CONFIG) and widths(CONFIG) == (128, 128)


@pytest.mark.parametrize("block", [TwoNorms, TwoAttentions, Mixed])
def test_blocks_with_other_parameters_are_not(block, patched):
    patched(Block=block)
    assert not calibrated(CONFIG)


def test_a_block_with_two_streams_is_not(patched, monkeypatch):
    run = model.GPT._run_blocks

    def run_streams(self, x, *rest):
        return run(self, jnp.stack([x, x]), *rest)[0]

    monkeypatch.setattr(model.GPT, "_run_blocks", run_streams)
    patched(Block=TwoStreams)
    assert not calibrated(CONFIG)


def test_a_second_attention_is_counted(patched):
    before = flops_per_token(CONFIG), matmul_params(CONFIG)
    patched(Block=TwoAttentions)
    s = CONFIG.sizes
    more = CONFIG.depth * 4 * s.dim * 2 * CONFIG.head_dim
    scores = CONFIG.depth * 12 * (CONFIG.seq_len / 2) * 2 * CONFIG.head_dim
    assert matmul_params(CONFIG) == before[1] + more
    assert flops_per_token(CONFIG) == before[0] + 6 * more + scores


def test_the_plan_says_so(patched):
    config = tiny.train_config(model={"hidden": 128}, training={"batch_size": 8})
    fleet = parse_fleet("v6e-8")
    assert not any("calibrated" in note for note in make_plan(config, fleet).notes)
    patched(Block=Mixed)
    assert any("not calibrated for this block" in n for n in make_plan(config, fleet).notes)
