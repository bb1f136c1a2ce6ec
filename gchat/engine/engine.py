"""Decoding: a jitted prefill, then chunks of jitted steps over a KV cache.

One compiled program per (prompt bucket, cache length, batch); temperature, top-k, top-p and the
seed are arguments of it, not constants, so changing them compiles nothing.

Shapes: B batch, T prompt time, S cache slots, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaia import parallel
from gaia.errors import ConfigError
from gaia.layers import KVCache
from gchat.model import GPT
from gchat.ranges import MAX_SEED

_CHUNK = 16  # tokens decoded per call: few host round trips, yet text appears as it is made


@dataclass(frozen=True)
class SamplingConfig:
    """Choice of the next token."""

    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability."""
    seed: int = 0
    """Same seed, same text (on the same kind of machine)."""

    def check(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}", "use 0 or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}", "use 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}", "use a share in (0, 1]")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}", f"use 0 to {MAX_SEED}")


class _Knobs(NamedTuple):
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class _DecodeState(NamedTuple):
    cache: KVCache
    logits_BV: jax.Array
    position_B: jax.Array
    done_B: jax.Array
    key: jax.Array


def choose(logits_BV: jax.Array, knobs: _Knobs, key: jax.Array) -> jax.Array:
    """Samples one id per row [B] from fp32 logits; ids with -inf logits are never chosen."""
    V = logits_BV.shape[-1]
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    scaled_BV = logits_BV / jnp.maximum(knobs.temperature, 1e-6)
    ordered_BV = -jnp.sort(-scaled_BV, axis=-1)
    k = jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, V), V)
    kth_B1 = jnp.take_along_axis(ordered_BV, jnp.full((logits_BV.shape[0], 1), k - 1), axis=-1)
    # top-p keeps a token if the mass before it is below p; the first one always stays.
    before_BV = jnp.cumsum(jax.nn.softmax(ordered_BV, axis=-1), axis=-1)
    before_BV = jnp.pad(before_BV[:, :-1], ((0, 0), (1, 0)))
    last_B1 = jnp.sum(before_BV < knobs.top_p, axis=-1, keepdims=True) - 1
    floor_B1 = jnp.take_along_axis(ordered_BV, jnp.maximum(last_B1, 0), axis=-1)
    keep_BV = scaled_BV >= jnp.maximum(kth_B1, floor_B1)
    sampled_B = jax.random.categorical(key, jnp.where(keep_BV, scaled_BV, -jnp.inf))
    return jnp.where(knobs.temperature == 0.0, greedy_B, sampled_B).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 4))
def _prefill(graph, params, tokens_BT, length_B, slots: int):
    """Runs the padded prompts; padding lands in slots that later tokens overwrite."""
    model: GPT = nnx.merge(graph, params)
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))
    x_BTD, cache = model(tokens_BT, positions_BT=positions_BT, cache=model.empty_cache(B, slots))
    last_B1D = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)
    return model.logits(last_B1D[:, 0]), cache


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=(2,))
def _decode(graph, params, state: _DecodeState, knobs: _Knobs, stop_ids_N, steps: int):
    """Decodes `steps` tokens for every row; returns the new state and ids [B, steps]."""
    model: GPT = nnx.merge(graph, params)

    def one(state: _DecodeState, _):
        key, use = jax.random.split(state.key)
        next_B = choose(state.logits_BV, knobs, use)
        done_B = state.done_B | jnp.any(next_B[:, None] == stop_ids_N[None, :], axis=1)
        x_B1D, cache = model(
            next_B[:, None], positions_BT=state.position_B[:, None], cache=state.cache
        )
        assert cache is not None  # one went in
        logits_BV = model.logits(x_B1D[:, 0])
        # A finished row keeps its place: it goes on decoding tokens that nobody reads.
        position_B = state.position_B + jnp.where(done_B, 0, 1)
        return _DecodeState(cache, logits_BV, position_B, done_B, key), next_B

    state, ids_TB = jax.lax.scan(one, state, None, length=steps)
    return state, ids_TB.T


def bucket(n: int, smallest: int = 32) -> int:
    """The next power of two at or above n, so that few prompt lengths are compiled."""
    size = smallest
    while size < n:
        size *= 2
    return size


class Engine:
    """Generates continuations with a fixed set of parameters.

    Args:
        graph: static part of the model, from `nnx.split`.
        params: its parameters.
        seq_len: positions the model was made for.
        stop_ids: ids that end a continuation; they are not returned.
    """

    def __init__(self, graph: Any, params: Any, *, seq_len: int, stop_ids: Sequence[int]) -> None:
        self.graph, self.seq_len = graph, seq_len
        self.params = parallel.automatic(params)  # sharded or not: the compiler places decoding
        self.stop_ids = tuple(stop_ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: SamplingConfig = SamplingConfig(),
        on_tokens: Callable[[int, list[int]], None] = lambda row, ids: None,
    ) -> list[list[int]]:
        """Continues each prompt by up to `max_new_tokens` ids.

        Args:
            prompts: token ids, each at least one (begin with BOS).
            max_new_tokens: upper limit; the model's `seq_len` limits prompt and answer together.
            sampling: how tokens are chosen.
            on_tokens: called with (row, new ids) as they appear.

        Raises:
            ConfigError: a prompt is empty or leaves no room, or a sampling field cannot work.
        """
        sampling.check()
        self._check(prompts, max_new_tokens)
        if not prompts:
            return []
        results: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        for ids_BT in self._chunks(prompts, max_new_tokens, sampling):
            for row in sorted(open_rows):
                fresh: list[int] = []
                for token in ids_BT[row].tolist():
                    longest = min(max_new_tokens, self.seq_len - len(prompts[row]))
                    if token in self.stop_ids or len(results[row]) + len(fresh) >= longest:
                        open_rows.discard(row)
                        break
                    fresh.append(token)
                results[row] += fresh
                if fresh:
                    on_tokens(row, fresh)
            if not open_rows:
                break
        return results

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}", "use at least 1")
        rows = self.params["embed"]["table"].shape[0]
        for prompt in prompts:
            if not prompt:
                raise ConfigError("a prompt has no tokens", "begin prompts with BOS")
            if min(prompt) < 0 or max(prompt) >= rows:
                wrong = min(prompt) if min(prompt) < 0 else max(prompt)
                raise ConfigError(
                    f"a prompt holds id {wrong}, the model's are 0 to {rows - 1}",
                    "encode it with the tokenizer of the run",
                )
            if len(prompt) >= self.seq_len:
                raise ConfigError(
                    f"a prompt has {len(prompt)} tokens, the model's seq_len is {self.seq_len}",
                    "shorten the prompt",
                )

    def _chunks(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: SamplingConfig
    ) -> Iterator[np.ndarray]:
        longest = max(len(p) for p in prompts)
        total = min(longest + max_new_tokens, self.seq_len)
        padded = bucket(longest)
        # Room for the padding of the prompt and for a whole last chunk, in few distinct sizes.
        slots = bucket(max(padded, total + _CHUNK))
        tokens_BT = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = prompt
        length_B = np.array([len(p) for p in prompts], np.int32)
        logits_BV, cache = _prefill(self.graph, self.params, tokens_BT, length_B, slots)
        knobs = _Knobs(
            jnp.float32(sampling.temperature),
            jnp.int32(sampling.top_k),
            jnp.float32(sampling.top_p),
        )
        done_B = jnp.zeros(len(prompts), bool)
        key = jax.random.key(sampling.seed)
        state = _DecodeState(cache, logits_BV, jnp.asarray(length_B), done_B, key)
        stop_ids = jnp.asarray(self.stop_ids or (-1,), jnp.int32)
        for _ in range(0, max_new_tokens, _CHUNK):
            state, ids_BT = _decode(self.graph, self.params, state, knobs, stop_ids, _CHUNK)
            yield parallel.to_host(ids_BT)
