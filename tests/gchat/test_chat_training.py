"""From conversations to the loss: what is read gets no gradient, and neighbours are never seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import chats
import tiny
from gaia import parallel
from gaia.data.batch import IGNORE, Batch
from gaia.data.loader import make_loader
from gaia.kernels.cross_entropy import cross_entropy
from gaia.optim import OptimConfig
from gchat.chat_format import Conversation, Message, format_of
from gchat.config import DataConfig, TrainConfig, TrainingConfig, derive
from gchat.data.chats import prepare_conversations
from gchat.model import GPT, GPTConfig
from gchat.objective import hidden_states, next_token
from gchat.train_state import TrainState, optimizer_of
from gchat.train_step import make_scorer, make_train_step

T = 160


@functools.cache
def chat_format():
    return format_of(chats.native(), wanted="native")


@functools.cache
def model():
    """(config, graph, params) of a tiny model for the tokenizer."""
    made = chats.native()
    config = TrainConfig(
        model=GPTConfig(
            depth=2, dim=32, head_dim=16, hidden=64, seq_len=T, compute_dtype="float32"
        ),
        optim=OptimConfig(warmup_steps=0),
        training=TrainingConfig(batch_size=2, steps=10),
        data=DataConfig(packing="best_fit"),
    )
    config, _ = derive(config, vocab_size=made.vocab_size, padded_vocab_size=made.padded_vocab_size)
    return (config, *tiny.make(config.model))


CONVERSATIONS = [
    Conversation(
        (
            Message("system", f"rule {i}"),
            Message("user", f"ask {i} <|assistant_start|>yes<|assistant_end|>"),
            Message("assistant", f"answer {i}"),
            Message("user", f"and {i}?"),
            *((chats.TOOLS,) if i % 2 else (Message("assistant", f"more {i}"),)),
        )
    )
    for i in range(12)
]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A batch of the prepared conversations, through shards, packing and the loader."""
    folder = tmp_path_factory.mktemp("chats") / "out"
    prepare_conversations(CONVERSATIONS, chat_format(), folder, T)
    with make_loader(
        folder, seq_len=T, batch_size=2, seed=0, packing="best_fit", prefetch=0
    ) as loader:
        made = loader.batch(0)
    assert made.segments_BT.max() > 1
    return made


def segments(batch):
    """(row, places, conversation, its rendering) of each segment of a batch."""
    rendered = {tuple(r.ids): r for r in map(chat_format().render, CONVERSATIONS)}
    for row in range(len(batch.inputs_BT)):
        for number in range(1, int(batch.segments_BT[row].max()) + 1):
            places = np.flatnonzero(batch.segments_BT[row] == number)
            yield row, places, rendered[tuple(batch.inputs_BT[row, places].tolist())]


def test_what_is_read_gets_a_gradient_of_exactly_zero_in_the_compiled_step(batch):
    """The final hidden state of each place is moved; only where an answer is predicted it counts.

    The step is the product's, its objective the product's with something added to the hidden
    states, so that the gradient for each place's prediction can be read off.
    """
    config, graph, params = model()

    def loss(delta_BTD):
        gpt: GPT = nnx.merge(graph, params)
        x_BTD = hidden_states(gpt, batch, None) + delta_BTD
        total, _ = cross_entropy(
            x_BTD.reshape(-1, x_BTD.shape[-1]), gpt.head_kernel, batch.targets_BT.reshape(-1),
            vocab_size=config.model.sizes.vocab, chunk=config.training.loss_chunk,
        )  # fmt: skip
        return total

    zero = jnp.zeros((*batch.inputs_BT.shape, config.model.sizes.dim))
    value, gradient = jax.jit(jax.value_and_grad(loss))(zero)
    assert value == pytest.approx(
        float(next_token.loss(config, nnx.merge(graph, params), batch, None))
    )
    size_BT = np.abs(np.asarray(gradient)).max(-1)
    checked = {True: 0, False: 0}
    for row, places, rendered in segments(batch):
        # The prediction of id i is made at the place before it.
        for i, learned in enumerate(rendered.mask[1:], 1):
            assert (size_BT[row, places[i - 1]] > 0) == learned
            checked[learned] += 1
        assert size_BT[row, places[-1]] == 0
    assert min(checked.values()) > 50
    assert (size_BT[batch.segments_BT == 0] == 0).all()  # padding


def test_targets_that_are_read_can_be_anything(batch):
    """Through the compiled step: other targets where nothing is learned change no bit of it."""
    config, graph, params = model()
    step = make_train_step(graph, config, parallel.make_mesh())
    learned_BT = batch.targets_BT != IGNORE
    right_BT = np.roll(batch.inputs_BT, -1, axis=1)  # what stands there in the conversation

    def updated(targets_BT, weights_BT):
        """Loss and parameters after one step."""
        copied = jax.tree.map(jnp.array, params)
        state = TrainState(copied, optimizer_of(config).init(copied), jnp.zeros((), jnp.int32))
        given = batch._replace(targets_BT=targets_BT, weights_BT=weights_BT.astype(np.float32))
        state, metrics = step(state, given)
        return float(metrics.loss), jax.tree.map(np.asarray, state.params)

    plain, ones = updated(batch.targets_BT, np.ones_like(learned_BT)), []
    for targets_BT in (right_BT, (right_BT + 7) % 300):
        ones.append(updated(np.where(learned_BT, batch.targets_BT, targets_BT), learned_BT))
    assert ones[0][0] == ones[1][0] == pytest.approx(plain[0])
    for other in (ones[1], plain):
        same = jax.tree.map(np.array_equal, ones[0][1], other[1])
        assert all(jax.tree.leaves(same))


def test_packed_equals_unpacked_and_neighbours_change_no_bit(batch):
    config, graph, params = model()
    score = make_scorer(graph, config, parallel.make_mesh())
    packed_BT = np.asarray(score(params, batch))
    # Each conversation alone in a row of its own.
    for row, places, rendered in list(segments(batch))[:4]:
        alone = Batch.padding(2, T)
        n = len(rendered.ids)
        alone.inputs_BT[0, :n] = rendered.ids
        alone.positions_BT[0, :n], alone.segments_BT[0, :n] = np.arange(n), 1
        alone.targets_BT[0, : n - 1] = np.where(rendered.mask, rendered.ids, IGNORE)[1:]
        nll = np.asarray(score(params, alone))[0, :n]
        np.testing.assert_allclose(packed_BT[row, places], nll, atol=1e-5, rtol=1e-5)
        assert (nll > 0).sum() == sum(rendered.mask)
    # Every other conversation of the rows becomes noise of the same length.
    changed, kept_BT = jax.tree.map(np.copy, batch), np.zeros(batch.inputs_BT.shape, bool)
    for k, (row, places, _) in enumerate(segments(batch)):
        if k % 2:
            kept_BT[row, places] = True
        else:
            changed.inputs_BT[row, places] = np.random.default_rng(k).integers(3, 250, len(places))
    other_BT = np.asarray(score(params, changed))
    assert np.array_equal(packed_BT[kept_BT], other_BT[kept_BT])
    assert not np.array_equal(packed_BT[~kept_BT], other_BT[~kept_BT])


def test_a_prompt_longer_than_the_row_leaves_masks_where_they_belong(tmp_path):
    """Half of the conversations do not fit; every row that is left has something to learn."""
    long = [
        Conversation((Message("user", f"{i} " + "word " * 200), Message("assistant", f"no {i}")))
        for i in range(12)
    ]
    folder = tmp_path / "out"
    manifest = prepare_conversations([*CONVERSATIONS, *long], chat_format(), folder, T)
    with make_loader(
        folder, seq_len=T, batch_size=1, seed=0, packing="best_fit", prefetch=0
    ) as loader:
        for step in range(len(loader.rows)):
            row = loader.batch(step)
            for _, places, rendered in segments(row):
                learned = row.targets_BT[0, places[:-1]] != IGNORE
                assert learned.tolist() == rendered.mask[1:] and learned.any()
    assert manifest.documents["train"] + manifest.documents["val"] == len(CONVERSATIONS)
    assert dataclasses.asdict(manifest)["learned"]["train"] > 0
