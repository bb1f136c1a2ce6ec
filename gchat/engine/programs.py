"""The compiled programs of decoding: read a piece of a prompt, copy a row, decode some tokens.

They are functions of the model's graph and of shapes alone, so that every engine of one model in
one process shares them. The cache is donated: it is changed in place.

Shapes: B slots, C tokens of a piece of prompt, V vocabulary, T steps of a call, N alternatives.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gaia.kernels.cached_attention import KVCache
from gaia.kernels.packed import PackedTable, PerLayer, WeightFormat, pack
from gchat.engine.requests import MAX_LOGPROBS
from gchat.engine.sampler import Knobs, choose
from gchat.model import GPT

MAX_STEPS = 32
"""Tokens per row that one call decodes at most."""


class Plan(NamedTuple):
    """Everything a program is compiled for, beside the shapes of its arguments."""

    graph: Any
    """Static part of the model, from `nnx.split`."""
    cache: NamedSharding | None
    """Sharding of keys and values [B, K, S, H]; None on one device."""

    def placed(self, caches: tuple[KVCache, ...]) -> tuple[KVCache, ...]:
        """The caches where they belong."""
        sharding = self.cache
        if sharding is None:
            return caches
        return jax.tree.map(
            lambda a: jax.lax.with_sharding_constraint(
                a, NamedSharding(sharding.mesh, P(*sharding.spec[: a.ndim]))
            ),
            caches,
        )


def cache_sharding(params: Any) -> NamedSharding | None:
    """Keys and values lie as the heads do that made them: over `tensor`, where there is one."""
    sharding = params["blocks"]["attn"]["k"]["kernel"].sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    return NamedSharding(sharding.mesh, P(None, "tensor" if "tensor" in sharding.spec else None))


class DeviceState(NamedTuple):
    """State that stays on the device between calls, one row per slot."""

    caches: tuple[KVCache, ...]
    seen_BV: jax.Array
    """True for ids that occurred; kept for rows with a repetition penalty only."""


class Rows(NamedTuple):
    """The next work of each slot: small arrays that the host sends with every call."""

    token_B: Any
    """The last token of each row, which the model has not read yet."""
    position_B: Any
    """Its position; -1 for idle rows."""
    left_B: Any
    """Tokens that the row may still get."""
    stop_BI: Any
    """Ids that end the row, filled up with -1."""
    knobs: Knobs


class Decoded(NamedTuple):
    """Tokens of one call, -1 from where a row ended or was idle."""

    ids_TB: Any
    logprob_TB: Any
    top_TBN: Any
    top_logprob_TBN: Any
    steps: Any


@partial(jax.jit, static_argnums=(1, 2, 3))
def pack_weights(params: Any, tied: bool, form: WeightFormat, depth: int) -> Any:
    """Parameters as decoding reads them: each layer apart, matrices in the format."""
    packed = dict(params)

    def apart(path: Any, stacked: jax.Array) -> PerLayer:
        is_kernel = path[-1].key == "kernel"  # of a Linear; a table of a block is looked up in
        layers = (stacked[i] for i in range(depth))
        return PerLayer(tuple(pack(layer, form) if is_kernel else layer for layer in layers))

    packed["blocks"] = jax.tree_util.tree_map_with_path(apart, params["blocks"])
    if tied:
        packed["embed"] = {"table": PackedTable(pack(params["embed"]["table"].T, form))}
    else:
        packed["head"] = {"kernel": pack(params["head"]["kernel"], form)}
    return packed


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def empty_state(plan: Plan, params: Any, slots: int, length: int, kv: str | None) -> DeviceState:
    """A state of `slots` rows of `length` cache slots, with nothing in it."""
    model: GPT = nnx.merge(plan.graph, params)
    vocab = model.config.sizes.padded_vocab
    caches = plan.placed(model.empty_cache(slots, length, kv))
    return DeviceState(caches, jnp.zeros((slots, vocab), bool))


@partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def read_prompt(
    plan: Plan, params: Any, state: DeviceState, ids_C: jax.Array, slot: Any, start: Any
) -> DeviceState:
    """Fills one row's cache with a piece of its prompt that begins at position `start`.

    What lies behind the prompt's end is written too, and written over before anything attends it.
    """
    model: GPT = nnx.merge(plan.graph, params)
    row = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, slot, 1, axis=0), state.caches)
    positions_1C = (start + jnp.arange(ids_C.shape[0], dtype=jnp.int32))[None]
    _, row = model(ids_C[None], positions_BT=positions_1C, cache=row)
    caches = jax.tree.map(
        lambda a, r: jax.lax.dynamic_update_slice_in_dim(a, r, slot, axis=0), state.caches, row
    )
    return state._replace(caches=plan.placed(caches))


@partial(jax.jit, static_argnums=(0,), donate_argnums=(1,))
def copy_row(plan: Plan, state: DeviceState, source: Any, target: Any) -> DeviceState:
    """The state with one row's cache copied over another's."""

    def copy(a: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(a, source, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(a, row, target, axis=0)

    return state._replace(caches=plan.placed(jax.tree.map(copy, state.caches)))


@partial(jax.jit, donate_argnums=(0,))
def set_seen(state: DeviceState, slot: Any, seen_V: jax.Array) -> DeviceState:
    """The state with the ids that occurred in one row's prompt."""
    return state._replace(seen_BV=state.seen_BV.at[slot].set(seen_V))


@partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def decode(
    plan: Plan, params: Any, state: DeviceState, rows: Rows, steps: Any, leave: Any
) -> tuple[DeviceState, Decoded]:
    """Decodes up to `steps` tokens for every row that is not idle.

    Ends sooner when all rows have ended or, where `leave` is true, when one has: it is wanted.
    """
    model: GPT = nnx.merge(plan.graph, params)
    B = rows.token_B.shape[0]
    started_B = rows.position_B >= 0
    out = Decoded(
        jnp.full((MAX_STEPS, B), -1, jnp.int32),
        jnp.zeros((MAX_STEPS, B), jnp.float32),
        jnp.zeros((MAX_STEPS, B, MAX_LOGPROBS), jnp.int32),
        jnp.zeros((MAX_STEPS, B, MAX_LOGPROBS), jnp.float32),
        jnp.int32(0),
    )

    def more(carry) -> jax.Array:
        _, rows, out = carry
        running_B = rows.position_B >= 0
        return (out.steps < steps) & jnp.any(running_B) & ~(leave & jnp.any(started_B & ~running_B))

    def one(carry):
        state, rows, out = carry
        running_B, t = rows.position_B >= 0, out.steps
        x_B1D, caches = model(
            rows.token_B[:, None], positions_BT=rows.position_B[:, None], cache=state.caches
        )
        assert caches is not None  # some went in
        choice = choose(model.logits(x_B1D[:, 0]), rows.knobs, state.seen_BV, rows.position_B + 1)
        token_B = choice.token_B
        left_B = rows.left_B - 1
        ended_B = (left_B <= 0) | jnp.any(token_B[:, None] == rows.stop_BI, axis=1)
        seen_BV = jax.lax.cond(
            jnp.any(rows.knobs.penalty_B != 1),
            lambda: state.seen_BV.at[jnp.arange(B), token_B].set(True),
            lambda: state.seen_BV,
        )
        position_B = jnp.where(running_B & ~ended_B, rows.position_B + 1, -1)
        out = Decoded(
            out.ids_TB.at[t].set(jnp.where(running_B, token_B, -1)),
            out.logprob_TB.at[t].set(choice.logprob_B),
            out.top_TBN.at[t].set(choice.top_BN),
            out.top_logprob_TBN.at[t].set(choice.top_logprob_BN),
            t + 1,
        )
        rows = rows._replace(token_B=token_B, position_B=position_B, left_B=left_B)
        return DeviceState(plan.placed(caches), seen_BV), rows, out

    state, _, out = jax.lax.while_loop(more, one, (state, rows, out))
    return state, out
