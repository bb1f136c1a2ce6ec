"""Pairs of answers: the files that are read, the rows they make, the loss of closed form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tiny
from gaia.data.batch import IGNORE
from gaia.errors import ConfigError, DataError
from gchat.chat_format import format_of
from gchat.posttrain.pairs import Pair, read_pairs, rendered, row_length, rows
from gchat.posttrain.preference_loss import SUMS, objective, pair_loss
from gchat.reward_config import DPOConfig
from gchat.tokenizer import train_bpe

ASKED = [{"role": "user", "content": "Hi"}]
GOOD, BAD = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "No."}


@pytest.fixture(scope="module")
def chat_format():
    return format_of(train_bpe(["hi hello no"], 280), wanted="chat")


def written(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(path)]


def test_all_ways_of_writing_a_pair_are_one(tmp_path):
    same = [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
        {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ASKED, "chosen": "Hello!", "rejected": "No."},
        {"prompt": "Hi", "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "score_chosen": 8.5},
        {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
        {"prompt": "Hi", "chosen": GOOD, "rejected": BAD},
        {"question": "Hi", "chosen": "Hello!", "rejected": "No."},
    ]
    pairs = read_pairs(written(tmp_path, *same))
    assert len(set(pairs)) == 1
    assert [m.content for m in pairs[0][0].messages] == ["Hi", "Hello!"]
    assert [m.content for m in pairs[0][1].messages] == ["Hi", "No."]
    (tmp_path / "notes.txt").write_text("no pairs")
    assert read_pairs([str(tmp_path)]) == pairs


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "Hi", "chosen": "Hello!"},
            "'rejected' is missing (there is 'prompt'",
        ),
        ({"prompt": "Hi", "chosen": "a", "rejected": 5}, "'rejected': completion is a int"),
        ({"chosen": "a", "rejected": "b"}, "'chosen': there is no prompt"),
        ({"prompt": "Hi", "chosen": "", "rejected": "b"}, "messages[1].content is empty"),
        (
            {"chosen": [*ASKED, GOOD], "rejected": [{"role": "user", "content": "Ho"}, BAD]},
            "answer different conversations",
        ),
        ({"chosen": ASKED, "rejected": [*ASKED, BAD]}, "nothing answers it"),
        (["Hi"], "no JSON object"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(tmp_path, row, says):
    fine = {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}
    with pytest.raises(DataError) as caught:
        read_pairs(written(tmp_path, fine, row))
    assert "pairs.jsonl, line 2: " in caught.value.problem and says in caught.value.problem


def test_missing_files_and_no_files(tmp_path):
    with pytest.raises(ConfigError, match="is not set"):
        read_pairs([])
    with pytest.raises(DataError, match="does not exist"):
        read_pairs([str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match="holds no"):
        read_pairs([str(tmp_path)])


def test_only_the_last_answer_is_learned_and_long_pairs_are_counted(tmp_path, chat_format):
    turns = [*ASKED, GOOD, {"role": "user", "content": "More"}]
    long = {"prompt": "word " * 300, "chosen": "a", "rejected": "b"}
    equal = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Hello!"}
    some = {"chosen": [*turns, GOOD], "rejected": [*turns, BAD]}
    pairs, said = rendered(read_pairs(written(tmp_path, some, long, equal)), chat_format, 60)
    assert len(pairs) == 2
    assert said == [
        "1 of 3 pairs are longer than model.seq_len",
        "1 pairs have two equal answers, which teach nothing",
    ]
    end = chat_format.tokenizer.special("assistant_end")
    for ids, learned, text in zip(pairs[0].ids, pairs[0].learned, ("Hello!", "No."), strict=True):
        assert ids[learned].tolist() == [*chat_format.tokenizer.encode(text), end]
    length = row_length(pairs)
    assert length % 128 == 0
    batch = rows(pairs, length, [np.arange(p.targets, dtype=np.float32) for p in pairs])
    for b, pair in enumerate(pairs):
        for segment in (1, 2):
            here = batch.segments_BT[b] == segment
            assert (batch.inputs_BT[b, here] == pair.ids[segment - 1][:-1]).all()
            assert (batch.positions_BT[b, here] == np.arange(here.sum())).all()
        targets = batch.targets_BT[b] != IGNORE
        assert batch.more["reference"][b, targets].tolist() == list(range(pair.targets))
    with pytest.raises(DataError, match="none of 1 pairs fits"):
        rendered(read_pairs(written(tmp_path, long)), chat_format, 60)


# ── The loss ────────────────────────────────────────────────────────────────────────────────────


def single(prompt, answer):
    """A conversation of ids whose last one is learned."""
    ids = np.array([*prompt, answer], np.int32)
    return ids, np.arange(len(ids)) == len(ids) - 1


def pair_of(prompt, chosen, rejected):
    (a, la), (b, lb) = single(prompt, chosen), single(prompt, rejected)
    return Pair((a, b), (la, lb))


@pytest.mark.parametrize("length_normalised", [False, True])
def test_the_loss_is_the_papers(length_normalised):
    """Against float64 arithmetic on random log-probabilities, answers of differing lengths."""
    config = DPOConfig(beta=0.3, label_smoothing=0.1, length_normalised=length_normalised)
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(5):
        ids = [rng.integers(0, 50, rng.integers(4, 9)).astype(np.int32) for _ in range(2)]
        pairs.append(Pair(tuple(ids), tuple(np.arange(len(i)) >= 2 for i in ids)))
    reference = [rng.normal(-3, 1, p.targets).astype(np.float32) for p in pairs]
    batch = rows(pairs, 32, reference)
    policy_BT = np.where(batch.targets_BT >= 0, rng.normal(-3, 1, (5, 32)), 0).astype(np.float32)
    ours = pair_loss(config, policy_BT, batch)
    for b, pair in enumerate(pairs):
        logprob = policy_BT[b, batch.targets_BT[b] >= 0].astype(np.float64)
        first = int(pair.learned[0].sum())
        ratio = logprob - reference[b]
        chosen, rejected = ratio[:first], ratio[first:]
        add = np.mean if length_normalised else np.sum
        margin = 0.3 * (add(chosen) - add(rejected))
        loss = 0.9 * np.log1p(np.exp(-margin)) + 0.1 * np.log1p(np.exp(margin))
        assert float(ours.loss_b[b]) == pytest.approx(loss, rel=1e-5)
        assert float(ours.margin_b[b]) == pytest.approx(margin, rel=1e-4)


def policy_of_one_answer():
    """A model whose answer to token 0 is decided by its head alone."""
    config = tiny.train_config(model={"depth": 1})
    graph, params = tiny.make(config.model)
    for part, kernel in (("attn", "out"), ("mlp", "down")):
        params["blocks"][part][kernel]["kernel"] *= 0
    return config, graph, params


def test_training_ends_at_the_closed_form():
    """Preferred 3 times in 4, at beta b: log p1/p2 = log ref1/ref2 + logit(3/4) / b, where the
    loss over pairs is least (Rafailov et al. 2023, equation 5 with the Bradley-Terry model)."""
    config, graph, params = policy_of_one_answer()
    dpo = DPOConfig(beta=0.5)
    pairs = [pair_of([0], 1, 2)] * 3 + [pair_of([0], 2, 1)]
    loss = objective(dpo)

    def logprobs(params):
        return jax.nn.log_softmax(tiny.logits(graph, params, np.zeros((1, 1), np.int32))[0, 0])

    first = np.asarray(logprobs(params))
    reference = [np.array([first[p.ids[0][-1]], first[p.ids[1][-1]]], np.float32) for p in pairs]
    batch = rows(pairs, 2, reference)

    def total(head, params):
        model = nnx.merge(graph, {**params, "head": {"kernel": head}})
        value, sums = loss.loss(config, model, batch, None)
        return value / len(pairs), sums

    optimizer = optax.adam(0.03)

    @jax.jit
    def train(head):
        def step(_, carry):
            head, state = carry
            grads = jax.grad(total, has_aux=True)(head, params)[0]
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(head, updates), state

        return jax.lax.fori_loop(0, 400, step, (head, optimizer.init(head)))[0]

    start, sums = total(params["head"]["kernel"], params)
    assert float(start) == pytest.approx(np.log(2), abs=1e-6)
    assert float(dict(zip(SUMS, sums, strict=True))["dpo/margin"]) == pytest.approx(0, abs=1e-5)
    after = np.asarray(logprobs({**params, "head": {"kernel": train(params["head"]["kernel"])}}))
    moved = (after[1] - after[2]) - (first[1] - first[2])
    assert moved == pytest.approx(np.log(3) / 0.5, abs=1e-3)


def test_equal_pairs_teach_nothing_and_break_nothing():
    config, graph, params = policy_of_one_answer()
    pairs = [pair_of([0, 5], 1, 1)] * 2
    batch = rows(pairs, 8, [np.full(2, -4.0, np.float32)] * 2)

    def total(params):
        return objective(DPOConfig()).loss(config, nnx.merge(graph, params), batch, None)

    (value, sums), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert float(value) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert np.isfinite([float(x) for x in sums]).all()
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    assert largest < 1e-6
