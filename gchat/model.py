"""The GPT: one block, and the stack of blocks. Its sizes are in `model_config.py`.

A decoder-only transformer of Llama's shape (with `qk_norm`, Qwen3's): pre-norm RMSNorm, RoPE,
multi-head or grouped-query attention, SwiGLU, no biases. It exports losslessly to both.

Precision, stated here and nowhere else: parameters, norms, RoPE, softmax, the loss and the
optimizer are fp32; matrix products take `compute_dtype` operands and accumulate in fp32 at
`matmul_precision`; the residual stream is kept in `compute_dtype`.

Shapes: B batch, T time, D model, F hidden, L layers, N heads, K kv heads, H head dim, V vocab.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaia import parallel
from gaia.adapters import attach
from gaia.kernels.attention import ATTENTION
from gaia.kernels.cached_attention import KVCache, empty_cache
from gaia.kernels.matmul import PRODUCT
from gaia.kernels.packed import fp32_product, layer_of
from gaia.kernels.rotary import Rope, rope_table
from gaia.kernels.segments import Segments
from gaia.layers import (
    GATE_UP,
    QKV,
    Attention,
    Embed,
    Init,
    Linear,
    RMSNorm,
    SwiGLU,
    dropout,
    normal,
)
from gchat.model_config import GPTConfig, Remat


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). The residual wiring lives here."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        s, eps = config.sizes, config.norm_eps
        init, init_out = _matrix_inits(config)
        self.dropout = config.dropout
        self.attn_norm = RMSNorm(s.dim, eps=eps)
        self.attn = Attention(
            s.dim,
            s.heads,
            s.kv_heads,
            config.head_dim,
            qk_norm=config.qk_norm,
            eps=eps,
            init=init,
            init_out=init_out,
            rngs=rngs,
        )
        self.mlp_norm = RMSNorm(s.dim, eps=eps)
        self.mlp = SwiGLU(s.dim, s.hidden, init=init, init_out=init_out, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        *,
        segment_ids_BT: Segments | None = None,
        window: int | None = None,
        key: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_positions_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """[B, T, D] -> [B, T, D] and the new cache; the arguments are those of `Attention`."""
        keys = (None, None) if key is None else jax.random.split(key)
        with jax.named_scope("attn"):
            attended_BTD, cache = self.attn(
                self.attn_norm(x_BTD),
                rope,
                segment_ids_BT=segment_ids_BT,
                window=window,
                cache=cache,
                cache_positions_BT=cache_positions_BT,
            )
            x_BTD = x_BTD + dropout(attended_BTD, self.dropout, keys[0])
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, keys[1])
        return x_BTD, cache


class GPT(nnx.Module):
    """Embedding, the stack of blocks, final norm and head.

    The blocks' parameters are stacked, layer axis first, and run by one `lax.scan`: one
    checkpoint layout, one compiled block, whatever the depth.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        s = config.sizes
        self.config = config
        embed_std = {"zero_out": 1.0, "gpt2": 0.02, "neox": (2 / (5 * s.dim)) ** 0.5}[config.init]
        # The final norm has unit mean square, so logits start with a deviation of std * sqrt(D)
        # and the loss sigma^2 / 2 above ln V. The published rules let sigma reach 0.6 (neox) or
        # grow with the width (gpt2); at most 0.25 keeps the excess below 0.04 nats.
        head_std = 1e-3 if config.init == "zero_out" else min(embed_std, 0.25 * s.dim**-0.5)
        # A tied table is first of all a head: its logits start small, and its rate is a head's.
        embed_std, role = (head_std, "head") if config.tied else (embed_std, "embed")
        self.embed = Embed(s.padded_vocab, s.dim, normal(embed_std), role=role, rngs=rngs)
        if config.positions == "learned" and config.tied:
            # At the rate of an embedding they would outrun the rows that they are added to.
            beside = normal(embed_std)
            self.position_embed = Embed(config.seq_len, s.dim, beside, role="gain", rngs=rngs)
        elif config.positions == "learned":
            self.position_embed = Embed(config.seq_len, s.dim, normal(embed_std), rngs=rngs)

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            block = Block(config, rngs=rngs)
            if config.lora_rank:
                rank, scale = config.lora_rank, config.lora_scale
                attach(block, config.lora_targets, rank, scale, rngs=rngs)
            return block

        self.blocks = make_blocks(rngs)
        self.final_norm = RMSNorm(s.dim, eps=config.norm_eps)
        if not config.tied:
            self.head = Linear(s.dim, s.padded_vocab, normal(head_std), role="head", rngs=rngs)

    def must_divide(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Sizes beside those of parameters that must divide over mesh axes."""
        return {"seq_len": (self.config.seq_len, ("sequence",))}

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | np.ndarray | None = None,
        segment_ids_BT: Segments | None = None,
        key: jax.Array | None = None,
        cache: Sequence[KVCache] | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...] | None]:
        """Token ids to final hidden states; the head is applied by the loss or by `logits`.

        Args:
            tokens_BT: integer ids.
            positions_BT: position of each token; 0, 1, 2, … when left out.
            segment_ids_BT: documents packed in one row; attention stays inside a segment.
            key: PRNG key for dropout; None in evaluation.
            cache: keys and values of each layer to decode with, or None.

        Returns:
            Hidden states [B, T, D] in `compute_dtype`, and the new cache (or None).
        """
        c, (B, T) = self.config, tokens_BT.shape
        if positions_BT is None:
            # Known while tracing, so that RoPE's table is a constant of the program.
            positions_BT = np.arange(T, dtype=np.int32)[None, :]
            if parallel.size("sequence") > 1:
                positions_BT = positions_BT + parallel.index("sequence") * T
        dtype, rope = jnp.dtype(c.compute_dtype), None
        with jax.named_scope("embed"):
            x_BTD = self.embed(tokens_BT, dtype)
            if c.positions == "rope":
                rope = rope_table(positions_BT, c.head_dim, c.rope_theta, c.rope_factors)
            else:
                position_BTD = self.position_embed(positions_BT, dtype)
                x_BTD = x_BTD + jnp.broadcast_to(position_BTD, x_BTD.shape)
            if key is not None:
                key, embed_key = jax.random.split(key)
                x_BTD = dropout(x_BTD, c.dropout, embed_key)
        caches = None
        with jax.named_scope("blocks"):
            if cache is None:
                x_BTD = self._run_blocks(
                    x_BTD,
                    rope,
                    segment_ids_BT,
                    key,
                )
            else:
                positions_BT = jnp.broadcast_to(positions_BT, (B, T))
                # XLA on CPU would compute the cosines anew in each layer, for every head.
                rope = jax.lax.optimization_barrier(rope)
                x_BTD, caches = self._run_cached(
                    x_BTD,
                    rope,
                    cache,
                    positions_BT,
                )
        with jax.named_scope("final_norm"):
            return self.final_norm(x_BTD), caches

    def _run_blocks(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        segment_ids_BT: Segments | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """Scans over the layers; arguments as in `Block`."""
        c = self.config
        period = len(c.window_pattern)
        graph, params = nnx.split(self.blocks)
        keys = None if key is None or not c.dropout else jax.random.split(key, c.depth)
        # A window pattern of period p makes one scan step of p layers, each with its own window.
        stacked = jax.tree.map(
            lambda a: a.reshape(c.depth // period, period, *a.shape[1:]), (params, keys)
        )

        def one_layer(x_BTD: jax.Array, layer: Any, kind: str):
            block_params, key = layer
            return nnx.merge(graph, block_params)(
                x_BTD,
                rope,
                segment_ids_BT=segment_ids_BT,
                window=self._window(kind),
                key=key,
            )[0]

        def one_period(x_BTD: jax.Array, layers: Any):
            for i, kind in enumerate(c.window_pattern):
                layer = jax.tree.map(lambda a, i=i: a[i], layers)
                x_BTD = _remat(one_layer, c.remat, loops=c.depth > period)(x_BTD, layer, kind)
            return x_BTD, None

        # XLA sees through a loop that runs once, and would keep what is to be computed again.
        most = c.depth // period // (1 if c.remat == "none" else 2)
        unroll = max(1, min(c.scan_unroll, most))
        return jax.lax.scan(one_period, x_BTD, stacked, unroll=unroll)[0]

    def _run_cached(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        cache: Sequence[KVCache],
        positions_BT: jax.Array,
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """Runs the layers one by one: a scan would copy each one's weights and cache every time."""
        graph, params = nnx.split(self.blocks)
        pattern, caches = self.config.window_pattern, []
        for i, layer_cache in enumerate(cache):
            x_BTD, layer_cache = nnx.merge(graph, layer_of(nnx.to_pure_dict(params), i))(
                x_BTD,
                rope,
                window=self._window(pattern[i % len(pattern)]),
                cache=layer_cache,
                cache_positions_BT=positions_BT,
            )
            caches.append(layer_cache)
        return x_BTD, tuple(caches)

    def _window(self, kind: str) -> int | None:
        return self.config.sizes.window if kind == "S" else None

    @property
    def head_kernel(self) -> jax.Array:
        """The output head [D, V], fp32: its own matrix, or the embedding transposed when tied."""
        return self.embed.table[...].T if self.config.tied else self.head.kernel[...]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Hidden states [..., D] to fp32 logits [..., V]; padding columns are -inf."""
        logits_BTV = fp32_product(x_BTD, self.head_kernel)
        padding = jnp.arange(logits_BTV.shape[-1]) >= self.config.sizes.vocab
        return jnp.where(padding.reshape((1,) * (x_BTD.ndim - 1) + (-1,)), -jnp.inf, logits_BTV)

    def empty_cache(self, batch: int, slots: int, dtype: str | None = None) -> tuple[KVCache, ...]:
        """Zeroed keys and values of each layer: `batch` rows of `slots` (see `cache_slots`).

        `dtype` is the compute dtype where left out; int8 rounds what is stored.
        """
        c = self.config
        stored = jnp.dtype(dtype or c.compute_dtype)
        return tuple(
            empty_cache(batch, c.sizes.kv_heads, slots, c.head_dim, stored) for _ in range(c.depth)
        )


def _matrix_inits(config: GPTConfig) -> tuple[Init, Init]:
    """Initialisers of (inner, output) projections of a block.

    zero_out: N(0, 1/D) and zeros, so the stack starts as the identity (nanochat, muP practice).
    gpt2: N(0, 0.02) and N(0, 0.02/sqrt(2L)) (Radford et al. 2019).
    neox: N(0, sqrt(2/(5D))) (Nguyen & Salazar 2019) and 2/(L·sqrt(D)) (Wang; GPT-NeoX-20B).
    """
    dim, depth = config.sizes.dim, config.depth
    if config.init == "zero_out":
        return normal(dim**-0.5), normal(0.0)
    if config.init == "gpt2":
        return normal(0.02), normal(0.02 / (2 * depth) ** 0.5)
    return normal((2 / (5 * dim)) ** 0.5), normal(2 / (depth * dim**0.5))


# The results that the forward pass keeps of a block, by the names its layers give them.
_KEPT: dict[str, tuple[str, ...]] = {
    "dots": (ATTENTION, QKV, GATE_UP, PRODUCT),
    "attention": (ATTENTION, QKV),
    "full": (),
}


def _remat(layer: Callable[..., Any], remat: Remat, *, loops: bool) -> Callable[..., Any]:
    """Puts a layer under its policy; what that does not keep is computed again.

    A loop between the two passes keeps XLA from taking the second computation for the first.
    Without one a barrier must, which XLA on CPU drops too early.
    """
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    if remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[ATTENTION],
            names_which_can_be_offloaded=[QKV, GATE_UP, PRODUCT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*_KEPT[remat])
    return jax.checkpoint(layer, policy=policy, static_argnums=(2,), prevent_cse=not loops)
