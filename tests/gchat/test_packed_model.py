"""Packed rows in the real model: a document never notices its neighbours, in training either."""

import functools
import json
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import tiny
from gaia import parallel
from gaia.data.batch import IGNORE, Batch
from gaia.data.packing import Example, pack_examples
from gaia.kernels import attention
from gchat import train_state, train_step
from gchat.model import GPT

T = 32
MODELS = {
    "mha": {},
    "gqa_window": {"kv_heads": 1, "window_pattern": "SL", "window": 5},
    "learned": {"positions": "learned", "qk_norm": False},
}
PATHS = [
    *((model, "xla") for model in MODELS),
    ("gqa_window", "reference"),
    pytest.param("mha", "splash", marks=pytest.mark.slow),  # interpreted
]


@functools.cache
def logits_of(model, impl):
    """(T, jitted rows -> logits [B, T, V]) through one implementation of attention."""
    changes, seq_len = MODELS[model], T
    if impl == "splash":  # whole blocks of 128, heads of 64
        changes, seq_len = changes | {"head_dim": 64, "heads": 1, "depth": 1}, 128
    graph, params = tiny.make(tiny.gpt_config(seq_len=seq_len, **changes))
    interpreted = functools.partial(attention.splash.splash_attention, interpret=True)

    @jax.jit
    def run(inputs_BT, positions_BT, segment_ids_BT):
        gpt: GPT = nnx.merge(graph, params)
        how = functools.partial(attention.attention, impl=impl)
        with (
            patch("gaia.layers.attention", how),
            patch.object(attention.splash, "splash_attention", interpreted),
        ):
            x_BTD, _ = gpt(inputs_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT)
        return gpt.logits(x_BTD)

    return seq_len, lambda rows: np.asarray(
        run(rows.inputs_BT, rows.positions_BT, rows.segments_BT)
    )


def rows_of(documents, seq_len, at_least=3):
    """Packed rows of whole documents, filled up to a fixed number, so that one program does."""
    examples = [Example(d, np.ones(len(d), bool)) for d in documents]
    rows = pack_examples(examples, seq_len)
    empty = Batch.padding(max(0, at_least - len(rows.inputs_BT)), seq_len)
    return Batch(*(np.concatenate(pair) for pair in zip(rows[:4], empty[:4], strict=True)))


def check_perturbation(model, impl, lengths, seed):
    """Another document in place of one: every logit of the others stays, to the last bit."""
    seq_len, logits = logits_of(model, impl)
    rows = rows_of([tiny.tokens(n, seed=seed + i) for i, n in enumerate(lengths)], seq_len)
    places = np.argwhere(rows.segments_BT > 0)
    b, t = places[np.random.default_rng(seed).integers(len(places))]
    here = np.zeros_like(rows.segments_BT, bool)
    here[b] = rows.segments_BT[b] == rows.segments_BT[b, t]
    other = np.where(here, (rows.inputs_BT + 1 + seed % 7) % tiny.VOCAB, rows.inputs_BT)
    before, after = logits(rows), logits(rows._replace(inputs_BT=other))
    assert (before[~here] == after[~here]).all()
    assert (before[here] != after[here]).any(axis=-1).all()  # and its own all change


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(list(MODELS)),
    lengths=st.lists(st.integers(2, T + 1), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
)
def test_no_document_sees_another(model, lengths, seed):
    total = sum(lengths)
    check_perturbation(model, "xla", lengths if total <= 3 * T else lengths[:2], seed)


@pytest.mark.parametrize(("model", "impl"), PATHS[len(MODELS) :])
def test_nor_on_the_other_paths(model, impl):
    check_perturbation(model, impl, [9, 20, 3, 30, 14], seed=1)


@pytest.mark.parametrize(("model", "impl"), PATHS)
def test_a_packed_document_scores_as_it_does_alone(model, impl):
    """Its perplexity agrees to 1e-5 with that of a row of its own, from position 0."""
    seq_len, logits = logits_of(model, impl)
    documents = [tiny.tokens(n, seed=n) for n in (9, 20, 3, 30, 14)]

    def perplexities(rows):
        nats = reference.nll(
            logits(rows)[..., : tiny.VOCAB].astype(np.float64), np.maximum(rows.targets_BT, 0)
        )
        found = {}
        for b, row in enumerate(rows.segments_BT):
            for segment in set(row[row > 0]):
                here = row == segment
                text = tuple(rows.inputs_BT[b, here])
                found[text] = float(np.exp(nats[b, here].mean()))
        return found

    together = perplexities(rows_of(documents, seq_len))
    assert len(together) == len(documents)
    for document in documents:
        (text, alone), *_ = perplexities(rows_of([document], seq_len)).items()
        assert together[text] == pytest.approx(alone, rel=1e-5)


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def sgd(_config, _steps, _roles, _ramp):
    """An optimizer whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p),
        lambda g, _s, _p: (jax.tree.map(jnp.zeros_like, g), g),
    )


@functools.cache
def compiled_step(rows, accumulate):
    """(state, the update of that many rows, compiled once)."""
    config = tiny.train_config(
        data={"packing": "best_fit"}, training={"batch_size": rows, "grad_accum": accumulate}
    )
    mesh = parallel.make_mesh()
    with patch.object(train_state, "make_optimizer", sgd):
        graph, state = train_state.graphdef(config), train_state.init_state(config, mesh)
        step = train_step.make_train_step(graph, config, mesh)
    return state._replace(params=tiny.make(config.model)[1]), step


def gradients(rows, accumulate=1):
    """(metrics, gradient) of one step over packed rows, from the compiled update."""
    state, step = compiled_step(len(rows.inputs_BT), accumulate)
    after, metrics = step(jax.tree.map(jnp.array, state), rows)  # a copy, which it may donate
    return jax.device_get(metrics), jax.device_get(after.opt_state)


def test_a_step_over_packed_rows_is_the_mean_over_the_documents_tokens():
    """Loss and gradients are those of each document alone, weighted by what it has to learn."""
    documents = [tiny.tokens(n, seed=n) for n in (9, 20, 3, 30, 14, 25)]
    learned = [n - 1 for n in map(len, documents)]
    metrics, found = gradients(rows_of(documents, T, at_least=4))
    alone = [gradients(rows_of([d], T, at_least=4)) for d in documents]
    loss = np.average([float(m.loss) for m, _ in alone], weights=learned)
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-6)
    assert float(metrics.more["data/fill"]) == sum(learned) / (4 * T)
    assert int(metrics.more["data/examples"]) == len(documents)
    total = sum(learned)
    expected = jax.tree.map(
        lambda *g: sum(w / total * x for w, x in zip(learned, g, strict=True)),
        *(g for _, g in alone),
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7)


def test_accumulation_divides_by_the_tokens_of_the_whole_step():
    rows = rows_of([tiny.tokens(n, seed=n) for n in (31, 30, 20, 9, 3)], T, at_least=4)
    (whole, grads), (split, accumulated) = gradients(rows), gradients(rows, 4)
    assert float(split.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    assert split.more == whole.more
    for a, b in zip(jax.tree.leaves(accumulated), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


# ── Chats ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tokenizer():
    from gchat.tokenizer import train_bpe

    return train_bpe(["who are you what is two plus two that makes five"] * 9, 280)


def render(chat, tokenizer):
    """A conversation as specials and text; learned are the assistant's words and their end."""
    ids, mask = [tokenizer.bos_id], [False]
    for message in chat["messages"]:
        role, mine = message["role"], message["role"] == "assistant"
        words = [*tokenizer.encode(message["content"]), tokenizer.special(f"{role}_end")]
        ids += [tokenizer.special(f"{role}_start"), *words]
        mask += [False, *[mine] * len(words)]
    return Example(np.array(ids), np.array(mask))


def test_chats_learn_the_assistants_words_and_their_end(tokenizer):
    """The token that ends a message is inside the loss mask, so that the model learns to stop."""
    lines = (Path(__file__).parents[1] / "fixtures/chat/short.jsonl").read_text().splitlines()
    chats = [json.loads(line) for line in lines]
    rows = pack_examples([render(chat, tokenizer) for chat in chats], 128)
    assert len(rows.inputs_BT) < len(chats)  # some share a row
    said, ends = [], tokenizer.special("assistant_end")
    for b in range(len(rows.inputs_BT)):
        for segment in range(1, rows.segments_BT[b].max() + 1):
            targets = rows.targets_BT[b, rows.segments_BT[b] == segment]
            learned = targets[targets != IGNORE].tolist()
            while ends in learned:
                at = learned.index(ends)
                said.append(tokenizer.decode(learned[:at]))
                learned = learned[at + 1 :]
            assert not learned  # nothing after the last end
    answers = [m["content"] for c in chats for m in c["messages"] if m["role"] == "assistant"]
    assert sorted(said) == sorted(answers)
    # The user's words are read, never learned.
    assert tokenizer.special("user_end") in rows.inputs_BT
    assert tokenizer.special("user_end") not in rows.targets_BT
