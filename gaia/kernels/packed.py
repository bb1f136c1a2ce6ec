"""Weights as decoding wants them: each layer's apart, in fewer bytes, in the fastest layout.

A decoding step multiplies a few rows by every weight once, so its time is that of reading the
weights. `PackedMatrix` stands where a model has a matrix [in, out] and `PackedTable` where it has
an embedding table: they answer to the operations that layers do with those (`x @ w`, `w.astype`,
`table[ids]`, `table.T`), so that the model's own code runs on them. They have no gradients.

Columns lie one after another: what a core reads of them is one stream, and the rows of an embedding
table are the columns of its head as they are.

Shapes: D in, F out, V rows of a table, L layers.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gaia import parallel
from gaia.kernels import cpu_rows

WeightFormat = Literal["float32", "bfloat16", "int8"]

_CPU_ROWS = 2
"""Fewest rows of a bf16 or int8 product on CPU: XLA lowers a single one to a loop of scalars."""


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
class PackedMatrix:
    """A matrix [D, F], kept as `values` [F, D]: floats, or int8 with a scale for each column [F].

    On CPU bf16 is kept as its bits, uint16: where XLA there meets bf16 it computes in fp32, and
    makes a copy of a whole table to take one row.

    XLA's product with int8 rounds the rows of `x` to int8 too, each by its own largest value, and
    adds up in int32 without error: the form that accelerators have instructions for. A few rows on
    CPU take `gaia.kernels.cpu_rows`, which rounds nothing.
    """

    def __init__(self, values: jax.Array, scale: jax.Array | None = None) -> None:
        self.values, self.scale = values, scale

    def __getitem__(self, index: Any) -> "PackedMatrix":
        """Itself, for `parameter[...]`."""
        assert index is Ellipsis
        return self

    def astype(self, dtype: jnp.dtype) -> "PackedMatrix":
        """Itself: the format was chosen when it was packed."""
        del dtype
        return self

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """[..., D] @ self -> [..., F] in the dtype of `x`."""
        return self.product(x).astype(x.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """[..., D] @ self -> fp32 [..., F]."""
        x_ND = x.reshape(-1, x.shape[-1])
        N = x_ND.shape[0]
        on_cpu = parallel.platform(x) == "cpu"
        if on_cpu and cpu_rows.MAX_ROWS[self.values.dtype.name] >= N and cpu_rows.available():
            y_NF = cpu_rows.rows_product(x_ND.astype(jnp.float32), self.values, self.scale)
            return y_NF.reshape(*x.shape[:-1], -1)
        w_FD = _floats(self.values)
        if on_cpu and w_FD.dtype != jnp.float32:
            x_ND = jnp.pad(x_ND, ((0, max(0, _CPU_ROWS - N)), (0, 0)))
        if self.scale is None:
            y_NF = _times_columns(x_ND.astype(w_FD.dtype), w_FD, jnp.float32)
        else:
            x_ND = x_ND.astype(jnp.float32)
            step_N1 = jnp.maximum(jnp.max(jnp.abs(x_ND), axis=1, keepdims=True), 1e-20) / 127
            rounded_ND = jnp.round(x_ND / step_N1).astype(jnp.int8)
            y_NF = _times_columns(rounded_ND, w_FD, jnp.int32)
            y_NF = y_NF.astype(jnp.float32) * step_N1 * self.scale[None]
        return y_NF[:N].reshape(*x.shape[:-1], -1)


@partial(jax.tree_util.register_dataclass, data_fields=["head"], meta_fields=[])
class PackedTable:
    """An embedding table that is the output head too, kept once, as the head [D, V]."""

    def __init__(self, head: PackedMatrix) -> None:
        self.head = head

    @property
    def T(self) -> PackedMatrix:
        """The head."""
        return self.head

    def __getitem__(self, ids: Any) -> Any:
        """Rows [..., D] of `ids` [...]; itself for `parameter[...]`."""
        if ids is Ellipsis:
            return self
        rows = _floats(jnp.take(self.head.values, ids, axis=0, mode="clip")).astype(jnp.float32)
        return rows if self.head.scale is None else rows * self.head.scale[ids][..., None]


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
class PerLayer:
    """Arrays of L layers that are kept apart, where a model has one stacked [L, ...].

    A static slice of a stacked parameter is a copy on CPU, each time the program runs.
    """

    def __init__(self, layers: tuple[Any, ...]) -> None:
        self.layers = layers

    def __getitem__(self, layer: int) -> Any:
        return self.layers[layer]


def layer_of(params: Any, layer: int) -> Any:
    """The parameters of one layer out of stacked ones, or out of `PerLayer`."""
    return jax.tree.map(lambda a: a[layer], params, is_leaf=lambda a: isinstance(a, PerLayer))


def _floats(values: jax.Array) -> jax.Array:
    """Weights as they are, but bf16 where its bits were kept."""
    if values.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(values, jnp.bfloat16)
    return values


def _times_columns(x_ND: jax.Array, w_FD: jax.Array, dtype: Any) -> jax.Array:
    """[N, D] times the transpose of [F, D], added up in `dtype`."""
    both = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_ND, w_FD, both, preferred_element_type=dtype)


def pack(w_DF: jax.Array, form: WeightFormat) -> PackedMatrix:
    """A matrix in the format; int8 rounds each column by its own largest value."""
    if form != "int8":
        values_FD = w_DF.T.astype(form)
        if form == "bfloat16" and parallel.platform(w_DF) == "cpu":
            values_FD = jax.lax.bitcast_convert_type(values_FD, jnp.uint16)
        return PackedMatrix(values_FD)
    w_FD = w_DF.T.astype(jnp.float32)
    scale_F = jnp.maximum(jnp.max(jnp.abs(w_FD), axis=1), 1e-20) / 127
    return PackedMatrix(jnp.round(w_FD / scale_F[:, None]).astype(jnp.int8), scale_F)


def fp32_product(x: jax.Array, w_DF: Any) -> jax.Array:
    """[..., D] @ [D, F] -> fp32 [..., F], of an array cast to the dtype of `x`, or packed."""
    if isinstance(w_DF, PackedMatrix):
        return w_DF.product(x)
    return jnp.matmul(x, w_DF.astype(x.dtype), preferred_element_type=jnp.float32)
