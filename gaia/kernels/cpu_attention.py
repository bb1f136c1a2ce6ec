"""The loop of a decoding step's attention on CPU, compiled by numba for the machine at hand.

XLA takes some thirty small programs for a layer's attention and copies whole chunks of keys and
values on the way, for they are changed and read in one step. Here one call writes the new keys and
values where they belong and attends over the slots that a row has, and over no others. A part of
the work is some rows' kv heads; each is computed alone, so that none depends on the others.

Operands: (which, q [B, T, N, H], k [B, T, K, H], v [B, T, K, H], positions [B, T]), then the chunks
[B, K, C, H] of the keys, those of the values and, in int8, their scales [B, K, C] likewise.
Results: out [B, T, N, H], a scratch [B, K, Q * (H + S)], and the chunks again, in the same memory.
`which` is (number of the loop, parts, chunks, window or 0). Shapes as in `cached_attention`.

Needs numba.
"""

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types  # pyright: ignore[reportPrivateImportUsage]

from gaia.kernels import cpu_loops
from gaia.kernels.cpu_calls import data, dim, known, operands, parts_of, pointer, results, seen
from gaia.kernels.cpu_loops import product

_FIRST_CHUNK, _MOVED = 5, 3  # operand i is result i - _MOVED
_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_C0, _C1, _C2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_C3, _C4, _C5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_ONE, _HALF, _LEAST, _STEPS = _F(1), _F(0.5), _F(-87), _F(127)


@njit(error_model="numpy")
def _exp(x):
    """e^x in fp32, of x <= 0 (Cephes expf): LLVM vectorises it, and libm's it does not."""
    x = max(x, _LEAST)
    n = np.floor(x * _LOG2E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _C5
    return (p * r * r + r + _ONE) * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(
        np.float32
    )


@njit
def _floats(buffers, i, shape):
    return carray(pointer(data(buffers, i)), shape, np.float32)


@njit
def _head(job, i, head, sample):
    """Vectors [C, H] of a row's kv head in chunk operand i, in the dtype of `sample`."""
    C, H = dim(operands(job), i, 2), dim(operands(job), i, 3)
    address = data(results(job), i - _MOVED) + head * C * H * sample.itemsize
    return carray(pointer(address), (C, H), sample.dtype)


@njit
def _scales(job, i, head, chunks, sample):
    """Scales [C] of those vectors; none in fp32."""
    if sample.itemsize > 1:
        return carray(pointer(data(results(job), 0)), (0,), np.float32)
    C = dim(operands(job), i, 2)
    address = data(results(job), i + 2 * chunks - _MOVED) + head * C * 4
    return carray(pointer(address), (C,), np.float32)


@njit(error_model="numpy")
def _write(x_H, slot, vectors, scales):
    """A new vector in its slot: itself, or int8 steps and the step's size."""
    if not len(scales):
        for h in range(len(x_H)):
            vectors[slot, h] = x_H[h]
        return
    top = _F(0)
    for h in range(len(x_H)):
        top = max(top, abs(x_H[h]))
    step = max(top, _F(1e-20)) / _STEPS
    for h in range(len(x_H)):
        vectors[slot, h] = np.rint(x_H[h] / step)
    scales[slot] = step


@njit
def _write_new(job, new, chunks_at, b, k, first, chunks, sample):
    """The new vectors of operand `new` from slot `first` on; none beyond the last slot."""
    o = operands(job)
    T, K, H = dim(o, new, 1), dim(o, new, 2), dim(o, new, 3)
    x = _floats(o, new, (dim(o, new, 0), T, K, H))
    start = 0
    for j in range(chunks_at, chunks_at + chunks):
        vectors = _head(job, j, b * K + k, sample)
        scales = _scales(job, j, b * K + k, chunks, sample)
        for t in range(T):
            slot = first + t - start
            if 0 <= slot < len(vectors):
                _write(x[b, t, k], slot, vectors, scales)
        start += len(vectors)


@njit(fastmath=True, error_model="numpy")
def _weights_of(scores, begin, end):
    """Scores from `begin` to `end` become e^(score - highest); returns their sum."""
    top = scores[begin]
    for s in range(begin, end):
        top = max(top, scores[s])
    for s in range(begin, end):
        scores[s] = _exp(scores[s] - top)
    mass = _F(0)
    for s in range(begin, end):
        mass += scores[s]
    return mass


@njit(fastmath=True, error_model="numpy")
def _add_values(weights, values, scales, begin, end, sums):
    """Adds `values` [C, H] of slots `begin` to `end`, times their weights, to `sums` [H]."""
    if len(scales):
        for s in range(begin, end):
            weights[s] *= scales[s]
    whole = end - (end - begin) % 4
    for s in range(begin, whole, 4):
        p, q, r, t = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        a, b, c, d = values[s], values[s + 1], values[s + 2], values[s + 3]
        for h in range(len(sums)):
            sums[h] += p * _F(a[h]) + q * _F(b[h]) + r * _F(c[h]) + t * _F(d[h])
    for s in range(whole, end):
        p, a = weights[s], values[s]
        for h in range(len(sums)):
            sums[h] += p * _F(a[h])


@njit
def _attend(job, b, k, first, sample):
    """Attention of one row's queries of one kv head, T of them from position `first` on."""
    o, r = operands(job), results(job)
    which = carray(pointer(data(o, 0)), 4, np.int32)
    chunks, window = which[2], which[3]
    B, T, N, H, K = dim(o, 1, 0), dim(o, 1, 1), dim(o, 1, 2), dim(o, 1, 3), dim(o, 2, 2)
    G, head = N // K, b * K + k
    q, out = _floats(o, 1, (B, T, N, H)), _floats(r, 0, (B, T, N, H))
    S = 0
    for j in range(_FIRST_CHUNK, _FIRST_CHUNK + chunks):
        S += dim(o, j, 2)
    scratch = data(r, 1) + head * G * T * (H + S) * 4
    queries = carray(pointer(scratch), (G * T, H), np.float32)
    scores_at = scratch + G * T * H * 4
    scale = _ONE / np.sqrt(_F(H))
    for t in range(T):
        for g in range(G):
            for h in range(H):
                queries[t * G + g, h] = q[b, t, k * G + g, h] * scale
                out[b, t, k * G + g, h] = 0
    begin = max(0, first + 1 - window) if window else 0
    start, end = 0, min(first + T, S)
    for j in range(_FIRST_CHUNK, _FIRST_CHUNK + chunks):
        keys, scales = _head(job, j, head, sample), _scales(job, j, head, chunks, sample)
        here = carray(pointer(scores_at + start * 4), (G * T, S), np.float32)
        if begin < start + len(keys) and start < end:
            columns = max(0, begin - start), min(len(keys), end - start)
            product(queries, keys, scales, here, columns[0], columns[1])
        start += len(keys)
    scores = carray(pointer(scores_at), (G * T, S), np.float32)
    for t in range(T):
        end = min(first + t + 1, S)
        begin = max(0, first + t + 1 - window) if window else 0
        for g in range(G):
            weights, sums = scores[t * G + g], out[b, t, k * G + g]
            mass = _weights_of(weights, begin, end)
            start = 0
            for j in range(_FIRST_CHUNK + chunks, _FIRST_CHUNK + 2 * chunks):
                values, scales = _head(job, j, head, sample), _scales(job, j, head, chunks, sample)
                a, z = max(0, begin - start), min(len(values), end - start)
                if a < z:
                    _add_values(weights[start : start + z], values, scales, a, z, sums)
                start += len(values)
            for h in range(H):
                sums[h] /= mass


@njit
def _part(job, part, sample):
    """Some rows' kv heads: what is new is written, then attended with what is there."""
    o = operands(job)
    B, T, H, K = dim(o, 1, 0), dim(o, 1, 1), dim(o, 1, 3), dim(o, 2, 2)
    chunks = carray(pointer(data(o, 0)), 4, np.int32)[2]
    positions = carray(pointer(data(o, 4)), (B, T), np.int32)
    each = -(-B * K // parts_of(job))
    for head in range(part * each, min(B * K, part * each + each)):
        b, k = head // K, head % K
        first = positions[b, 0]
        if first >= 0:
            _write_new(job, 2, _FIRST_CHUNK, b, k, first, chunks, sample)
            _write_new(job, 3, _FIRST_CHUNK + chunks, b, k, first, chunks, sample)
            _attend(job, b, k, first, sample)
        else:
            out = _floats(results(job), 0, (B, T, dim(o, 1, 2), H))
            out[b, :, k * (dim(o, 1, 2) // K) : (k + 1) * (dim(o, 1, 2) // K)] = 0


_LOOP = types.void(types.int64, types.int64)


def _loop(dtype: type, sources: int) -> Any:
    """The compiled loop for a cache of a dtype; `sources` is what numba's cache is to look at."""

    @cfunc(_LOOP, cache=True)
    def loop(job, part):
        if sources >= 0:
            _part(job, part, carray(pointer(job), 1, dtype))

    return loop


_DTYPES = {"float32": np.float32, "int8": np.int8}
_SOURCES = seen(cpu_loops.__file__)
NUMBERS: dict[str, int] = dict(
    zip(_DTYPES, known([_loop(dtype, _SOURCES) for dtype in _DTYPES.values()]), strict=True)
)
"""Number of the loop for each dtype of the cache."""
