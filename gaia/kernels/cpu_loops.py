"""The loops behind `gaia.kernels.cpu_rows`, compiled by numba for the machine at hand.

Written so that LLVM vectorises them: over slices, because numba must first check any other index
for being negative; four weights of a column at a time, for fewer loads and stores of the sums. The
machine code is kept in `__pycache__`. Needs numba.
"""

import numpy as np
from numba import carray, cfunc, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import overload

from gaia.kernels.cpu_calls import data, dim, known, operands, parts_of, pointer, results

_BLOCK = 256  # columns at a time: their sums stay in the first-level cache


def _value(w):
    """A weight as fp32."""
    raise NotImplementedError  # compiled code only


@overload(_value, inline="always")
def _value_compiled(w):
    if w == types.uint16:  # bf16, the upper half of fp32
        return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)
    return lambda w: np.float32(w)


@njit(fastmath=True, error_model="numpy")
def _product(x, w, scale, y, begin, end):
    """Columns `begin` to `end` of y [N, F] = x [N, D] @ w [D, F], times `scale` [F] or 1."""
    N, D = x.shape
    for f in range(begin, end, _BLOCK):
        m = min(_BLOCK, end - f)
        here = slice(f, f + m)
        for n in range(N):
            y[n, here] = 0
        for k in range(0, D - 3, 4):
            a, b, c, d = w[k, here], w[k + 1, here], w[k + 2, here], w[k + 3, here]
            for n in range(N):
                p, q, r, s = x[n, k], x[n, k + 1], x[n, k + 2], x[n, k + 3]
                sums = y[n, here]
                for j in range(m):
                    sums[j] += (
                        p * _value(a[j]) + q * _value(b[j]) + r * _value(c[j]) + s * _value(d[j])
                    )
        for k in range(D - D % 4, D):
            a = w[k, here]
            for n in range(N):
                p, sums = x[n, k], y[n, here]
                for j in range(m):
                    sums[j] += p * _value(a[j])
        if len(scale):
            factors = scale[here]
            for n in range(N):
                sums = y[n, here]
                for j in range(m):
                    sums[j] *= factors[j]


@njit
def _part(job, part, w):
    """One part of the columns of the product with operands (which, x, w, scale)."""
    o, (D, F) = operands(job), w.shape
    N, width = dim(o, 1, 0), -(-F // parts_of(job))
    x = carray(pointer(data(o, 1)), (N, D), np.float32)
    scale = carray(pointer(data(o, 3)), (dim(o, 3, 0),), np.float32)
    y = carray(pointer(data(results(job), 0)), (N, F), np.float32)
    _product(x, w, scale, y, part * width, min(F, part * width + width))


@njit
def _shape(job):
    return dim(operands(job), 2, 0), dim(operands(job), 2, 1)


@njit
def _weights(job):
    return pointer(data(operands(job), 2))


_LOOP = types.void(types.int64, types.int64)


@cfunc(_LOOP, cache=True)
def _fp32_part(job, part):
    _part(job, part, carray(_weights(job), _shape(job), np.float32))


@cfunc(_LOOP, cache=True)
def _bf16_part(job, part):
    _part(job, part, carray(_weights(job), _shape(job), np.uint16))


@cfunc(_LOOP, cache=True)
def _int8_part(job, part):
    _part(job, part, carray(_weights(job), _shape(job), np.int8))


NUMBERS = {"float32": 0, "bfloat16": 1, "int8": 2}
"""Number of the loop for each dtype of the weights; bf16 is handed over as uint16."""

known([_fp32_part, _bf16_part, _int8_part])
