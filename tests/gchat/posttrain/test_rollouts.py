"""Rollouts of the engine: their log-probabilities are the trainer's, tools and ends marked."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gaia import parallel
from gaia.data.batch import IGNORE
from gaia.errors import ConfigError
from gchat.chat_format import Message, format_of
from gchat.config import DataConfig, OptimConfig, TrainConfig, TrainingConfig, derive
from gchat.engine import programs
from gchat.engine.engine import Engine
from gchat.engine.requests import Request, SamplingConfig
from gchat.model import GPTConfig
from gchat.posttrain import policy
from gchat.posttrain.prompts import PromptOrder
from gchat.posttrain.rollouts import Sampler, seeds
from gchat.reward_config import RLConfig
from gchat.tokenizer import train_bpe
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_scorer, make_train_step

TEXT = ["the sum is what it is", "words of a small model"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXT, 290)


def made(tokenizer, dtype="float32", **model):
    sizes = {"depth": 2, "dim": 128, "head_dim": 16, "hidden": 64, "seq_len": 64}
    config = TrainConfig(
        model=GPTConfig(**sizes, compute_dtype=dtype, **model),
        training=TrainingConfig(batch_size=4, steps=10),
        optim=OptimConfig(warmup_steps=0),
        data=DataConfig(),
    )
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": tokenizer.padded_vocab_size,
    }
    config = derive(config, **sizes)[0]
    _, params = tiny.make(config.model, seed=7)
    return config, graphdef(config), params


def sampler_of(config, graph, params, tokenizer, limit=12, slots=4):
    engine = Engine(
        graph, params, seq_len=config.model.seq_len, stop_ids=tokenizer.stop_ids, slots=slots,
        piece=16, decode_bytes=tokenizer.decode_bytes,
    )  # fmt: skip
    return Sampler(engine, format_of(tokenizer, wanted="chat"), limit)


def gap(config, graph, params, sampler, tokenizer, temperature):
    """Distances of the sampler's log-probabilities from the trainer's, and the rollouts."""
    ask = format_of(tokenizer, wanted="chat").prompt
    prompts = [tuple(ask((Message("user", text),))) for text in ("the sum", "what is it")]
    groups = sampler.draw(params, prompts, samples=3, temperature=temperature, seeds=seeds(1, 0, 2))
    rollouts = [one for group in groups for one in group]
    rl = RLConfig(temperature=temperature)
    batch = policy.rows(rollouts, np.ones(6), np.ones(6, bool), rl, 48)
    score = make_scorer(graph, config, parallel.make_mesh(), temperature=temperature)
    nats_BT = np.asarray(score(params, batch._replace(weights_BT=None, more=None)))
    sampled = batch.targets_BT != IGNORE
    return np.abs(-nats_BT - batch.more["sampler"])[sampled], rollouts


@pytest.mark.parametrize("temperature", [1.3])
def test_sampler_and_trainer_agree_in_fp32(tokenizer, temperature):
    config, graph, params = made(tokenizer)
    sampler = sampler_of(config, graph, params, tokenizer)
    distances, rollouts = gap(config, graph, params, sampler, tokenizer, temperature)
    assert distances.max() < 1e-4
    assert len(distances) == sum(sum(r.chosen) for r in rollouts) > 30
    ended = [r for r in rollouts if r.ended]
    assert all(r.ids[-1] in tokenizer.stop_ids for r in ended)  # the end is part of the answer


@pytest.mark.slow
def test_sampler_and_trainer_agree_in_bf16_with_one_table_for_both_ends(tokenizer):
    """Its gap is that of rounding to 8 bits, and the same parameters can be trained."""
    config, graph, params = made(tokenizer, "bfloat16", tied=True)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))  # so that no block adds nothing
    noisy = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    sampler = sampler_of(config, graph, params, tokenizer)
    distances, rollouts = gap(config, graph, params, sampler, tokenizer, 1.0)
    assert 0 < distances.max() < 0.1
    rl, mesh = RLConfig(), parallel.make_mesh()
    batch = policy.rows(rollouts, np.linspace(-1, 1, 6), np.ones(6, bool), rl, 48)
    step = make_train_step(graph, config, mesh, policy.objective(rl))
    rows = jax.tree.map(lambda a: parallel.shard_rows(a, mesh), batch)
    _, metrics = step(init_state(config, mesh), rows)
    assert np.isfinite(float(metrics.loss)) and float(metrics.grad_norm) > 0


def test_other_parameters_are_taken_without_compiling_and_nothing_old_is_left(tokenizer):
    config, graph, params = made(tokenizer)
    sampler = sampler_of(config, graph, params, tokenizer)
    prompt = tuple(format_of(tokenizer, wanted="chat").prompt((Message("user", TEXT[0]),)))

    def draw(sampler, params):
        return sampler.draw(params, [prompt], samples=3, temperature=1.0, seeds=[5])

    first = draw(sampler, params)
    compiled = programs.decode._cache_size(), programs.pack_weights._cache_size()
    other = jax.tree.map(lambda a: a * 1.1, params)
    second = draw(sampler, other)
    assert (programs.decode._cache_size(), programs.pack_weights._cache_size()) == compiled
    assert second != first and draw(sampler, params) == first
    fresh = sampler_of(config, graph, other, tokenizer)
    assert draw(fresh, other) == second
    # Between the steps it holds nothing, and says so.
    with pytest.raises(ConfigError, match="no parameters"):
        sampler.engine.submit(Request(prompt, 4))


def test_parameters_are_not_taken_while_answers_are_under_way(tokenizer):
    config, graph, params = made(tokenizer)
    engine = sampler_of(config, graph, params, tokenizer).engine
    stream = engine.submit(Request([1, 2, 3], 4, SamplingConfig(0.0)))
    with pytest.raises(ConfigError, match="under way"):
        engine.use(params)
    assert list(stream)[-1].finish in ("stop", "length")
    engine.use(params)


def test_rollouts_are_a_function_of_seed_batch_and_prompt():
    assert seeds(3, 7, 4) == seeds(3, 7, 4)
    assert seeds(3, 7, 2) == seeds(3, 7, 4)[:2]
    assert len({*seeds(3, 7, 4), *seeds(3, 8, 4), *seeds(4, 7, 4)}) == 12
    order = PromptOrder(range(10), 4, 1, 0)
    first = [next(order) for _ in range(5)]
    assert sorted(i for batch in first for i in batch.items) == sorted([*range(10)] * 2)
    later = PromptOrder(range(10), 4, 1, 3)
    assert next(later) == first[3]
    assert [batch.index for batch in first] == [0, 1, 2, 3, 4]


def test_output_of_a_tool_is_not_the_models_choice(tokenizer):
    """A model that says a known chain of tokens, the calculator's output among them."""
    special, ids = tokenizer.special, tokenizer.encode
    call = [special("python_start"), *ids("7*6"), special("python_end")]
    output = [special("output_start"), *ids("42"), special("output_end")]
    said = [*ids("is"), *call]
    chain = [special("assistant_start"), *said, output[-1], *ids("!"), special("assistant_end")]
    config, graph, params = made(tokenizer)
    for part, kernel in (("attn", "out"), ("mlp", "down")):
        params["blocks"][part][kernel]["kernel"] *= 0
    table = np.asarray(params["embed"]["table"])
    head = np.zeros(params["head"]["kernel"].shape, np.float32)
    for token, following in itertools.pairwise(chain):
        if following != output[-1]:
            head[:, following] += table[token]
    params["head"]["kernel"] = jnp.asarray(head) * 0.02

    sampler = sampler_of(config, graph, params, tokenizer, limit=30)
    prompt = (tokenizer.bos_id, chain[0])
    ((rollout,),) = sampler.draw(params, [prompt], samples=1, temperature=0.0, seeds=[1])
    assert rollout.ids == (*said, *output, *ids("!"), chain[-1]) and rollout.ended
    forced = [i for i, chosen in zip(rollout.ids, rollout.chosen, strict=True) if not chosen]
    assert forced == output
    for logprob, chosen in zip(rollout.logprobs, rollout.chosen, strict=True):
        assert (logprob < 0) == chosen
    told = [(part.kind, part.text) for part in rollout.message.parts]
    assert told == [("text", "is"), ("call", "7*6"), ("output", "42"), ("text", "!")]
    assert rollout.message.content == "is!"
