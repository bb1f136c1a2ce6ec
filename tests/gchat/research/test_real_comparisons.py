"""Main against main, trained for real: ten comparisons of other seeds, of which few may alarm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia import parallel
from gaia.data.batch import Batch
from gchat.model import GPT
from gchat.objective import next_token
from gchat.research.statistics import paired
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_train_step

STEPS, ROWS, T = 40, 4, 32


@pytest.mark.slow
def test_two_of_ten_at_most_differ_from_themselves():
    config = tiny.train_config(training={"steps": STEPS, "batch_size": ROWS})
    mesh, graph = parallel.make_mesh(config.mesh), graphdef(config)
    update = make_train_step(graph, config, mesh)
    rng = np.random.default_rng(0)
    likely = rng.integers(0, tiny.VOCAB, (tiny.VOCAB, 2))

    def text(rows):
        tokens = rng.integers(0, tiny.VOCAB, (rows, T + 1)).astype(np.int32)
        for t in range(T):
            tokens[:, t + 1] = likely[tokens[:, t], rng.integers(0, 2, rows)]
        return tokens

    corpus, held_out = text(400), text(32)
    start = init_state(config, mesh)

    @partial(jax.jit)
    def validation(params):
        batch = Batch(held_out[:, :-1], held_out[:, 1:])
        return next_token.loss(config, nnx.merge(graph, params), batch, None) / (32 * T)

    @jax.jit
    def born(key):
        return nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(key))))

    def trained(seed):
        """A run: the seed gives the first weights and the order of the rows."""
        state = jax.tree.map(jnp.copy, start)._replace(params=born(jax.random.key(seed)))
        order = np.random.default_rng(seed).permutation(len(corpus))
        for step in range(STEPS):
            rows = corpus[order[step * ROWS : (step + 1) * ROWS]]
            state, _ = update(state, Batch(rows[:, :-1], rows[:, 1:]))
        return float(validation(state.params))

    runs = np.array([trained(seed) for seed in range(60)]).reshape(10, 2, 3)
    assert runs.std() > 1e-4  # seeds do differ
    alarms = sum(paired(first, second).differs for first, second in runs)
    assert alarms <= 2
