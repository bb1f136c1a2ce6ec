"""Softmax attention for training and prefill: causal, windowed, packed, grouped-query.

`attention` is the entry point; by the platform it compiles for it takes Pallas splash attention
(TPU), cuDNN's flash attention (NVIDIA GPU, rows of one document) or the implementation here, on
XLA, which takes every case. That one is exact and works on blocks of queries: a
block multiplies only the keys it may see, so what lies above the diagonal or outside the window
is never computed, and the backward pass recomputes the scores of a block from the saved
logsumexp instead of keeping them (Dao et al. 2022; here a block of queries holds all its keys at
once, so no running maximum is needed). `reference_attention` is the textbook formula, for tests.

On a mesh (`gaia.parallel`) heads are split over `tensor`, which needs nothing here, and rows over
`sequence`: each device gathers the keys and values of whole rows for its part of the queries.

Shapes: B batch, T query time, S key time, N query heads, K key/value heads, G = N / K query
heads per key head, H head dim.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaia import parallel
from gaia.errors import ConfigError
from gaia.kernels import splash
from gaia.kernels.segments import Segments, Trie, seen_through

Impl = Literal["auto", "splash", "cudnn", "xla", "reference"]

ATTENTION = "attention"
"""Name of output and logsumexp to `jax.checkpoint` policies: saved, the backward pass does not
run the forward kernel again."""

# Added to nothing and compared with nothing: a finite "minus infinity" keeps exp and its
# gradient free of NaN. Every query sees at least itself, so no row is made of these alone.
_MASKED = -1e30


class _Static(NamedTuple):
    """Options that the kernel is specialised on; hashable, so a nondifferentiable argument."""

    causal: bool
    window: int | None
    scale: float
    block: int


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids_BT: Segments | None = None,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    impl: Impl = "auto",
) -> jax.Array:
    """softmax(scale * q @ k^T + mask) @ v, with the softmax in fp32.

    With S > T the queries are the last T of the S positions, as in FlashAttention 2. Where the
    mesh splits rows over `sequence`, T == S are those of one part, and so are the segment ids.

    Args:
        q_BTNH: queries.
        k_BSKH: keys; N is a multiple of K, and query heads n*G .. n*G+G-1 share key head n.
        v_BSKH: values.
        segment_ids_BT: a query sees only keys with its own segment id, or those that it continues
            in a trie; needs S == T.
        window: a query sees itself and the `window - 1` positions before it; needs `causal`.
        causal: a query sees no later position.
        scale: multiplies the scores; H**-0.5 when left out.
        impl: `splash` (TPU), `cudnn` (GPU; no segment ids, 16-bit), `xla` (blocked), `reference`
            (whole score matrix), or `auto`: the first of these that takes the arguments on the
            platform compiled for.

    Returns:
        [B, T, N, H] in the dtype of `q_BTNH`.

    Raises:
        ConfigError: shapes or options that do not fit together.
    """
    _check(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, window, causal)
    factor = float(q_BTNH.shape[-1]) ** -0.5 if scale is None else float(scale)
    if impl == "reference":
        if isinstance(segment_ids_BT, Trie):
            raise ConfigError("attention impl is reference for a trie", "use auto or xla")
        return reference_attention(
            q_BTNH, k_BSKH, v_BSKH, segment_ids_BT=segment_ids_BT,
            window=window, causal=causal, scale=factor,
        )  # fmt: skip
    part, k_BSKH, v_BSKH, ids = _whole_rows(k_BSKH, v_BSKH, segment_ids_BT)
    impl = _best(q_BTNH, k_BSKH, ids, part) if impl == "auto" else impl
    block = _block_size(q_BTNH.shape[1], trie=isinstance(segment_ids_BT, Trie))
    static = _Static(causal, window, factor, block)
    if impl == "splash":
        return _splash(q_BTNH, k_BSKH, v_BSKH, ids, part, static)
    if impl == "cudnn":
        if ids is not None or part is not None:
            raise ConfigError("attention impl is cudnn for packed or split rows", "use auto")
        return _cudnn(q_BTNH, k_BSKH, v_BSKH, static)
    first = None if part is None else part[0] * q_BTNH.shape[1]
    return _blocked(q_BTNH, k_BSKH, v_BSKH, _Place(ids, first), static)


def _whole_rows(k_BSKH, v_BSKH, segment_ids_BT):
    """(which part of its rows this device has, keys and values of whole rows, segment ids).

    The part is (i, n) for the i-th of n, None where rows are whole; the segment ids are those of
    the queries and of the keys.
    """
    ids = None if segment_ids_BT is None else (segment_ids_BT, segment_ids_BT)
    parts = parallel.size("sequence")
    if parts == 1:
        return None, k_BSKH, v_BSKH, ids
    whole = partial(parallel.all_gather, axes=("sequence",), dim=1)
    k_BSKH, v_BSKH = whole(k_BSKH), whole(v_BSKH)
    if segment_ids_BT is not None:
        ids = (segment_ids_BT, jax.tree.map(whole, segment_ids_BT))
    return (parallel.index("sequence"), parts), k_BSKH, v_BSKH, ids


def _best(q_BTNH, k_BSKH, ids, part) -> Impl:
    """The fastest implementation that takes these arguments where they are compiled for."""
    (_, T, N, H), S = q_BTNH.shape, k_BSKH.shape[1]
    platform = parallel.platform(q_BTNH)
    trie = ids is not None and isinstance(ids[0], Trie)
    if platform == "tpu" and splash.fits(T, S, H) and not trie:
        return "splash"
    # cuDNN through jax.nn takes no segment ids: packed rows go through XLA on a GPU, at the cost
    # that `tests/benchmarks/train_step.py --packed` prints beside cuDNN's.
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    if platform in ("gpu", "cuda") and half and ids is None and part is None and S == T:
        return "cudnn" if H % 8 == 0 and H <= 128 and N % k_BSKH.shape[2] == 0 else "xla"
    return "xla"


def _splash(q_BTNH, k_BSKH, v_BSKH, ids, part, static: _Static) -> jax.Array:
    return splash.splash_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        segment_ids=ids,
        part=part,
        window=static.window,
        causal=static.causal,
        scale=static.scale,
        name=ATTENTION,
    )


def _cudnn(q_BTNH, k_BSKH, v_BSKH, static: _Static) -> jax.Array:
    out = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=static.scale,
        is_causal=static.causal,
        local_window_size=None if static.window is None else (static.window - 1, 0),
        implementation="cudnn",
    )
    return checkpoint_name(out, ATTENTION)


def reference_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> jax.Array:
    """The same as `attention`, written as the formula: all scores at once, plain autodiff."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    score_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type="float32")
    score_BKGTS = score_BKGTS * (H**-0.5 if scale is None else scale)
    seen_TS = _visible(T, S, S - T, 0, causal, window)
    if seen_TS is not None:
        score_BKGTS = jnp.where(seen_TS[None, None, None], score_BKGTS, _MASKED)
    if segment_ids_BT is not None:
        same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        score_BKGTS = jnp.where(same_BTS[:, None, None], score_BKGTS, _MASKED)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weight_BKGTS, v_BSKH).reshape(B, T, N, H)


def _check(q, k, v, segment_ids, window, causal) -> None:
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != H or S < T:
        raise ConfigError(
            f"attention shapes are q {q.shape}, k {k.shape}, v {v.shape}",
            "use q [B,T,N,H] and k, v [B,S,K,H] with S >= T",
        )
    if N % K:
        raise ConfigError(f"attention has {N} query heads over {K} key heads", "use a multiple")
    if window is not None and (window < 1 or not causal):
        raise ConfigError(
            f"attention window is {window} with causal {causal}", "use at least 1, causal only"
        )
    shapes = {leaf.shape for leaf in jax.tree.leaves(segment_ids)}
    if shapes and (S != T or shapes != {(B, T)}):
        raise ConfigError(
            f"segment ids have shape {' and '.join(map(str, shapes))} for {T} queries and {S} keys",
            "use [B, T] and as many keys as queries",
        )


def _block_size(T: int, *, trie: bool = False) -> int:
    """Queries per block: enough rows to keep a matrix product busy, few enough to skip much.

    At T = 512 on CPU 128 beat 64, 256 and 512 (gchat/EXPERIMENTS.md, "CPU training step").
    Longer rows take longer blocks, so that the unrolled program stays within about 32 blocks.
    Tries are scored only: without a backward pass there is room for twice as many, and at T = 2048
    on CPU blocks of 256 take 0.77 of the time of 512 ("The scorer's speed" there).
    """
    return max(128, min(512, T // 8 if trie else T // 4))


def _visible(
    rows: int, cols: int, row0: jax.Array | int, col0: int, causal: bool, window: int | None
) -> jax.Array | None:
    """Mask [rows, cols] of which keys a query sees by position; None where it sees them all."""
    if not causal:
        return None
    if isinstance(row0, int):
        last_row, last_col = row0 + rows - 1, col0 + cols - 1
        if last_col <= row0 and (window is None or col0 > last_row - window):
            return None
    t = row0 + jax.lax.broadcasted_iota(jnp.int32, (rows, cols), 0)
    s = col0 + jax.lax.broadcasted_iota(jnp.int32, (rows, cols), 1)
    seen = s <= t
    return seen if window is None else seen & (s > t - window)


class _Place(NamedTuple):
    """Places of the queries among the keys."""

    segment_ids: tuple[Segments, Segments] | None
    """Segment ids, or tries, of the queries [B, T] and of the keys [B, S]."""
    first: jax.Array | int | None
    """Position of the first query, known at run time only; None: the last T of S."""


class _Span(NamedTuple):
    """A block of queries [start, stop) and the keys [low, high) that any of them may see."""

    start: int
    stop: int
    low: int
    high: int


def _spans(T: int, S: int, static: _Static, place: _Place) -> Iterator[_Span]:
    offset = S - T
    for start in range(0, T, static.block):
        stop = min(start + static.block, T)
        if place.first is not None:  # only the mask can tell
            yield _Span(start, stop, 0, S)
            continue
        high = stop + offset if static.causal else S
        window = None if _trie_of(place) else static.window  # in a trie what is near may lie far
        low = 0 if window is None else max(0, start + offset - window + 1)
        yield _Span(start, stop, low, high)


def _trie_of(place: _Place) -> bool:
    return place.segment_ids is not None and isinstance(place.segment_ids[0], Trie)


def _matmul(a: jax.Array, b: jax.Array, a_dim: int, b_dim: int) -> jax.Array:
    """Batched product of [Z, ., .] with [Z, ., .] over one dim of each, accumulated in fp32."""
    dims = (((a_dim,), (b_dim,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


# The layouts below put the heads into the batch: queries [Z, G*T', H] and keys [Z, S', H] with
# Z = B*K, so that grouped heads share one larger product with their keys.


def _queries(x_BTNH: jax.Array, span: _Span, kv_heads: int) -> jax.Array:
    B, _, N, H = x_BTNH.shape
    x = x_BTNH[:, span.start : span.stop].reshape(B, -1, kv_heads, N // kv_heads, H)
    return x.transpose(0, 2, 3, 1, 4).reshape(B * kv_heads, -1, H)


def _unqueries(x_ZQH: jax.Array, B: int, N: int) -> jax.Array:
    Z, Q, H = x_ZQH.shape
    K = Z // B
    x = x_ZQH.reshape(B, K, N // K, Q * K // N, H)
    return x.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)


def _keys(x_BSKH: jax.Array) -> jax.Array:
    B, S, K, H = x_BSKH.shape
    return x_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)


def _unkeys(x_ZSH: jax.Array, B: int) -> jax.Array:
    Z, S, H = x_ZSH.shape
    return x_ZSH.reshape(B, Z // B, S, H).transpose(0, 2, 1, 3)


def _scores(
    q_ZQH: jax.Array,
    k_ZSH: jax.Array,
    place: _Place,
    span: _Span,
    offset: int,
    static: _Static,
) -> jax.Array:
    """Masked, scaled scores of a block, fp32 [Z, Q, high - low]."""
    rows, cols = span.stop - span.start, span.high - span.low
    score = _matmul(q_ZQH, k_ZSH[:, span.low : span.high], 2, 2) * static.scale
    row0 = span.start + (offset if place.first is None else place.first)
    window = None if _trie_of(place) else static.window
    seen = _visible(rows, cols, row0, span.low, static.causal, window)
    if seen is None and place.segment_ids is None:
        return score
    Z, Q, _ = score.shape
    score_ZGQS = score.reshape(Z, Q // rows, rows, cols)
    if seen is not None:
        score_ZGQS = jnp.where(seen[None, None], score_ZGQS, _MASKED)
    if place.segment_ids is not None:
        queries, keys = slice(span.start, span.stop), slice(span.low, span.high)
        same_BQS = seen_through(*place.segment_ids, queries, keys, row0, static.window)
        same_ZQS = jnp.repeat(same_BQS, Z // same_BQS.shape[0], axis=0)
        score_ZGQS = jnp.where(same_ZQS[:, None], score_ZGQS, _MASKED)
    return score_ZGQS.reshape(Z, Q, cols)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q_BTNH, k_BSKH, v_BSKH, place, static: _Static) -> jax.Array:
    return _blocked_fwd(q_BTNH, k_BSKH, v_BSKH, place, static)[0]


def _blocked_fwd(q_BTNH, k_BSKH, v_BSKH, place, static: _Static):
    (B, T, N, _), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    k_ZSH, v_ZSH = _keys(k_BSKH), _keys(v_BSKH)
    # The backward pass reads what it needs in the layout made here, block by block.
    blocks = []
    for span in _spans(T, S, static, place):
        q_ZQH = _queries(q_BTNH, span, K)
        score = _scores(q_ZQH, k_ZSH, place, span, S - T, static)
        top = jnp.max(score, axis=-1, keepdims=True)
        weight = jnp.exp(score - top)
        total = jnp.sum(weight, axis=-1, keepdims=True)
        out = _matmul(weight.astype(v_ZSH.dtype), v_ZSH[:, span.low : span.high], 2, 1)
        # Dividing the [Q, H] result instead of the [Q, S] weights saves a pass over the scores.
        o_ZQH = (out / total).astype(q_BTNH.dtype)
        o_ZQH, lse = checkpoint_name((o_ZQH, top + jnp.log(total)), ATTENTION)
        blocks.append((q_ZQH, o_ZQH, lse))
    o_BTNH = jnp.concatenate([_unqueries(o, B, N) for _, o, _ in blocks], axis=1)
    return o_BTNH, (blocks, k_ZSH, v_ZSH, place)


def _blocked_bwd(static: _Static, saved, do_BTNH):
    blocks, k_ZSH, v_ZSH, place = saved
    (B, T, N, _), S, dtype = do_BTNH.shape, k_ZSH.shape[1], do_BTNH.dtype
    dk = jnp.zeros(k_ZSH.shape, jnp.float32)
    dv = jnp.zeros(v_ZSH.shape, jnp.float32)
    dqs = []
    for span, (q, o, lse) in zip(_spans(T, S, static, place), blocks, strict=True):
        keys = slice(span.low, span.high)
        do = _queries(do_BTNH, span, k_ZSH.shape[0] // B)
        delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), axis=-1, keepdims=True)
        weight = jnp.exp(_scores(q, k_ZSH, place, span, S - T, static) - lse)
        dweight = _matmul(do, v_ZSH[:, keys], 2, 2)
        dscore = (weight * (dweight - delta) * static.scale).astype(dtype)
        dqs.append(_unqueries(_matmul(dscore, k_ZSH[:, keys], 2, 1).astype(dtype), B, N))
        dv = dv.at[:, keys].add(_matmul(weight.astype(dtype), do, 1, 1))
        dk = dk.at[:, keys].add(_matmul(dscore, q, 1, 1))
    dk_BSKH, dv_BSKH = (_unkeys(x.astype(dtype), B) for x in (dk, dv))
    return jnp.concatenate(dqs, axis=1), dk_BSKH, dv_BSKH, None


_blocked.defvjp(_blocked_fwd, _blocked_bwd)
