"""The compiled programs of decoding: read a piece of a prompt, copy a row, decode some tokens.

They are functions of the model's graph and of shapes alone, so that every engine of one model in
one process shares them. The cache is donated: it is changed in place.

Shapes: B slots, S positions, C tokens of a piece of prompt, V vocabulary, T tokens of a call,
k drafted tokens, W = k + 1 tokens that a step reads of each row, N alternatives.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.kernels.cached_attention import KVCache
from gaia.kernels.packed import PackedTable, PerLayer, WeightFormat, pack
from gchat.engine.lookup import draft
from gchat.engine.requests import MAX_LOGPROBS
from gchat.engine.sampler import Choice, Knobs, choose
from gchat.model import GPT

MAX_STEPS = 32
"""Tokens per row that one call decodes at most."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything a program is compiled for, beside the shapes of its arguments.

    There is one object for each content (`_plan`): JAX hashes and compares what is static at every
    call, which takes a millisecond of the host for the graph of a model.
    """

    graph: Any
    """Static part of the model, from `nnx.split`."""
    cache: NamedSharding | None
    """Sharding of keys and values [B, K, S, H]; None on one device."""
    platform: str
    """`cpu`, `gpu` or `tpu`: of the devices that hold the model, which may not be the default."""
    speculate: int = 0
    """Tokens of each row that a step drafts and checks."""

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


def plan_for(graph: Any, params: Any, speculate: int = 0) -> Plan:
    """The plan for parameters where they lie, on devices here or those of an AOT topology.

    Keys and values lie as the heads do that made them: over `tensor`, where there is one.
    """
    sharding = params["blocks"]["attn"]["k"]["kernel"].sharding
    platform = next(iter(sharding.device_set)).platform
    keys = None
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        split = "tensor" if "tensor" in sharding.spec else None
        keys = NamedSharding(sharding.mesh, P(None, split))
    return _plan(graph, keys, platform, speculate)


@cache
def _plan(graph: Any, cache: NamedSharding | None, platform: str, speculate: int) -> Plan:
    return Plan(graph, cache, platform, speculate)


class DeviceState(NamedTuple):
    """State that stays on the device between calls, one row per slot."""

    caches: tuple[KVCache, ...]
    seen_BV: jax.Array
    """True for ids that occurred; kept for rows with a repetition penalty only."""
    ids_BS: jax.Array
    """Ids of each row, for drafts; [B, 0] where none are made."""
    bias_BV: jax.Array
    """Additions to the logits; those of rows without one are never looked at."""


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
    alone_B: Any
    """True where the host must be asked before each token: no draft."""
    knobs: Knobs


class Scored(NamedTuple):
    """Log-probabilities of the tokens that follow those of a piece of prompt."""

    logprob_C: Any
    top_CN: Any
    top_logprob_CN: Any


class Decoded(NamedTuple):
    """Tokens of one call, in order; -1 where a row got none."""

    ids_TB: Any
    logprob_TB: Any
    top_TBN: Any
    top_logprob_TBN: Any
    used: Any
    """Rows of T that are filled."""
    steps_B: Any
    """Steps that each row took part in, each of which gave it at least one token."""


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def pack_weights(params: Any, tied: bool, form: WeightFormat, depth: int, platform: str) -> Any:
    """Parameters as decoding reads them: each layer apart, matrices in the format."""
    with parallel.traced_for(platform):
        return _packed(params, tied, form, depth)


def _packed(params: Any, tied: bool, form: WeightFormat, depth: int) -> Any:
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
    bias_BV = jnp.zeros((slots, vocab), jnp.float32)
    ids_BS = jnp.zeros((slots, length if plan.speculate else 0), jnp.int32)
    return DeviceState(caches, jnp.zeros((slots, vocab), bool), ids_BS, bias_BV)


@partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def read_prompt(
    plan: Plan, params: Any, state: DeviceState, ids_C: jax.Array, slot: Any, start: Any
) -> DeviceState:
    """Fills one row's cache with a piece of its prompt that begins at position `start`.

    What lies behind the prompt's end is written too, and written over before anything attends it.
    """
    model: GPT = nnx.merge(plan.graph, params)
    return _read(plan, model, state, ids_C, slot, start)[0]


@partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def score_prompt(
    plan: Plan,
    params: Any,
    state: DeviceState,
    ids_C: jax.Array,
    next_C: jax.Array,
    slot: Any,
    start: Any,
) -> tuple[DeviceState, Scored]:
    """Fills a row's cache as `read_prompt` does, and scores the token that follows each."""
    model: GPT = nnx.merge(plan.graph, params)
    state, x_CD = _read(plan, model, state, ids_C, slot, start)
    with parallel.traced_for(plan.platform):
        logits_CV = model.logits(x_CD)
    # One sum for both: whoever compares the two values asks for equal floats.
    norm_C1 = jax.lax.optimization_barrier(
        jax.scipy.special.logsumexp(logits_CV, axis=-1, keepdims=True)
    )
    logprob_CV = logits_CV - norm_C1
    chosen_C = jnp.take_along_axis(logprob_CV, next_C[:, None], axis=1)[:, 0]
    top_logprob_CN, top_CN = jax.lax.top_k(logprob_CV, MAX_LOGPROBS)
    return state, Scored(chosen_C, top_CN, top_logprob_CN)


def _read(
    plan: Plan, model: GPT, state: DeviceState, ids_C: jax.Array, slot: Any, start: Any
) -> tuple[DeviceState, jax.Array]:
    """The state with a piece of a row's prompt, and the piece's hidden states [C, D]."""
    positions_1C = (start + jnp.arange(ids_C.shape[0], dtype=jnp.int32))[None]
    caches = tuple(cache._replace(row=slot) for cache in state.caches)
    with parallel.traced_for(plan.platform):
        x_1CD, caches = model(ids_C[None], positions_BT=positions_1C, cache=caches)
        assert caches is not None  # some went in
    caches = tuple(cache._replace(row=None) for cache in caches)
    ids_BS = state.ids_BS
    if plan.speculate:
        ids_BS = jax.lax.dynamic_update_slice(ids_BS, ids_C[None], (slot, start))
    return state._replace(caches=plan.placed(caches), ids_BS=ids_BS), x_1CD[0]


@partial(jax.jit, static_argnums=(0,), donate_argnums=(1,))
def copy_row(plan: Plan, state: DeviceState, source: Any, target: Any) -> DeviceState:
    """The state with one row's cache copied over another's."""

    def copy(a: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(a, source, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(a, row, target, axis=0)

    return state._replace(
        caches=plan.placed(jax.tree.map(copy, state.caches)), ids_BS=copy(state.ids_BS)
    )


@partial(jax.jit, donate_argnums=(0,))
def set_seen(state: DeviceState, slot: Any, seen_V: jax.Array) -> DeviceState:
    """The state with the ids that occurred in one row's prompt."""
    return state._replace(seen_BV=state.seen_BV.at[slot].set(seen_V))


@partial(jax.jit, donate_argnums=(0,))
def set_bias(state: DeviceState, slot: Any, bias_V: jax.Array) -> DeviceState:
    """The state with the additions to one row's logits."""
    return state._replace(bias_BV=state.bias_BV.at[slot].set(bias_V))


@partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def decode(
    plan: Plan, params: Any, state: DeviceState, rows: Rows, steps: Any, leave: Any
) -> tuple[DeviceState, Decoded]:
    """Decodes up to `steps` times one token, with drafts several, for every row that is not idle.

    Ends sooner when all rows have ended or, where `leave` is true, when one has: it is wanted.
    """
    model: GPT = nnx.merge(plan.graph, params)
    B, W = rows.token_B.shape[0], plan.speculate + 1
    started_B = rows.position_B >= 0
    if plan.speculate:
        state = state._replace(ids_BS=_noted(state.ids_BS, rows.position_B, rows.token_B))

    def more(carry) -> jax.Array:
        _, rows, out = carry
        running_B = rows.position_B >= 0
        go_on = (jnp.max(out.steps_B) < steps) & (out.used + W <= MAX_STEPS) & jnp.any(running_B)
        return go_on & ~(leave & jnp.any(started_B & ~running_B))

    def one(carry):
        state, rows, out = carry
        running_B = rows.position_B >= 0
        out = out._replace(steps_B=out.steps_B + running_B)
        draft_Bk = jnp.zeros((B, 0), jnp.int32)
        if plan.speculate:
            draft_Bk = draft(state.ids_BS, rows.position_B, plan.speculate)
            draft_Bk = jnp.where(rows.alone_B[:, None], -1, draft_Bk)
        read_BW = jnp.concatenate([rows.token_B[:, None], jnp.maximum(draft_Bk, 0)], axis=1)
        position_BW = rows.position_B[:, None] + jnp.arange(W)[None]
        position_BW = jnp.where(running_B[:, None], position_BW, -1)
        with parallel.traced_for(plan.platform):
            x_BWD, caches = model(read_BW, positions_BT=position_BW, cache=state.caches)
            assert caches is not None  # some went in
            logits_BWV = model.logits(x_BWD)
        state = state._replace(caches=plan.placed(caches))
        expected_BW = jnp.pad(draft_Bk, ((0, 0), (0, 1)), constant_values=-1)

        def on_course(carry) -> jax.Array:
            return jnp.any(carry[1])

        def take(carry):
            w, live_B, seen_BV, ids_BS, rows, out = carry
            logits_BV = jax.lax.dynamic_index_in_dim(logits_BWV, w, axis=1, keepdims=False)
            choice = choose(logits_BV, rows.knobs, seen_BV, rows.position_B + 1, state.bias_BV)
            seen_BV, rows, out = _chosen(choice, live_B, seen_BV, rows, out)
            if plan.speculate:
                ids_BS = _noted(ids_BS, jnp.where(live_B, rows.position_B, -1), rows.token_B)
            live_B &= (rows.position_B >= 0) & (rows.token_B == expected_BW[:, w])
            return w + 1, live_B, seen_BV, ids_BS, rows, out

        carry = (jnp.int32(0), running_B, state.seen_BV, state.ids_BS, rows, out)
        carry = jax.lax.while_loop(on_course, take, carry) if plan.speculate else take(carry)
        _, _, seen_BV, ids_BS, rows, out = carry
        return state._replace(seen_BV=seen_BV, ids_BS=ids_BS), rows, out

    state, _, out = jax.lax.while_loop(more, one, (state, rows, _nothing(B)))
    return state, out


def _nothing(B: int) -> Decoded:
    return Decoded(
        jnp.full((MAX_STEPS, B), -1, jnp.int32),
        jnp.zeros((MAX_STEPS, B), jnp.float32),
        jnp.zeros((MAX_STEPS, B, MAX_LOGPROBS), jnp.int32),
        jnp.zeros((MAX_STEPS, B, MAX_LOGPROBS), jnp.float32),
        jnp.int32(0),
        jnp.zeros(B, jnp.int32),
    )


def _chosen(
    choice: Choice, live_B: jax.Array, seen_BV: jax.Array, rows: Rows, out: Decoded
) -> tuple[jax.Array, Rows, Decoded]:
    """The rows that are `live` one token further, and that token noted everywhere."""
    token_B, B, t = choice.token_B, live_B.shape[0], out.used
    left_B = rows.left_B - live_B
    ended_B = (left_B <= 0) | jnp.any(token_B[:, None] == rows.stop_BI, axis=1)
    seen_BV = jax.lax.cond(
        jnp.any(rows.knobs.penalty_B != 1),
        lambda: seen_BV.at[jnp.arange(B), token_B].max(live_B),
        lambda: seen_BV,
    )
    further_B = jnp.where(ended_B, -1, rows.position_B + 1)
    rows = rows._replace(
        token_B=jnp.where(live_B, token_B, rows.token_B),
        position_B=jnp.where(live_B, further_B, rows.position_B),
        left_B=left_B,
    )
    out = out._replace(
        ids_TB=out.ids_TB.at[t].set(jnp.where(live_B, token_B, -1)),
        logprob_TB=out.logprob_TB.at[t].set(choice.logprob_B),
        top_TBN=out.top_TBN.at[t].set(choice.top_BN),
        top_logprob_TBN=out.top_logprob_TBN.at[t].set(choice.top_logprob_BN),
        used=t + 1,
    )
    return seen_BV, rows, out


def _noted(ids_BS: jax.Array, position_B: jax.Array, token_B: jax.Array) -> jax.Array:
    """The ids of each row with one more; rows at -1 get none."""
    B, S = ids_BS.shape
    place_B = jnp.where(position_B < 0, S, position_B)
    return ids_BS.at[jnp.arange(B), place_B].set(token_B, mode="drop")
