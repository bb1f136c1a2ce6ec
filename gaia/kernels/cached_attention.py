"""Keys and values of earlier tokens, and attention of new queries over them (decoding).

A row of the cache belongs to one sequence, and position p lies in slot p. Slots lie in chunks, each
an array of its own: 256, 256, 512, 1,024, …, the next as long as all before it. Attention takes as
many whole chunks as the furthest row has come to. So little more than twice a row is read, and
nothing copied: out of a part of one array XLA on CPU makes another array before it multiplies,
which took three times as long as the products (gchat/EXPERIMENTS.md, "decoding").

The number of chunks does not show in a row's result: one that it does not see leaves its sums as
they are, to the last bit. So a row's result does not depend on the rows beside it.

Shapes: B rows, T new tokens, S slots, C slots of a chunk, K kv heads, N query heads, G = N / K,
Q = G * T queries of a kv head, H head dim.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaia import parallel
from gaia.kernels import cpu_rows

BLOCK = 128
"""A cache has a multiple of so many slots."""
_FIRST_CHUNK = 256
_UNROLLED_ROWS = 8  # rows written one by one; XLA's scatter is slower than that on CPU
_LOOP_TOKENS = 8  # of each row: more are a piece of a prompt, which XLA's products are made for
_HIDDEN = -1e30  # finite, so that a row that sees nothing yet gives no NaN

Chunks = tuple[jax.Array, ...]


class KVCache(NamedTuple):
    """Keys and values, [B, K, C, H] a chunk; in int8 one scale for each vector, fp32 [B, K, C].

    The scales are empty in other dtypes.
    """

    k: Chunks
    v: Chunks
    k_scale: Chunks = ()
    v_scale: Chunks = ()
    row: jax.Array | None = None
    """The one row that new tokens belong to, int32; None where each row gets its own."""

    def own(self, chunk: jax.Array) -> jax.Array:
        """The rows of a chunk that new tokens belong to: themselves, or a copy of the one."""
        if self.row is None:
            return chunk
        return jax.lax.dynamic_slice_in_dim(chunk, self.row, 1, axis=0)


def empty_cache(B: int, K: int, S: int, H: int, dtype: jnp.dtype) -> KVCache:
    """Zeroed keys and values of one layer, for sequences of up to S tokens (see `cache_slots`)."""
    sizes = _chunks(S)

    def zeros() -> Chunks:
        return tuple(jnp.zeros((B, K, C, H), dtype) for C in sizes)

    if jnp.dtype(dtype) != jnp.int8:
        return KVCache(zeros(), zeros())
    k_scale, v_scale = (tuple(jnp.ones((B, K, C), jnp.float32) for C in sizes) for _ in range(2))
    return KVCache(zeros(), zeros(), k_scale, v_scale)


def cache_slots(tokens: int) -> int:
    """The slots to give sequences of `tokens`."""
    return -(-tokens // BLOCK) * BLOCK


def _chunks(S: int) -> list[int]:
    """Slots of each chunk."""
    sizes = [min(S, _FIRST_CHUNK)]
    while (sofar := sum(sizes)) < S:
        sizes.append(min(sofar, S - sofar))
    return sizes


def _firsts(chunks: Chunks) -> list[int]:
    """The first slot of each chunk."""
    sizes = [chunk.shape[2] for chunk in chunks]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def write_cache(
    cache: KVCache, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array
) -> KVCache:
    """The cache with new keys and values at consecutive positions of each row.

    Rows that begin at position -1 write nothing, nor does what lies beyond the last slot.
    """
    first_B, T = positions_BT[:, 0], positions_BT.shape[1]
    first_B = jnp.where(first_B < 0, -T, first_B)
    k, k_scale = _stored(k_BTKH.transpose(0, 2, 1, 3), cache.k[0].dtype)
    v, v_scale = _stored(v_BTKH.transpose(0, 2, 1, 3), cache.v[0].dtype)
    write = partial(_write, first_B=first_B, row=cache.row)
    return KVCache(
        write(cache.k, k),
        write(cache.v, v),
        () if k_scale is None else write(cache.k_scale, k_scale),
        () if v_scale is None else write(cache.v_scale, v_scale),
        cache.row,
    )


def _stored(x_BKTH: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """Keys or values as the cache keeps them: themselves, or int8 steps and the step's size."""
    if dtype != jnp.int8:
        return x_BKTH.astype(dtype), None
    x = x_BKTH.astype(jnp.float32)
    scale_BKT = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-20) / 127
    return jnp.round(x / scale_BKT[..., None]).astype(jnp.int8), scale_BKT


def _write(chunks: Chunks, new: jax.Array, first_B: jax.Array, row: jax.Array | None) -> Chunks:
    """`new` [B, K, T, …] into chunks [B, K, C, …] from slot `first_B` of each row, or of one."""
    B = new.shape[0]
    written = []
    for chunk, first in zip(chunks, _firsts(chunks), strict=True):
        at_B = first_B - first
        if row is not None:
            chunk = _write_row(chunk, new, at_B[0], row)
        elif B > _UNROLLED_ROWS:
            each = jax.vmap(lambda c, n, at: _write_row(c[None], n[None], at, 0)[0])
            chunk = each(chunk, new, at_B)
        else:
            for b in range(B):
                chunk = _write_row(chunk, new[b : b + 1], at_B[b], b)
        written.append(chunk)
    return tuple(written)


def _write_row(chunk: jax.Array, new: jax.Array, at: jax.Array, b: int | jax.Array) -> jax.Array:
    """Those of `new` [1, K, T, …] that fall into row `b` of the chunk, when the first is at `at`.

    What lies in their neighbourhood is read and written again: the chunk is changed in place, at
    the cost of the tokens and not of the chunk.
    """
    C, T = chunk.shape[2], new.shape[2]
    n, rest = min(T, C), chunk.ndim - 3
    start = jnp.clip(at, 0, C - n)
    place = (b, 0, start, *(0,) * rest)
    old = jax.lax.dynamic_slice(chunk, place, (1, new.shape[1], n, *chunk.shape[3:]))
    shift = start - at  # the first slot takes this token
    if T > 1:
        around = jnp.pad(new, ((0, 0), (0, 0), (n, n), *((0, 0),) * rest))
        new = jax.lax.dynamic_slice_in_dim(around, jnp.clip(shift + n, 0, T + n), n, axis=2)
    token_n = shift + jnp.arange(n)
    inside_n = ((token_n >= 0) & (token_n < T)).reshape(1, 1, n, *(1,) * rest)
    return jax.lax.dynamic_update_slice(chunk, jnp.where(inside_n, new, old), place)


def write_and_attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    cache: KVCache,
    positions_BT: jax.Array,
    window: int | None,
) -> tuple[jax.Array, KVCache]:
    """`write_cache`, then `attend_cache`: output [B, T, N, H] and the new cache.

    A few tokens of each row on CPU take one call of a compiled loop for both.
    """
    few = q_BTNH.shape[1] <= _LOOP_TOKENS and cache.k[0].dtype in (jnp.float32, jnp.int8)
    if few and cache.row is None and parallel.platform(q_BTNH) == "cpu" and cpu_rows.available():
        return _in_one_call(q_BTNH, k_BTKH, v_BTKH, cache, positions_BT, window)
    cache = write_cache(cache, k_BTKH, v_BTKH, positions_BT)
    return attend_cache(q_BTNH, cache, positions_BT, window), cache


def _in_one_call(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    cache: KVCache,
    positions_BT: jax.Array,
    window: int | None,
) -> tuple[jax.Array, KVCache]:
    from gaia.kernels import cpu_attention, cpu_calls  # here, for they need numba

    (B, T, N, H), K, n = q_BTNH.shape, k_BTKH.shape[2], len(cache.k)
    S = sum(chunk.shape[2] for chunk in cache.k)
    number = cpu_attention.NUMBERS[cache.k[0].dtype.name]
    arrays = [*cache.k, *cache.v, *cache.k_scale, *cache.v_scale]
    new = [number, B * K, n, window or 0], q_BTNH, k_BTKH, v_BTKH, positions_BT
    dtypes = jnp.int32, jnp.float32, jnp.float32, jnp.float32, jnp.int32
    operands = [jnp.asarray(a, dtype) for a, dtype in zip(new, dtypes, strict=True)]
    scratch = jax.ShapeDtypeStruct((B, K, N // K * T * (H + S)), jnp.float32)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (operands[1], scratch, *arrays)]
    aliases = {len(operands) + i: 2 + i for i in range(len(arrays))}
    call = jax.ffi.ffi_call(cpu_calls.TARGET, shapes, input_output_aliases=aliases)
    out_BTNH, _, *arrays = call(*operands, *arrays)
    parts = (tuple(arrays[i : i + n]) for i in range(0, len(arrays), n))
    changed = cache._replace(**dict(zip(KVCache._fields, parts, strict=False)))
    return out_BTNH.astype(q_BTNH.dtype), changed


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
    K = cache.k[0].shape[1]
    on_cpu = parallel.platform(q_BTNH) == "cpu"
    # XLA on CPU has no fast product of few rows in bf16.
    dtype = jnp.float32 if on_cpu or cache.k_scale else cache.k[0].dtype
    q_BKGTH = (q_BTNH.astype(jnp.float32) * H**-0.5).reshape(B, T, K, N // K, H)
    q_BKQH = q_BKGTH.transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H).astype(dtype)
    slot_BQ = jnp.broadcast_to(positions_BT[:, None], (B, N // K, T)).reshape(B, -1)
    zero_BKQ = jnp.zeros(q_BKQH.shape[:3], jnp.float32)
    sums = _Sums(zero_BKQ + _HIDDEN, zero_BKQ, jnp.zeros(q_BKQH.shape, jnp.float32))
    firsts, furthest = _firsts(cache.k), jnp.max(positions_BT)

    def further(j: int, sums: _Sums) -> _Sums:
        """The sums with the chunks from the j-th on, as far as any row has come."""
        sums = _attend(q_BKQH, slot_BQ, cache, j, window, sums)
        if j + 1 == len(firsts):
            return sums
        reached = furthest >= firsts[j + 1]
        return jax.lax.cond(reached, partial(further, j + 1), lambda sums: sums, sums)

    _, mass_BKQ, out_BKQH = further(0, sums)
    out_BKGTH = (out_BKQH / mass_BKQ[..., None]).reshape(B, K, N // K, T, H)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


class _Sums(NamedTuple):
    """Attention so far, fp32: highest score, sum of weights relative to it, weighted values."""

    top_BKQ: jax.Array
    mass_BKQ: jax.Array
    out_BKQH: jax.Array


def _attend(
    q_BKQH: jax.Array, slot_BQ: jax.Array, cache: KVCache, j: int, window: int | None, sums: _Sums
) -> _Sums:
    """The sums with chunk `j`."""
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    dtype, first = q_BKQH.dtype, _firsts(cache.k)[j]
    score_BKQC = product("bkqh,bkch->bkqc", q_BKQH, cache.own(cache.k[j]).astype(dtype))
    if cache.k_scale:
        score_BKQC *= cache.own(cache.k_scale[j])[:, :, None]
    slot_11C = (first + jnp.arange(score_BKQC.shape[-1]))[None, None]
    seen_BQC = slot_11C <= slot_BQ[..., None]
    if window is not None:
        seen_BQC &= slot_11C > slot_BQ[..., None] - window
    score_BKQC = jnp.where(seen_BQC[:, None], score_BKQC, _HIDDEN)
    top_BKQ = jnp.maximum(sums.top_BKQ, jnp.max(score_BKQC, axis=-1))
    shrink_BKQ = jnp.exp(sums.top_BKQ - top_BKQ)
    weight_BKQC = jnp.exp(score_BKQC - top_BKQ[..., None])
    mass_BKQ = sums.mass_BKQ * shrink_BKQ + jnp.sum(weight_BKQC, axis=-1)
    if cache.v_scale:
        weight_BKQC *= cache.own(cache.v_scale[j])[:, :, None]
    v_BKCH = cache.own(cache.v[j]).astype(dtype)
    new_BKQH = product("bkqc,bkch->bkqh", weight_BKQC.astype(dtype), v_BKCH)
    return _Sums(top_BKQ, mass_BKQ, sums.out_BKQH * shrink_BKQ[..., None] + new_BKQH)
