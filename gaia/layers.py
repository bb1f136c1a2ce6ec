"""The layers of a decoder-only transformer, without the transformer (that is `gchat/model.py`).

Shapes: B batch, T time, S key time, D model, N query heads, K key/value heads, H head dim,
F hidden, V vocabulary. Parameters are fp32; a layer computes in the dtype of its input, except
that norms and RoPE compute in fp32 and softmax is fp32 inside `gaia.kernels.attention`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from gaia import parallel
from gaia.kernels.attention import attention
from gaia.kernels.cached_attention import KVCache, write_and_attend
from gaia.kernels.matmul import PRODUCT, Split, project
from gaia.kernels.rotary import Rope, apply_rope, normalize_and_rotate
from gaia.kernels.segments import Segments
from gaia.parallel import WEIGHTS
from gaia.params import Dim, Role, UnplacedParameter, parameter, placement_of

# Names of products to `jax.checkpoint` policies, beside matmul.PRODUCT and attention.ATTENTION.
QKV, GATE_UP = "qkv", "gate_up"

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def normal(std: float) -> Init:
    """Gaussian initialiser with standard deviation `std`; 0 gives zeros."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


# Mesh axes of a matrix [in, out] by the dim that is split over `tensor`. WEIGHTS lie along the
# first dim, so that the last one stays a full vector register wide on TPUs.
_KERNEL_DIMS: dict[Split, tuple[Dim, Dim]] = {
    "out": (WEIGHTS, "tensor"),
    "in": (("tensor", *WEIGHTS), None),
    "neither": (WEIGHTS, None),
}


class Linear(nnx.Module):
    """y = x @ kernel, no bias. `kernel` is [in, out], fp32; `split` as in `project`."""

    adapter: Callable[[jax.Array], jax.Array] | None = None
    """Product that is added to the result (`gaia.adapters`)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        init: Init,
        *,
        split: Split = "out",
        role: Role = "matrix",
        rngs: nnx.Rngs,
    ) -> None:
        kernel = init(rngs.params(), (d_in, d_out))
        self.kernel = parameter(kernel, _KERNEL_DIMS[split], role=role)

    @property
    def split(self) -> Split:
        """Split of the product, as `project` takes it, by how the kernel lies on the mesh."""
        axes = placement_of(self.kernel).axes
        return "neither" if "tensor" not in axes else "in" if axes[0] == "tensor" else "out"

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the dtype of `x`."""
        return products(x, self)[0]


def products(x: jax.Array, *layers: Linear, name: str | None = PRODUCT) -> tuple[jax.Array, ...]:
    """x through each of several layers of one split: `x` is transposed and summed once for all.

    Args:
        x: [..., in]; its dtype is the compute dtype.
        layers: all split alike.
        name: of the results to `jax.checkpoint` policies; None where the caller names them.

    Returns:
        One [..., out] per layer, in the dtype of `x`.

    Raises:
        UnplacedParameter: the layers are split in different ways.
    """
    splits: list[Split] = sorted({layer.split for layer in layers})
    if len(splits) > 1:
        raise UnplacedParameter(
            f"layers that are multiplied together are split {', '.join(splits)}", "use one split"
        )
    kernels = (layer.kernel[...] for layer in layers)
    ys = project(x, *kernels, split=splits[0], name=name)
    return tuple(
        y if layer.adapter is None else y + layer.adapter(x)
        for y, layer in zip(ys, layers, strict=True)
    )


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned gain (Zhang & Sennrich 2019), computed in fp32.

    `within_split`: it norms heads, or hidden units, of which each device of `tensor` has its own.
    """

    def __init__(self, d: int, *, eps: float, within_split: bool = False) -> None:
        gain = jnp.ones((d,), jnp.float32)
        self.scale = parameter(gain, (None,), role="gain", within_split=within_split)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., d], dtype kept."""
        return rms_norm(x, self.scale[...], self.eps)


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * gain over the last dim, in fp32; dtype kept."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    # The gain enters last, as in Llama; [..., d] * [d] is the one broadcast of ranks here.
    return (x32 * inverse * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention: MHA, or GQA when there are fewer K/V heads than query heads.

    Args:
        d: model width.
        heads: query heads N.
        kv_heads: key/value heads K; N is a multiple of K.
        head_dim: H.
        qk_norm: RMSNorm on each query and key head before RoPE, as in Qwen3.
        eps: of that norm.
        init: of the q, k and v projections.
        init_out: of the output projection.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        qk_norm: bool,
        eps: float,
        init: Init,
        init_out: Init,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = Linear(d, heads * head_dim, init, rngs=rngs)
        self.k = Linear(d, kv_heads * head_dim, init, rngs=rngs)
        self.v = Linear(d, kv_heads * head_dim, init, rngs=rngs)
        self.out = Linear(heads * head_dim, d, init_out, split="in", rngs=rngs)
        self.q_norm = RMSNorm(head_dim, eps=eps, within_split=True) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps=eps, within_split=True) if qk_norm else None

    def must_divide(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Sizes beside those of parameters that must divide over mesh axes."""
        return {"heads": (self.heads, ("tensor",)), "kv_heads": (self.kv_heads, ("tensor",))}

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        *,
        segment_ids_BT: Segments | None = None,
        window: int | None = None,
        cache: KVCache | None = None,
        cache_positions_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Attends within `x`, or, given a cache, from `x` to the cache that `x` is written into.

        Args:
            x_BTD: input.
            rope: rotary table of the positions of `x`, or None for learned positions.
            segment_ids_BT: a token sees only tokens of its own segment.
            window: a token sees itself and the `window - 1` tokens before it.
            cache: keys and values so far.
            cache_positions_BT: where in the cache each row's tokens go, consecutive per row.

        Returns:
            Output [B, T, D] and the new cache (None when none was given).
        """
        B, T, _ = x_BTD.shape
        heads = self.heads // parallel.size("tensor")
        kv_heads = self.kv_heads // parallel.size("tensor")
        # Named as heads: kept as [B, T, N * H], XLA on TPU copies them to another layout and back.
        q_BTNH, k_BTKH, v_BTKH = (
            checkpoint_name(y_BTF.reshape(B, T, n, self.head_dim), QKV)
            for y_BTF, n in zip(
                products(x_BTD, self.q, self.k, self.v, name=None),
                (heads, kv_heads, kv_heads),
                strict=True,
            )
        )
        q_BTNH = norm_and_rotate(q_BTNH, self.q_norm, rope)
        k_BTKH = norm_and_rotate(k_BTKH, self.k_norm, rope)
        if cache is None:
            o_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT=segment_ids_BT, window=window)
        else:
            assert cache_positions_BT is not None
            o_BTNH, cache = write_and_attend(
                q_BTNH, k_BTKH, v_BTKH, cache, cache_positions_BT, window
            )
        return self.out(o_BTNH.reshape(B, T, heads * self.head_dim)), cache


def norm_and_rotate(x_BTNH: jax.Array, norm: RMSNorm | None, rope: Rope | None) -> jax.Array:
    """Queries or keys, normed and rotated as far as the model does either."""
    if norm is None:
        return x_BTNH if rope is None else apply_rope(x_BTNH, rope)
    if rope is None:
        return norm(x_BTNH)
    return normalize_and_rotate(x_BTNH, norm.scale[...], rope, norm.eps)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, d: int, hidden: int, *, init: Init, init_out: Init, rngs: nnx.Rngs) -> None:
        self.gate = Linear(d, hidden, init, rngs=rngs)
        self.up = Linear(d, hidden, init, rngs=rngs)
        self.down = Linear(hidden, d, init_out, split="in", rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        gate_BTF, up_BTF = products(x_BTD, self.gate, self.up, name=GATE_UP)
        return self.down(jax.nn.silu(gate_BTF) * up_BTF)


class Embed(nnx.Module):
    """A table of V rows; also the output head when the two are tied, and then of its role."""

    def __init__(self, v: int, d: int, init: Init, *, role: Role = "embed", rngs: nnx.Rngs) -> None:
        self.table = parameter(init(rngs.params(), (v, d)), ("tensor", WEIGHTS), role=role)

    def __call__(self, ids: jax.Array | np.ndarray, dtype: jnp.dtype) -> jax.Array:
        """Integer [...] -> [..., D]. Gathers first, so only the rows used are cast."""
        if parallel.size(*parallel.WEIGHTS, "tensor") > 1:
            return _lookup(jnp.dtype(dtype), self.table[...], ids)
        return self.table[...][ids].astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(dtype: jnp.dtype, table_VD: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table of which this device holds [V / tensor, D / WEIGHTS]."""
    rows_VD = parallel.all_gather(table_VD.astype(dtype), parallel.WEIGHTS, 1)
    here, row = _own_rows(table_VD, ids)
    return parallel.psum(jnp.where(here[..., None], rows_VD[row], 0), ("tensor",))


def _own_rows(table_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(True where this device holds the row of an id, its index here) for each id."""
    row = ids - parallel.index("tensor") * table_VD.shape[0]
    here = (row >= 0) & (row < table_VD.shape[0])
    return here, jnp.where(here, row, 0)


def _lookup_fwd(dtype, table_VD, ids):
    return _lookup(dtype, table_VD, ids), (table_VD, ids)


def _lookup_bwd(dtype, saved, dx):
    del dtype
    table_VD, ids = saved
    here, row = _own_rows(table_VD, ids)
    shape = (table_VD.shape[0], dx.shape[-1])
    masked = jnp.where(here[..., None], dx.astype(jnp.float32), 0.0)
    dtable_VD = jnp.zeros(shape, jnp.float32).at[row].add(masked)
    return parallel.psum_scatter_last(dtable_VD, parallel.WEIGHTS).astype(table_VD.dtype), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and rescales the rest; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
