"""Cross-entropy of a language-model head, without ever holding all logits.

`cross_entropy` works on chunks of tokens. Under differentiation it computes a chunk's logits
once and, while they are at hand, the gradients of the summed loss too: the backward pass only
multiplies them by the incoming cotangent. Against plain autodiff that saves the N x V logits and
their softmax (1.1 GB at N = 4096, V = 32768) and reads them a third as often. `token_nll` gives
the loss of each token, forward only, for evaluations.

On a mesh (`gaia.parallel`) the head is a shard [D / WEIGHTS, V / tensor]: it is gathered along D
in the compute dtype, the softmax runs over all parts of V, and the results are those of this
device's tokens.

Shapes: N tokens, D model, V vocabulary (padded).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaia import parallel
from gaia.errors import ConfigError
from gaia.kernels.matmul import transpose


class _Static(NamedTuple):
    vocab_size: int
    chunk: int
    ignore_index: int
    temperature: float = 1.0


def cross_entropy(
    x_ND: jax.Array,
    head_DV: jax.Array,
    targets_N: jax.Array,
    weights_N: jax.Array | None = None,
    *,
    vocab_size: int,
    chunk: int = 1024,
    ignore_index: int = -1,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood of `targets_N` under softmax(x @ head).

    The sum, not the mean, so that a caller who accumulates gradients can divide by the token
    count of the whole batch. Differentiable with respect to `x_ND` and `head_DV`.

    Args:
        x_ND: hidden states; their dtype is the compute dtype of the matrix products.
        head_DV: output head, usually fp32; a tied head is `table_VD.T`.
        targets_N: integer ids below `vocab_size`, or `ignore_index`.
        weights_N: fp32 factor of each token's loss, or None for 1; no gradient goes to it.
        vocab_size: columns in use; the padding beyond gets no probability and no gradient.
        chunk: tokens whose logits exist at one time.
        ignore_index: target of a token that has no loss and no gradient.
        temperature: divides the logits, as a sampler does.

    Returns:
        The sum, fp32, and the number of tokens that are not ignored, int32.

    Raises:
        ConfigError: `vocab_size` exceeds the head, or `chunk` is below 1.
    """
    static = _checked(head_DV, vocab_size, chunk, ignore_index)._replace(temperature=temperature)
    with jax.named_scope("head_and_loss"):
        total: jax.Array = _loss(x_ND, head_DV, targets_N, weights_N, static)
        return total, jnp.sum(targets_N != ignore_index)


def token_nll(
    x_ND: jax.Array,
    head_DV: jax.Array,
    targets_N: jax.Array,
    *,
    vocab_size: int,
    chunk: int = 1024,
    ignore_index: int = -1,
    temperature: float = 1.0,
) -> jax.Array:
    """Negative log-likelihood of each target in nats, fp32 [N]; 0 where the target is ignored.

    For evaluation: no gradients are prepared. Arguments as in `cross_entropy`.
    """
    static = _checked(head_DV, vocab_size, chunk, ignore_index)._replace(temperature=temperature)
    head = _whole(head_DV, x_ND.dtype)
    x, targets, _ = _chunks(x_ND, targets_N, None, static)
    nll = jax.lax.map(lambda xt: _forward(xt[0], head, xt[1], static).nll, (x, targets))
    return nll.reshape(-1)[: x_ND.shape[0]]


def token_nll_and_entropy(
    x_ND: jax.Array,
    head_DV: jax.Array,
    targets_N: jax.Array,
    *,
    vocab_size: int,
    chunk: int = 1024,
    ignore_index: int = -1,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`token_nll` and the entropy of the distribution that each target is of, in nats, fp32 [N].

    Both are 0 where the target is ignored. Arguments as in `cross_entropy`.
    """
    static = _checked(head_DV, vocab_size, chunk, ignore_index)._replace(temperature=temperature)
    head = _whole(head_DV, x_ND.dtype)
    x, targets, _ = _chunks(x_ND, targets_N, None, static)

    def one_chunk(xt: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        f = _forward(xt[0], head, xt[1], static)
        # ln sum e^x - sum p x, with x below the largest: padding has p 0 and no finite x.
        below = jnp.where(f.exps > 0, jnp.log(jnp.where(f.exps > 0, f.exps, 1.0)), 0.0)
        mean_n1 = parallel.psum(jnp.sum(f.exps * below, axis=1, keepdims=True), ("tensor",))
        entropy_n = (jnp.log(f.total) - mean_n1 / f.total)[:, 0]
        return f.nll, jnp.where(f.valid, entropy_n, 0.0)

    nll, entropy = jax.lax.map(one_chunk, (x, targets))
    return nll.reshape(-1)[: x_ND.shape[0]], entropy.reshape(-1)[: x_ND.shape[0]]


def whole_head(head_DV: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The head as `target_scores` takes it: gathered along D, in the compute dtype."""
    return _whole(head_DV, dtype)


def target_scores(
    x_nD: jax.Array, head_DV: jax.Array, targets_n: jax.Array, *, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """(nats of each target, whether it is the argmax) of tokens whose logits fit in memory.

    Args:
        x_nD: hidden states.
        head_DV: from `whole_head`.
        targets_n: integer ids below `vocab_size`.
        vocab_size: columns in use.

    Returns:
        fp32 [n] and bool [n]. Of equal logits the first id is the argmax.
    """
    logits, column = _logits(x_nD, head_DV, vocab_size)
    targets_n1 = targets_n[:, None]
    gold = _gold(logits, targets_n, _first_column(head_DV))
    top = parallel.pmax(jnp.max(logits, axis=1, keepdims=True), ("tensor",))
    total = parallel.psum(jnp.sum(jnp.exp(logits - top), axis=1, keepdims=True), ("tensor",))
    before = (logits > gold) | ((logits == gold) & (column < targets_n1))
    ahead_n = parallel.psum(jnp.sum(before, axis=1), ("tensor",))
    return (jnp.log(total) + top - gold)[:, 0], ahead_n == 0


def _checked(head_DV: jax.Array, vocab_size: int, chunk: int, ignore_index: int) -> _Static:
    columns = head_DV.shape[1] * parallel.size("tensor")
    if not 1 <= vocab_size <= columns:
        raise ConfigError(
            f"vocab_size is {vocab_size} but the head has {columns} columns",
            "pad the head or lower vocab_size",
        )
    if chunk < 1:
        raise ConfigError(f"cross-entropy chunk is {chunk}", "use at least 1 token")
    return _Static(vocab_size, chunk, ignore_index)


def _whole(head_DV: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """This device's columns in the compute dtype, gathered along D."""
    return parallel.all_gather(head_DV.astype(dtype), parallel.WEIGHTS, 0)


class _Chunks(NamedTuple):
    """C chunks of n tokens."""

    x_CnD: jax.Array
    targets_Cn: jax.Array
    weights_Cn: jax.Array | None


def _chunks(
    x_ND: jax.Array, targets_N: jax.Array, weights_N: jax.Array | None, static: _Static
) -> _Chunks:
    """Tokens in chunks of one size; the last is filled with ignored ones."""
    N, D = x_ND.shape
    count = -(-N // static.chunk)
    size = -(-N // count)  # even chunks, so that little is filled
    fill = count * size - N
    x_ND = jnp.pad(x_ND, ((0, fill), (0, 0)))
    targets_N = jnp.pad(targets_N, (0, fill), constant_values=static.ignore_index)
    weights_Cn = None
    if weights_N is not None:
        weights_Cn = jnp.pad(weights_N, (0, fill)).reshape(count, size)
    return _Chunks(x_ND.reshape(count, size, D), targets_N.reshape(count, size), weights_Cn)


class _Forward(NamedTuple):
    """One chunk of n tokens."""

    nll: jax.Array
    """fp32 [n]; 0 where ignored."""
    exps: jax.Array
    """exp(logit - max), fp32 [n, V]; 0 in the padding."""
    total: jax.Array
    """Row sums of `exps`, [n, 1]."""
    valid: jax.Array
    """bool [n]: the target is not ignored."""


def _first_column(head_DV: jax.Array) -> jax.Array | int:
    """The vocabulary id of this device's first column."""
    return parallel.index("tensor") * head_DV.shape[1]


def _gold(logits: jax.Array, targets_n: jax.Array, first: jax.Array | int) -> jax.Array:
    """The logit of each target, [n, 1]."""
    if parallel.size("tensor") == 1:
        return jnp.take_along_axis(logits, targets_n[:, None], axis=1)
    column = targets_n - first
    here = (column >= 0) & (column < logits.shape[1])
    gold = jnp.take_along_axis(logits, jnp.where(here, column, 0)[:, None], axis=1)
    return parallel.psum(jnp.where(here[:, None], gold, 0.0), ("tensor",))


def _logits(x_nD: jax.Array, head_DV: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """fp32 logits [n, V] of this device's columns, -inf in the padding, and the ids they are of."""
    logits = jnp.matmul(x_nD, head_DV, preferred_element_type=jnp.float32)
    column = _first_column(head_DV) + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    if vocab_size < logits.shape[1] * parallel.size("tensor"):
        logits = jnp.where(column < vocab_size, logits, -jnp.inf)
    return logits, column


def _forward(x_nD: jax.Array, head_DV: jax.Array, targets_n: jax.Array, s: _Static) -> _Forward:
    logits, _ = _logits(x_nD, head_DV, s.vocab_size)
    if s.temperature != 1:
        logits = logits / s.temperature
    valid = targets_n != s.ignore_index
    gold = _gold(logits, jnp.where(valid, targets_n, 0), _first_column(head_DV))
    top = parallel.pmax(jnp.max(logits, axis=1, keepdims=True), ("tensor",))
    exps = jnp.exp(logits - top)
    total = parallel.psum(jnp.sum(exps, axis=1, keepdims=True), ("tensor",))
    nll = (jnp.log(total) + top - gold)[:, 0]
    return _Forward(jnp.where(valid, nll, 0.0), exps, total, valid)


def _weighted(x_n: jax.Array, weights_n: jax.Array | None) -> jax.Array:
    return x_n if weights_n is None else x_n * weights_n


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(x_ND, head_DV, targets_N, weights_N, static: _Static) -> jax.Array:
    head = _whole(head_DV, x_ND.dtype)

    def one_chunk(chunk: _Chunks) -> jax.Array:
        x_nD, targets_n, weights_n = chunk
        return _weighted(_forward(x_nD, head, targets_n, static).nll, weights_n).sum()

    return jnp.sum(jax.lax.map(one_chunk, _chunks(x_ND, targets_N, weights_N, static)))


def _loss_fwd(x_ND, head_DV, targets_N, weights_N, static: _Static):
    dtype, head = x_ND.dtype, _whole(head_DV, x_ND.dtype)
    first = _first_column(head)

    def one_chunk(carry, chunk):
        loss, dhead = carry
        x_nD, targets_n, weights_n = chunk
        f = _forward(x_nD, head, targets_n, static)
        row = jnp.where(f.valid[:, None], 1.0 / f.total, 0.0)
        # softmax minus one-hot. An iota comparison fuses into the pass over the logits, on
        # every backend; a scatter of one element per row does not.
        column = jax.lax.broadcasted_iota(jnp.int32, f.exps.shape, 1)
        hit = (column == targets_n[:, None] - first) & f.valid[:, None]
        dlogits = f.exps * row - hit.astype(jnp.float32)
        if weights_n is not None:
            dlogits *= weights_n[:, None]
        if static.temperature != 1:
            dlogits /= static.temperature
        dlogits = dlogits.astype(dtype)
        dx = jnp.matmul(dlogits, head.T, preferred_element_type=jnp.float32).astype(dtype)
        dx = parallel.psum(dx, ("tensor",))
        dhead += jnp.matmul(transpose(x_nD), dlogits, preferred_element_type=jnp.float32)
        return (loss + _weighted(f.nll, weights_n).sum(), dhead), dx

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros(head.shape, jnp.float32))
    chunks = _chunks(x_ND, targets_N, weights_N, static)
    (loss, dhead), dx = jax.lax.scan(one_chunk, zeros, chunks)
    # A tied head's gradient is transposed next. A single chunk is no loop, so XLA would fold that
    # into the product, and has none in bf16 on CPU whose operands both stand on their heads.
    dhead = jax.lax.optimization_barrier(dhead)
    dhead = parallel.psum_scatter(dhead, parallel.WEIGHTS, 0)
    dx_ND = dx.reshape(-1, x_ND.shape[1])[: x_ND.shape[0]]
    return loss, (dx_ND, dhead, jnp.zeros((), head_DV.dtype))


def _loss_bwd(static: _Static, saved, cotangent):
    del static
    dx_ND, dhead_DV, head_dtype = saved
    dx = (dx_ND.astype(jnp.float32) * cotangent).astype(dx_ND.dtype)
    return dx, (dhead_DV * cotangent).astype(head_dtype.dtype), None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
