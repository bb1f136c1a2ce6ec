"""Keys and values of earlier tokens, and attention of new queries over them (decoding).

A row of the cache belongs to one sequence, and position p lies in slot p. What rows at position -1
write, the idle ones, goes into the last slots, which no sequence comes to.

Attention walks over blocks of slots, as far as the furthest row has come: the program does not
depend on that, and a block that a row does not see leaves its sums as they are, to the last bit.
So a row's result does not depend on the rows beside it.

Shapes: B rows, T new tokens, S slots, K kv heads, N query heads, G = N / K, H head dim.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaia import parallel

BLOCK = 128
"""Slots that attention takes at once on CPU; a cache has a multiple of it."""
_BLOCK_ACCELERATOR = 512
_UNROLLED_ROWS = 8  # rows written one by one; XLA's scatter is slower than that on CPU
_HIDDEN = -1e30  # finite, so that a row that sees nothing yet gives no NaN


class KVCache(NamedTuple):
    """Keys and values [B, K, S, H]; in int8 with one scale for each vector, fp32 [B, K, S]."""

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


def empty_cache(B: int, K: int, S: int, H: int, dtype: jnp.dtype) -> KVCache:
    """Zeroed keys and values of one layer; `cache_slots` tells the S that sequences need."""

    def zeros() -> jax.Array:
        return jnp.zeros((B, K, S, H), dtype)

    if jnp.dtype(dtype) != jnp.int8:
        return KVCache(zeros(), zeros())
    scale = jnp.ones((B, K, S), jnp.float32)
    return KVCache(zeros(), zeros(), scale, jnp.ones_like(scale))


def cache_slots(tokens: int, width: int = 1) -> int:
    """The slots to give sequences of `tokens`, in whole blocks.

    `width` is the most tokens that a call gives rows of which some are idle, or whose last tokens
    may lie beyond their sequence's end.
    """
    return -(-(tokens + width) // BLOCK) * BLOCK


def write_cache(
    cache: KVCache, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array
) -> KVCache:
    """The cache with new keys and values at consecutive positions of each row."""
    first_B, T = positions_BT[:, 0], positions_BT.shape[1]
    start_B = jnp.where(first_B < 0, cache.k.shape[2] - T, first_B)
    k, k_scale = _stored(k_BTKH.transpose(0, 2, 1, 3), cache.k.dtype)
    v, v_scale = _stored(v_BTKH.transpose(0, 2, 1, 3), cache.v.dtype)
    return KVCache(
        _write(cache.k, k, start_B),
        _write(cache.v, v, start_B),
        None if cache.k_scale is None else _write(cache.k_scale, k_scale, start_B),
        None if cache.v_scale is None else _write(cache.v_scale, v_scale, start_B),
    )


def _stored(x_BKTH: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """Keys or values as the cache keeps them: themselves, or int8 steps and the step's size."""
    if dtype != jnp.int8:
        return x_BKTH.astype(dtype), None
    x = x_BKTH.astype(jnp.float32)
    scale_BKT = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-20) / 127
    return jnp.round(x / scale_BKT[..., None]).astype(jnp.int8), scale_BKT


def _write(old: jax.Array, new: Any, start_B: jax.Array) -> jax.Array:
    """`new` [B, K, T, …] into `old` [B, K, S, …] from slot `start_B` of each row on."""
    rest = (0,) * (old.ndim - 3)
    if old.shape[0] > _UNROLLED_ROWS:
        return jax.vmap(lambda o, n, at: jax.lax.dynamic_update_slice(o, n, (0, at, *rest)))(
            old, new, start_B
        )
    for b in range(old.shape[0]):
        old = jax.lax.dynamic_update_slice(old, new[b : b + 1], (b, 0, start_B[b], *rest))
    return old


def attend_cache(
    q_BTNH: jax.Array, cache: KVCache, positions_BT: jax.Array, window: int | None
) -> jax.Array:
    """Attention of new queries over the cache that their own keys are already in.

    Args:
        q_BTNH: queries.
        cache: of one layer.
        positions_BT: of the queries; -1 in rows whose result nobody reads.
        window: a token sees itself and the `window - 1` tokens before it; None sees all.

    Returns:
        [B, T, N, H] in the dtype of `q_BTNH`.
    """
    B, T, N, H = q_BTNH.shape
    K, S = cache.k.shape[1:3]
    on_cpu = parallel.platform(q_BTNH) == "cpu"
    # XLA on CPU has no fast product of few rows in bf16; blocks are small enough to widen.
    dtype = jnp.float32 if on_cpu or cache.k_scale is not None else cache.k.dtype
    block = BLOCK if on_cpu or S % _BLOCK_ACCELERATOR else _BLOCK_ACCELERATOR
    q_BKGTH = (q_BTNH.astype(jnp.float32) * H**-0.5).reshape(B, T, K, N // K, H)
    q_BKQH = q_BKGTH.transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H).astype(dtype)
    slot_BQ = jnp.broadcast_to(positions_BT[:, None], (B, N // K, T)).reshape(B, -1)

    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def part(x: jax.Array | None, i: jax.Array) -> jax.Array:
        assert x is not None
        return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=2)

    def one(i: jax.Array, sums: tuple[jax.Array, jax.Array, jax.Array]):
        top_BKQ, mass_BKQ, out_BKQH = sums
        score_BKQS = product("bkqh,bksh->bkqs", q_BKQH, part(cache.k, i).astype(dtype))
        if cache.k_scale is not None:
            score_BKQS *= part(cache.k_scale, i)[:, :, None]
        slot_11S = (i * block + jnp.arange(block))[None, None]
        seen_BQS = slot_11S <= slot_BQ[..., None]
        if window is not None:
            seen_BQS &= slot_11S > slot_BQ[..., None] - window
        score_BKQS = jnp.where(seen_BQS[:, None], score_BKQS, _HIDDEN)
        new_top_BKQ = jnp.maximum(top_BKQ, jnp.max(score_BKQS, axis=-1))
        shrink_BKQ = jnp.exp(top_BKQ - new_top_BKQ)
        weight_BKQS = jnp.exp(score_BKQS - new_top_BKQ[..., None])
        mass_BKQ = mass_BKQ * shrink_BKQ + jnp.sum(weight_BKQS, axis=-1)
        if cache.v_scale is not None:
            weight_BKQS *= part(cache.v_scale, i)[:, :, None]
        v_BKSH = part(cache.v, i).astype(dtype)
        new_BKQH = product("bkqs,bksh->bkqh", weight_BKQS.astype(dtype), v_BKSH)
        return new_top_BKQ, mass_BKQ, out_BKQH * shrink_BKQ[..., None] + new_BKQH

    zero_BKQ = jnp.zeros(q_BKQH.shape[:3], jnp.float32)
    start = (zero_BKQ + _HIDDEN, zero_BKQ, jnp.zeros(q_BKQH.shape, jnp.float32))
    blocks = jnp.maximum(jnp.max(positions_BT), 0) // block + 1
    _, mass_BKQ, out_BKQH = jax.lax.fori_loop(0, blocks, one, start)
    out_BKGTH = (out_BKQH / mass_BKQ[..., None]).reshape(B, K, N // K, T, H)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)
