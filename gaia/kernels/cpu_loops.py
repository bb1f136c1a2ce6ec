"""The loops behind `gaia.kernels.cpu_rows`, compiled by numba for the machine at hand.

Columns of the matrix lie one after another, so a thread reads its part of them as one stream, which
is what the processor fetches ahead for. A tile is a few rows times a few columns: their sums stay
in registers while the tile's inputs go by, each read once for all of them. The tile is written in
LLVM's own terms, for its vectoriser does not see that on all types.

A sum's order depends on the machine's vectors alone: lane by lane, then the lanes by halves.

The machine code is kept in `__pycache__`. Needs numba.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

from gaia.kernels.cpu_calls import data, dim, known, operands, parts_of, pointer, results, seen

_WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
_LANES = 16 if _WIDE else 8  # of a vector of fp32; two of NEON's make one of 8
_TILES = ((8, 3), (4, 4), (2, 4), (1, 4)) if _WIDE else ((4, 2), (2, 4), (1, 4))  # rows, columns

_FLOAT, _INT32, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, _LANES)
_STORED = {types.float32: _FLOAT, types.uint16: ir.IntType(16), types.int8: ir.IntType(8)}
_FUSED = ("contract",)  # multiply and add in one instruction, where there is one


def _loaded(builder: Any, array: Any, k: Any, kind: Any, lanes: int) -> Any:
    """Elements k to k + lanes behind a pointer, as fp32; a vector, or one number."""
    place = builder.gep(array, [k])
    if lanes == 1:
        value = builder.load(place)
    else:
        value = builder.load(builder.bitcast(place, ir.VectorType(kind, lanes).as_pointer()))
    value.align = 4 if kind == _FLOAT else kind.width // 8
    if kind == _FLOAT:
        return value
    one_or_many = (lambda t: t) if lanes == 1 else (lambda t: ir.VectorType(t, lanes))
    if kind.width == 8:
        return builder.sitofp(value, one_or_many(_FLOAT))
    # bf16 is the upper half of fp32.
    wide = one_or_many(_INT32)
    half = ir.Constant(wide, 16 if lanes == 1 else [16] * lanes)
    return builder.bitcast(builder.shl(builder.zext(value, wide), half), one_or_many(_FLOAT))


def _lanes_added(builder: Any, sums: list[Any]) -> list[Any]:
    """The lanes of each vector in one number, of up to `_LANES` vectors.

    Halves are added to halves, of two vectors in one instruction: what is added to what is the same
    for each vector, wherever it stands.
    """
    count, lanes, zero = len(sums), _LANES, ir.Constant(_VECTOR, [0.0] * _LANES)
    sums = [*sums, *[zero] * (_LANES - count)]
    while lanes > 1:  # each vector holds _LANES / lanes groups, each of them of `lanes` lanes
        firsts = range(0, 2 * _LANES, lanes)
        half = lanes // 2
        low, high = ([at + i for at in firsts for i in range(o, o + half)] for o in (0, half))
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [
            builder.fadd(*(builder.shuffle_vector(one, other, _places(of)) for of in (low, high)))
            for one, other in pairs
        ]
        lanes = half
    (together,) = sums
    return [builder.extract_element(together, ir.Constant(_INT32, i)) for i in range(count)]


def _places(lanes: list[int]) -> Any:
    """Lanes of two vectors, as a shuffle takes them."""
    return ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)


class _Tile:
    """Code of a tile: rows n and following of x [N, D], columns f and following of w [F, D]."""

    def __init__(self, builder: Any, x: list, w: list, kind: Any) -> None:
        self.builder, self.x, self.w, self.kind = builder, x, w, kind

    def add_up(self, sums: list[list[Any]], begin: Any, end: Any, lanes: int) -> None:
        """Adds the products of inputs `begin` to `end`, `lanes` at a time, to variables."""
        builder = self.builder
        step = ir.Constant(_WORD, lanes)
        with cgutils.for_range_slice(builder, begin, end, step, _WORD) as (k, _):
            weights = [_loaded(builder, column, k, self.kind, lanes) for column in self.w]
            for row, row_sums in zip(self.x, sums, strict=True):
                inputs = _loaded(builder, row, k, _FLOAT, lanes)
                for weight, variable in zip(weights, row_sums, strict=True):
                    product = builder.fmul(inputs, weight, flags=_FUSED)
                    total = builder.fadd(product, builder.load(variable), flags=_FUSED)
                    builder.store(total, variable)


def _literal(generator: Callable) -> Any:
    """A function of compiled code that is told the values of constants."""
    return intrinsic(prefer_literal=True)(generator)


@_literal
def _tile(typing_context, x, w, y, n, f, rows, columns):
    """Compiled: y[n + i, f + j] = x[n + i] . w[f + j], of arrays [N, D], [F, D], [N, F]."""
    kind = _STORED[w.dtype]
    R, C = rows.literal_value, columns.literal_value

    def generate(context, builder, signature, arguments):
        x_array, w_array, y_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        D = cgutils.unpack_tuple(builder, w_array.shape, 2)[1]
        F = cgutils.unpack_tuple(builder, y_array.shape, 2)[1]
        n_r = [builder.add(arguments[3], ir.Constant(_WORD, r)) for r in range(R)]
        f_c = [builder.add(arguments[4], ir.Constant(_WORD, c)) for c in range(C)]
        tile = _Tile(
            builder,
            [builder.gep(x_array.data, [builder.mul(row, D)]) for row in n_r],
            [builder.gep(w_array.data, [builder.mul(column, D)]) for column in f_c],
            kind,
        )
        zero = ir.Constant(_VECTOR, [0.0] * _LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in f_c] for _ in n_r]
        whole = builder.sub(D, builder.urem(D, ir.Constant(_WORD, _LANES)))
        tile.add_up(sums, ir.Constant(_WORD, 0), whole, _LANES)
        every = [builder.load(variable) for row in sums for variable in row]
        totals = []
        for at in range(0, len(every), _LANES):
            totals += _lanes_added(builder, every[at : at + _LANES])
        variables = [cgutils.alloca_once_value(builder, total) for total in totals]
        sums = [variables[r * C : r * C + C] for r in range(R)]
        tile.add_up(sums, whole, D, 1)
        for row, row_sums in zip(n_r, sums, strict=True):
            for column, variable in zip(f_c, row_sums, strict=True):
                place = builder.gep(y_array.data, [builder.add(builder.mul(row, F), column)])
                builder.store(builder.load(variable), place)
        return context.get_dummy_value()

    return types.void(x, w, y, types.int64, types.int64, rows, columns), generate


_STRIP = 12  # columns that all rows are multiplied with before the next ones are read


@njit
def _no_rows(x, w, y, n, begin, end):
    return


def _from_row(R: int, C: int, rest: Any) -> Any:
    """Compiled: rows n and following, R at a time, times columns `begin` to `end`; then `rest`."""

    @njit
    def product(x, w, y, n, begin, end):
        whole = end - (end - begin) % C
        while x.shape[0] - n >= R:
            for f in range(begin, whole, C):
                _tile(x, w, y, n, f, R, C)
            for f in range(whole, end):
                _tile(x, w, y, n, f, R, 1)
            n += R
        rest(x, w, y, n, begin, end)

    return product


_all_rows = _no_rows
for _rows, _columns in reversed(_TILES):
    _all_rows = _from_row(_rows, _columns, _all_rows)


@njit
def product(x, w, scale, y, begin, end):
    """Compiled: columns `begin` to `end` of y [N, F] = x [N, D] @ w [F, D].T times `scale` [F].

    Without scales (length 0) times 1. Only those columns of w, scale and y need be there.
    """
    for f in range(begin, end, _STRIP):
        _all_rows(x, w, y, 0, f, min(end, f + _STRIP))
    if len(scale):
        for n in range(x.shape[0]):
            for f in range(begin, end):
                y[n, f] *= scale[f]


@njit
def _part(job, part, w):
    """One part of the columns of the product with operands (which, x, w, scale)."""
    o, (F, D) = operands(job), w.shape
    N, width = dim(o, 1, 0), -(-F // (parts_of(job) * _STRIP)) * _STRIP
    x = carray(pointer(data(o, 1)), (N, D), np.float32)
    scale = carray(pointer(data(o, 3)), (dim(o, 3, 0),), np.float32)
    y = carray(pointer(data(results(job), 0)), (N, F), np.float32)
    product(x, w, scale, y, part * width, min(F, part * width + width))


@njit
def _shape(job):
    return dim(operands(job), 2, 0), dim(operands(job), 2, 1)


@njit
def _weights(job):
    return pointer(data(operands(job), 2))


_LOOP = types.void(types.int64, types.int64)


def _loop(dtype: type, sources: int) -> Any:
    """The compiled loop for weights of a dtype; `sources` is what numba's cache is to look at."""

    @cfunc(_LOOP, cache=True)
    def loop(job, part):
        if sources >= 0:
            _part(job, part, carray(_weights(job), _shape(job), dtype))

    return loop


_DTYPES = {"float32": np.float32, "uint16": np.uint16, "int8": np.int8}
NUMBERS: dict[str, int] = dict(
    zip(_DTYPES, known([_loop(dtype, seen()) for dtype in _DTYPES.values()]), strict=True)
)
"""Number of the loop for each dtype of the weights; uint16 holds the bits of bf16."""
