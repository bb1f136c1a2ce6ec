"""Policy gradients against closed forms and against plain autodiff over whole logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia.data.batch import IGNORE
from gchat import objective as objectives
from gchat.chat_format import Message
from gchat.model import GPTConfig
from gchat.posttrain import policy
from gchat.posttrain.policy import Rollout
from gchat.reward_config import RLConfig

SLOW = pytest.mark.slow
LOSSES = ("dapo", "grpo", "dr_grpo", "reinforce")


def rollout(prompt, ids, chosen=None, logprobs=None):
    chosen = chosen or [True] * len(ids)
    logprobs = [-1.0] * len(ids) if logprobs is None else logprobs
    given = [float(p) if c else 0.0 for p, c in zip(logprobs, chosen, strict=True)]
    return Rollout(
        tuple(prompt), tuple(ids), tuple(chosen), tuple(given), Message("assistant", ""), True
    )


def gradient(config, rl, params, graph, batch):
    """(loss, sums, gradients) of our objective."""

    def loss(params, batch):
        return policy.objective(rl).loss(config, nnx.merge(graph, params), batch, None)

    (value, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    return value, dict(zip(policy.SUMS, sums, strict=True)), grads


# ── A policy of two tokens ──────────────────────────────────────────────────────────────────────


def two_token_policy():
    """A model of two tokens whose answer to token 0 depends on the head alone."""
    config = tiny.train_config(model={"depth": 1})
    model = GPTConfig(
        depth=1, dim=32, head_dim=16, hidden=64, seq_len=32, compute_dtype="float32"
    ).derive(2, 128)
    graph, params = tiny.make(model)
    for part, kernel in (("attn", "out"), ("mlp", "down")):
        params["blocks"][part][kernel]["kernel"] *= 0
    return replace(config, model=model), graph, params


def state_before_the_answer(graph, params):
    model = nnx.merge(graph, params)
    return np.asarray(model(np.zeros((1, 1), np.int32))[0][0, 0], np.float64)


@pytest.mark.parametrize("loss", ["dapo", *(pytest.param(one, marks=SLOW) for one in LOSSES[1:])])
def test_the_gradient_of_a_two_token_policy_is_the_analytic_one(loss):
    """d/dz of the loss is -sum_i w_i A_i (onehot(a_i) - p): for one token per answer all four
    losses have w = 1 / answers (dr_grpo: / max tokens too)."""
    config, graph, params = two_token_policy()
    actions, rewards = [0, 1, 1, 0, 1], np.array([[0.0, 1.0, 0.5, 0.0, 1.0]])
    rl = RLConfig(loss=loss, max_new_tokens=3, correction="none")
    advantage, kept = policy.advantages(rewards, loss)
    assert kept.all()
    away = rewards[0] - rewards[0].mean()
    expected = away / (rewards[0].std(ddof=1) + 1e-4) if loss in ("dapo", "grpo") else away
    np.testing.assert_allclose(advantage[0], expected, rtol=1e-6)

    batch = policy.rows([rollout([0], [a]) for a in actions], advantage[0], np.ones(5, bool), rl, 1)
    value, _, grads = gradient(config, rl, params, graph, batch)

    hidden_D = state_before_the_answer(graph, params)
    z = hidden_D @ np.asarray(params["head"]["kernel"], np.float64)[:, :2]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    weight = 1 / 5 / (3 if loss == "dr_grpo" else 1)
    dz = -sum(weight * a * (np.eye(2)[act] - p) for a, act in zip(expected, actions, strict=True))
    np.testing.assert_allclose(
        np.asarray(grads["head"]["kernel"])[:, :2], np.outer(hidden_D, dz), rtol=2e-4, atol=1e-6
    )
    logp = np.log(p)[actions]
    gains = expected * (logp if loss == "reinforce" else 1.0)
    np.testing.assert_allclose(value, -weight * gains.sum(), rtol=1e-4, atol=1e-6)


@SLOW
def test_expected_reward_rises_along_the_gradient():
    """Over all actions, each as often as the policy takes it, the gradient is that of E[R]:
    dE/dz_k = p_k (r_k - E)."""
    config, graph, params = two_token_policy()
    params["head"]["kernel"] *= 0  # p = 1/2 each
    rl = RLConfig(loss="reinforce", correction="none")
    advantage, _ = policy.advantages(np.array([[1.0, 0.0]]), "reinforce")
    batch = policy.rows([rollout([0], [a]) for a in (0, 1)], advantage[0], np.ones(2, bool), rl, 1)
    _, _, grads = gradient(config, rl, params, graph, batch)
    hidden_D = state_before_the_answer(graph, params)
    np.testing.assert_allclose(
        -np.asarray(grads["head"]["kernel"])[:, :2],
        np.outer(hidden_D, [0.5 * 0.5, 0.5 * -0.5]),
        rtol=1e-4,
        atol=1e-6,
    )


# ── Against plain autodiff ──────────────────────────────────────────────────────────────────────


def rollouts(seed):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(4):
        prompt, ids = tiny.tokens(5, seed=seed), rng.integers(0, tiny.VOCAB, rng.integers(2, 9))
        chosen = [True, *(rng.random(len(ids) - 2) > 0.3), True]
        made.append(rollout(prompt.tolist(), ids.tolist(), chosen, rng.normal(-4.6, 1, len(ids))))
    return made


def plain_loss(rl, graph, params, made, advantage, more):
    """The formulas of the papers, over whole logits, answer by answer."""
    total, answers = 0.0, len(made)
    tokens = sum(sum(r.chosen) for r in made)
    for b, r in enumerate(made):
        ids = jnp.asarray([*r.prompt, *r.ids])
        z_TV = tiny.logits(graph, params, ids[None, :-1])[0] / rl.temperature
        logprob_T = jax.nn.log_softmax(z_TV)[jnp.arange(len(ids) - 1), ids[1:]]
        logprob_T = logprob_T[len(r.prompt) - 1 :]
        here = slice(len(r.prompt) - 1, len(ids) - 1)
        old_T = more["old"][b, here] if "old" in more else jax.lax.stop_gradient(logprob_T)
        ratio_T = jnp.exp(logprob_T - old_T)
        weight_T = jnp.exp(old_T - jnp.asarray(r.logprobs))
        if rl.correction == "truncate":
            weight_T = jnp.where(weight_T > rl.correction_cap, rl.correction_cap, weight_T)
        elif rl.correction == "mask":
            weight_T = jnp.where(weight_T > rl.correction_cap, 0.0, weight_T)
        else:
            weight_T = jnp.ones_like(weight_T)
        A = float(advantage[b])
        if rl.loss == "reinforce":
            gain_T = A * logprob_T
        else:
            low, high = 1 - rl.clip_low, 1 + rl.clip_high
            held_T = jnp.where(ratio_T > high, high, jnp.where(ratio_T < low, low, ratio_T))
            gain_T = jnp.minimum(ratio_T * A, held_T * A)
        loss_T = -weight_T * gain_T
        if rl.kl:
            d_T = more["reference"][b, here] - logprob_T
            loss_T = loss_T + rl.kl * (jnp.exp(d_T) - 1 - d_T)
        summed = jnp.dot(loss_T, jnp.asarray(r.chosen, jnp.float32))
        total += {
            "dapo": summed / tokens,
            "grpo": summed / sum(r.chosen) / answers,
            "dr_grpo": summed / (answers * rl.max_new_tokens),
            "reinforce": summed / answers,
        }[rl.loss]
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "dapo", "kl": 0.3, "correction": "mask", "correction_cap": 1.1},
        pytest.param({"loss": "grpo", "temperature": 0.7, "correction_cap": 1.2}, marks=SLOW),
        pytest.param({"loss": "dr_grpo", "correction": "none", "kl": 0.1}, marks=SLOW),
        pytest.param({"loss": "reinforce", "temperature": 1.4}, marks=SLOW),
    ],
)
def test_loss_and_gradients_equal_the_papers_formulas(changes):
    rl = RLConfig(max_new_tokens=12, **changes)
    config = tiny.train_config(model={"depth": 1})
    graph, params = tiny.make(config.model, seed=3)
    made, advantage = rollouts(1), np.array([1.3, -0.4, 0.9, -1.8], np.float32)
    batch = policy.rows(made, advantage, np.ones(4, bool), rl, 16)
    rng = np.random.default_rng(5)
    near = np.log(1 / tiny.VOCAB) + rng.normal(0, 1.5, (2, 4, 16)).astype(np.float32)
    more = {"old": near[0], "reference": near[1]} if rl.loss != "reinforce" else {}
    batch = batch._replace(more={**batch.more, **more})
    value, _, grads = gradient(config, rl, params, graph, batch)
    expected, expected_grads = jax.jit(
        jax.value_and_grad(lambda p: plain_loss(rl, graph, p, made, advantage, more))
    )(params)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected_grads):
        ours = grads
        for key in path:
            ours = ours[key.key]
        scale = float(jnp.abs(theirs).max()) + 1e-6
        np.testing.assert_allclose(ours, theirs, atol=3e-4 * scale, err_msg=str(path))


@pytest.mark.parametrize(
    "loss", ["grpo", *(pytest.param(o, marks=SLOW) for o in ("dapo", "dr_grpo"))]
)
def test_at_ratio_1_clipped_losses_are_the_policy_gradient(loss):
    """-sum w A grad log p, whatever the clip range; the sums say ratio 1, nothing clipped."""
    rl = RLConfig(loss=loss, clip_low=0.0, clip_high=0.0, correction="none", max_new_tokens=9)
    config = tiny.train_config(model={"depth": 1})
    graph, params = tiny.make(config.model, seed=3)
    made, advantage = rollouts(2), np.array([1.0, -1.0, 0.5, -0.5], np.float32)
    batch = policy.rows(made, advantage, np.ones(4, bool), rl, 16)
    _, sums, grads = gradient(config, rl, params, graph, batch)

    @jax.jit
    @jax.grad
    def surrogate(params):
        logprob_BTV = jax.nn.log_softmax(tiny.logits(graph, params, batch.inputs_BT))
        targets = np.maximum(batch.targets_BT, 0)
        logprob_BT = jnp.take_along_axis(logprob_BTV, targets[..., None], 2)[..., 0]
        return -jnp.sum(batch.weights_BT * batch.more["advantage"] * logprob_BT)

    expected = surrogate(params)["head"]["kernel"]
    np.testing.assert_allclose(grads["head"]["kernel"], expected, atol=1e-5)
    assert sums["rl/ratio"] == pytest.approx(1) and sums["rl/clip_share"] == 0


# ── What is learned ─────────────────────────────────────────────────────────────────────────────


def test_the_end_token_is_learned_and_prompts_and_tool_output_are_not(monkeypatch):
    """The gradient with respect to each position's hidden state: exactly 0 or not."""
    rl = RLConfig(loss="dapo")
    made = [rollout([1, 2, 3], [4, 5, 6, 7, 8], [True, False, False, True, True])]
    batch = policy.rows(made, np.ones(1), np.ones(1, bool), rl, 10)
    config = tiny.train_config()
    head_DV = jax.random.normal(jax.random.key(0), (32, 128))

    class Headed:
        head_kernel = head_DV

    def loss(x_BTD):
        monkeypatch.setattr(objectives, "hidden_states", lambda *_: x_BTD)
        return policy.objective(rl).loss(config, Headed, batch, None)[0]

    slope_T = np.abs(np.asarray(jax.grad(loss)(jnp.ones((1, 10, 32))))[0]).sum(-1)
    # Position 2 predicts the first token of the answer, position 6 its end.
    assert np.flatnonzero(slope_T).tolist() == [2, 5, 6]
    assert batch.targets_BT[0].tolist() == [-1, -1, 4, -1, -1, 7, 8, -1, -1, -1]


def test_groups_without_differences_teach_nothing_and_count_nowhere():
    rewards = np.array([[1, 1, 1], [0, 1, 0.5], [np.nan, np.nan, 1], [np.nan, 0, 1.0]])
    advantage, kept = policy.advantages(rewards, "dr_grpo")
    assert kept.tolist() == [False, True, False, True]
    np.testing.assert_allclose(advantage[0], 0)
    np.testing.assert_allclose(advantage[1], [-0.5, 0.5, 0])
    np.testing.assert_allclose(advantage[3], [0, -0.5, 0.5])
    scaled, _ = policy.advantages(rewards, "grpo")
    np.testing.assert_allclose(scaled[3], np.array([0, -0.5, 0.5]) / (0.5**0.5 + 1e-4), rtol=1e-6)

    rl = RLConfig(loss="dapo")
    made = [rollout([1], [2] * n) for n in (4, 1, 3)]
    batch = policy.rows(made, np.ones(3), np.array([False, True, True]), rl, 8)
    assert batch.weights_BT.sum(1).tolist() == [0, 0.25, 0.75]
    assert (batch.targets_BT != IGNORE).sum() == 8  # the log still tells of all that was sampled


@SLOW
def test_weights_of_a_step_do_not_depend_on_how_it_is_split():
    """Micro-batches of the update give the loss of the whole."""
    from gaia import parallel
    from gchat.train_state import graphdef, init_state
    from gchat.train_step import make_train_step

    rl, made = RLConfig(loss="grpo"), rollouts(4)
    batch = policy.rows(made, np.array([1.0, -2, 3, 0.5]), np.ones(4, bool), rl, 16)
    seen = []
    for accum in (1, 2):
        config = tiny.train_config(model={"depth": 1}, training={"grad_accum": accum})
        mesh = parallel.make_mesh()
        step = make_train_step(graphdef(config), config, mesh, policy.objective(rl))
        rows = jax.tree.map(lambda a, mesh=mesh: parallel.shard_rows(a, mesh), batch)
        _, metrics = step(init_state(config, mesh), rows)
        seen.append({"loss": metrics.loss, "norm": metrics.grad_norm, **metrics.more})
    assert seen[0].keys() >= set(policy.SUMS)
    for name, value in seen[0].items():
        assert float(value) == pytest.approx(float(seen[1][name]), rel=1e-4, abs=1e-6), name
