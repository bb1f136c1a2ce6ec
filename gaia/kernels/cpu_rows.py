"""Few rows times a matrix on CPU: the product that decoding spends its time in.

A decoding step multiplies one row per sequence by every weight once, so it should take as long as
reading the weights. XLA's CPU products do not: bf16 and int8 go through loops of scalars or through
fp32 copies, and thin fp32 products through a general one that packs its operands first. Here the
loops are compiled by numba (LLVM, vectorised for the machine at hand) and called as XLA custom
calls, parts of the columns on each core. Sums are fp32 whatever the weights are.

Every row is summed in the same order whatever the other rows hold. Without numba `available` says
no, and whoever asks takes XLA's product.

    y_NF = rows_product(x_ND, w_FD, scale_F)        # fp32; w fp32, bf16 bits or int8
"""

import ctypes
import importlib
import os
from functools import cache

import jax
import jax.numpy as jnp

MAX_ROWS = {"float32": 32, "uint16": 128, "int8": 32}
"""Limit of the rows by the weights' dtype: with more, XLA's arithmetic hides its detours."""

_LEAST_COLUMNS = 64  # of one thread's part: handing it over costs microseconds


@cache
def available() -> bool:
    """True where numba is installed (extra `cpu`), on 64-bit POSIX systems.

    Takes half a second the first time: numba is imported, and keeps its machine code on disk.
    """
    if os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    try:
        importlib.import_module("gaia.kernels.cpu_loops")
    except (ImportError, RuntimeError):  # no numba; no folder where it may keep code
        return False
    return True


def rows_product(x_ND: jax.Array, w_FD: jax.Array, scale_F: jax.Array | None = None) -> jax.Array:
    """Product on CPU of a few fp32 rows with a matrix whose columns lie one after another.

    Args:
        x_ND: fp32 [N, D], N at most `MAX_ROWS` of the dtype.
        w_FD: fp32, int8, or bf16 as its bits, uint16 [F, D].
        scale_F: fp32 [F], factor of each column; None for 1.

    Returns:
        fp32 [N, F].
    """
    from gaia.kernels import cpu_calls, cpu_loops  # here, for they need numba

    F = w_FD.shape[0]
    which = jnp.array([cpu_loops.NUMBERS[w_FD.dtype.name], F // _LEAST_COLUMNS], jnp.int32)
    scale_F = jnp.zeros((0,), jnp.float32) if scale_F is None else scale_F
    shape = jax.ShapeDtypeStruct((x_ND.shape[0], F), jnp.float32)
    return jax.ffi.ffi_call(cpu_calls.TARGET, shape)(which, x_ND, w_FD, scale_F)
