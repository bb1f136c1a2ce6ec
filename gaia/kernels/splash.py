"""Splash attention on TPU: JAX's Pallas kernel behind the arguments of `gaia.kernels.attention`.

Blocks of scores that the mask empties are never computed, forward and backward; the backward
pass is one fused kernel. Source: `jax.experimental.pallas.ops.tpu.splash_attention`.

Shapes as in `attention.py`: B batch, T query time, S key time, N query heads, K key/value heads,
H head dim.
"""

import math
from functools import lru_cache

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

_LANES = 128  # of a vector register: blocks are multiples of it
# The products before the kernel leave time as the minor dim: there heads come apart from the
# width without moving a byte. Taken head dim minor, XLA copies q, k and v, some of them in fp32.
_LAYOUT = kernel.QKVLayout.SEQ_MINOR


def block(H: int) -> int:
    """Largest number of queries, and of keys, in a block; wide heads fill the memory of a v5p."""
    return 1024 if H <= 128 else 512


def key_blocks(S: int, H: int) -> int:
    """Blocks of keys. The fused backward pass writes a gradient of the queries for each of them
    and adds these up afterwards, so it holds so many arrays of the queries' size."""
    return S // math.gcd(S, block(H))


def fits(T: int, S: int, H: int) -> bool:
    """Says if the kernel takes these sizes: whole blocks, and heads that fill a register."""
    return T % _LANES == 0 and S % _LANES == 0 and H % 64 == 0


def splash_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    part: tuple[jax.Array | int, int] | None,
    window: int | None,
    causal: bool,
    scale: float,
    name: str,
    interpret: bool = False,
) -> jax.Array:
    """[B, T, N, H] in the dtype of `q_BTNH`; sizes for which `fits` holds.

    Args:
        q_BTNH: queries: the last T of S positions, or one part of them.
        k_BSKH: keys.
        v_BSKH: values.
        segment_ids: of the queries [B, T] and of the keys [B, S].
        part: (i, n) where the queries are the i-th of n equal parts of the positions.
        window: a query sees itself and the `window - 1` positions before it.
        causal: a query sees no later position.
        scale: multiplies the scores.
        name: of output and logsumexp to `jax.checkpoint` policies.
        interpret: run on any platform, slowly (tests).
    """
    (_, T, N, H), S = q_BTNH.shape, k_BSKH.shape[1]
    parts = part[1] if part else 1
    with jax.ensure_compile_time_eval():
        call = _kernel(T * parts, S, N, H, parts, window, causal, name, interpret)
    if part is not None:
        call = _part_of(call, part[0], parts)
    ids = None if segment_ids is None else kernel.SegmentIds(*segment_ids)
    # The kernel has no scale of its own. In fp32 the scaled queries are exact to one rounding;
    # in bf16 a head dim that is a power of four makes the scale, and so the product, exact.
    q_BNTH = (q_BTNH * scale).astype(q_BTNH.dtype).swapaxes(1, 2)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    o_BNTH: jax.Array = jax.vmap(call)(q_BNTH, k_BKSH, v_BKSH, ids)  # pyright: ignore
    return o_BNTH.swapaxes(1, 2)


@lru_cache(maxsize=32)
def _kernel(
    T: int,
    S: int,
    N: int,
    H: int,
    parts: int,
    window: int | None,
    causal: bool,
    name: str,
    interpret: bool,
) -> kernel.SplashAttentionKernel:
    if not causal:
        mask = masks.FullMask((T, S))
    elif window is None:
        mask = masks.CausalMask((T, S), offset=S - T)
    else:
        mask = masks.LocalMask((T, S), window_size=(window - 1, 0), offset=S - T)
    q, kv = math.gcd(T // parts, block(H)), S // key_blocks(S, H)
    sizes = kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        use_fused_bwd_kernel=True,
        q_layout=_LAYOUT,
        k_layout=_LAYOUT,
        v_layout=_LAYOUT,
    )
    return kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=name,
        interpret=interpret,
    )


def _part_of(call: kernel.SplashAttentionKernel, i: jax.Array | int, parts: int):
    """The kernel of the i-th part of the queries: its rows of the tables of blocks to visit."""

    def rows(table: jax.Array) -> jax.Array:
        # [heads, query blocks, key blocks], or the positions of the queries [T].
        dim = 1 if table.ndim == 3 else 0
        size = table.shape[dim] // parts
        return jax.lax.dynamic_slice_in_dim(table, i * size, size, dim)

    return jax.tree.map(rows, call)
