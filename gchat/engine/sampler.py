"""The next token of each row, without sorting the vocabulary.

What is cut off lies below one threshold per row. Top-k and top-p search it by bisection, on counts
and on sums of probabilities, until no other threshold would keep other tokens; equal logits stay or
go together. Rows that ask for neither, and greedy rows, search nothing: where no row of the batch
asks, the search is not run. The draw inverts the cumulative distribution with one uniform number.

Every row is computed from its own logits and key alone.

Shapes: B rows, V vocabulary, W words of 32 ids, N alternatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gchat.engine.requests import MAX_LOGPROBS

_GROUPS_KEPT = 64  # top-k up to this looks at so many groups of ids, not at all
_COLUMNS = 128  # sums run down columns, which XLA on CPU vectorises; along rows it does not


class Knobs(NamedTuple):
    """Options of each row: arrays of the host or of the device."""

    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    min_p_B: Any
    penalty_B: Any
    logprobs_B: Any
    """True where the most likely alternatives are wanted."""
    key_B2: Any
    """Words of the row's random key, uint32."""
    masked_B: Any
    mask_BW: Any
    """Bits of the allowed ids, uint32, where `masked_B`."""
    biased_B: Any = None
    """True for rows with a bias; None where no row can have one."""


class Choice(NamedTuple):
    """One token per row."""

    token_B: jax.Array
    logprob_B: jax.Array
    top_BN: jax.Array
    """Ids of the most likely tokens; zeros where no row wants them."""
    top_logprob_BN: jax.Array


def choose(
    logits_BV: jax.Array,
    knobs: Knobs,
    seen_BV: jax.Array,
    position_B: jax.Array,
    bias_BV: jax.Array | None = None,
) -> Choice:
    """Samples one id per row from fp32 logits; ids with -inf logits are never chosen.

    Args:
        logits_BV: of the model.
        knobs: of each row.
        seen_BV: True for ids that occurred, for rows with a penalty.
        position_B: of the token to be chosen; with the row's key it decides the draw.
        bias_BV: added to the logits of rows that have one, for the choice alone.
    """
    with jax.named_scope("sample"):
        return _choose(_in_columns(logits_BV), knobs, _in_columns(seen_BV), position_B, bias_BV)


def _choose(
    x_BRC: jax.Array,
    knobs: Knobs,
    seen_BRC: jax.Array,
    position_B: jax.Array,
    bias_BV: jax.Array | None,
) -> Choice:
    x_BRC = jax.lax.cond(
        jnp.any(knobs.penalty_B != 1), lambda: _penalised(x_BRC, knobs, seen_BRC), lambda: x_BRC
    )
    greedy_B = knobs.temperature_B == 0
    temperature_B = jnp.where(greedy_B, 1.0, knobs.temperature_B)
    scaled_BRC = x_BRC / _each(temperature_B)
    best_B = _max(scaled_BRC)
    mass_BRC = jnp.exp(scaled_BRC - _each(best_B))
    log_total_B = jnp.log(_sum(mass_BRC))
    allowed_BRC = jax.lax.cond(
        jnp.any(knobs.masked_B), lambda: _masked(scaled_BRC, knobs), lambda: scaled_BRC
    )
    moved = jnp.any(knobs.masked_B)
    if bias_BV is not None and knobs.biased_B is not None:
        shift_B = jnp.where(knobs.biased_B, 1 / temperature_B, 0.0)
        before_BRC = allowed_BRC
        allowed_BRC = jax.lax.cond(
            jnp.any(knobs.biased_B),
            lambda: before_BRC + _each(shift_B) * _in_columns(bias_BV, 0.0),
            lambda: before_BRC,
        )
        moved = moved | jnp.any(knobs.biased_B)
    kept_best_B = jax.lax.cond(moved, lambda: _max(allowed_BRC), lambda: best_B)
    floor_B = _floor(allowed_BRC, kept_best_B, knobs)

    def draw() -> jax.Array:
        kept_BRC = jnp.where(
            allowed_BRC >= _each(floor_B), jnp.exp(allowed_BRC - _each(kept_best_B)), 0.0
        )
        return _draw(kept_BRC, _uniform(knobs.key_B2, position_B))

    first_B = _first(allowed_BRC == _each(kept_best_B))
    drawn_B = jax.lax.cond(jnp.all(greedy_B), lambda: first_B, draw)
    token_B = jnp.where(greedy_B, first_B, drawn_B)
    flat_BV = scaled_BRC.reshape(scaled_BRC.shape[0], -1)
    chosen_B = jnp.take_along_axis(flat_BV, token_B[:, None], axis=1)[:, 0]
    norm_B = best_B + log_total_B
    top_logprob_BN, top_BN = jax.lax.cond(
        jnp.any(knobs.logprobs_B),
        lambda: jax.lax.top_k(flat_BV - norm_B[:, None], MAX_LOGPROBS),
        lambda: _nothing(flat_BV.shape[0]),
    )
    return Choice(token_B, chosen_B - norm_B, top_BN, top_logprob_BN)


def _nothing(B: int) -> list[jax.Array]:
    return [jnp.zeros((B, MAX_LOGPROBS), jnp.float32), jnp.zeros((B, MAX_LOGPROBS), jnp.int32)]


# ── What each option does to the logits ─────────────────────────────────────────────────────────


def _penalised(x_BRC: jax.Array, knobs: Knobs, seen_BRC: jax.Array) -> jax.Array:
    """Logits of ids that occurred, made less likely (Keskar et al. 2019)."""
    penalty_B11 = _each(knobs.penalty_B)
    lower_BRC = jnp.where(x_BRC > 0, x_BRC / penalty_B11, x_BRC * penalty_B11)
    return jnp.where(seen_BRC & (penalty_B11 != 1), lower_BRC, x_BRC)


def _masked(x_BRC: jax.Array, knobs: Knobs) -> jax.Array:
    B, R, C = x_BRC.shape
    bits_BW32 = (knobs.mask_BW[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
    allowed_BV = bits_BW32.reshape(B, -1).astype(bool)[:, : R * C]
    allowed_BV = jnp.pad(allowed_BV, ((0, 0), (0, R * C - allowed_BV.shape[1])))
    allowed_BRC = allowed_BV.reshape(B, R, C) | ~_each(knobs.masked_B)
    return jnp.where(allowed_BRC, x_BRC, -jnp.inf)


def _floor(x_BRC: jax.Array, best_B: jax.Array, knobs: Knobs) -> jax.Array:
    """The lowest value of each row that is kept: -inf keeps all."""
    k_B = jnp.where(knobs.temperature_B == 0, 0, knobs.top_k_B)
    p_B = jnp.where(knobs.temperature_B == 0, 1.0, knobs.top_p_B)
    min_p_B = jnp.log(knobs.min_p_B) + best_B  # -inf where it is 0
    few_B = (k_B > 0) & (k_B <= _GROUPS_KEPT)
    none_B = jnp.full_like(best_B, -jnp.inf)

    def search(some_BRC: jax.Array, here_B: jax.Array) -> jax.Array:
        """The floors of the rows that are `here`, of all values or of those that may be kept."""
        here_k_B, here_p_B = jnp.where(here_B, k_B, 0), jnp.where(here_B, p_B, 1.0)
        floor_B = jax.lax.cond(
            jnp.any(here_k_B > 0), lambda: _top_k_floor(some_BRC, best_B, here_k_B), lambda: none_B
        )

        def top_p() -> jax.Array:
            more_mass_B = jnp.zeros_like(best_B)
            if some_BRC is not x_BRC:  # what equals the k-th value is kept wherever it is
                more_B = _sum(x_BRC == _each(floor_B)) - _sum(some_BRC == _each(floor_B))
                more_mass_B = more_B * jnp.exp(floor_B - best_B)
            return _top_p_floor(some_BRC, best_B, here_p_B, floor_B, more_mass_B)

        return jax.lax.cond(jnp.any(here_p_B < 1), top_p, lambda: floor_B)

    few_floor_B = jax.lax.cond(
        jnp.any(few_B), lambda: search(_candidates(x_BRC), few_B), lambda: none_B
    )
    floor_B = jnp.where(few_B, few_floor_B, search(x_BRC, ~few_B))
    # The log can round to just above the best value where min_p is 1.
    return jnp.minimum(jnp.maximum(floor_B, min_p_B), best_B)


def _candidates(x_BRC: jax.Array) -> jax.Array:
    """The values among which the `_GROUPS_KEPT` highest of each row are, [B, r, _GROUPS_KEPT].

    Those lie in the groups with the highest maxima: a value of another group has as many values
    above it, or equal, as groups are kept. So another group can hold equals of the lowest of them.
    """
    B, R, C = x_BRC.shape
    rows = next(r for r in (32, 16, 8, 4, 2, 1) if R % r == 0)
    x_BrG = x_BRC.reshape(B, R // rows, rows, C).transpose(0, 2, 1, 3).reshape(B, rows, -1)
    if x_BrG.shape[2] <= _GROUPS_KEPT:
        return x_BrG
    _, group_BK = jax.lax.top_k(jnp.max(x_BrG, axis=1), _GROUPS_KEPT)
    return jnp.take_along_axis(x_BrG, group_BK[:, None, :], axis=2)


def _top_k_floor(x_BRC: jax.Array, best_B: jax.Array, k_B: jax.Array) -> jax.Array:
    """The k-th highest value of each row; -inf where k is 0."""
    wanted_B = jnp.where(k_B > 0, k_B, 1)

    def enough(floor_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        count_B = _sum(x_BRC >= _each(floor_B))
        return count_B >= wanted_B, count_B

    # A floor just below it would keep values between the two which are not among `x_BRC`.
    floor_B = _bisect(x_BRC, best_B, enough)
    value_B = -_max(jnp.where(x_BRC >= _each(floor_B), -x_BRC, -jnp.inf))
    return jnp.where(k_B > 0, value_B, -jnp.inf)


def _top_p_floor(
    x_BRC: jax.Array,
    best_B: jax.Array,
    p_B: jax.Array,
    floor_B: jax.Array,
    more_mass_B: jax.Array,
) -> jax.Array:
    """The floor of the smallest set of likeliest values, of those from `floor_B` up, that has p.

    `more_mass_B` is that of values at the floor which are not among `x_BRC`.
    """
    mass_BRC = jnp.where(x_BRC >= _each(floor_B), jnp.exp(x_BRC - _each(best_B)), 0.0)
    wanted_B = (_sum(mass_BRC) + more_mass_B) * p_B

    def enough(floor_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept_BRC = x_BRC >= _each(floor_B)
        return _sum(jnp.where(kept_BRC, mass_BRC, 0.0)) >= wanted_B, _sum(kept_BRC)

    return jnp.where(p_B < 1, jnp.maximum(_bisect(x_BRC, best_B, enough), floor_B), floor_B)


def _bisect(
    x_BRC: jax.Array,
    best_B: jax.Array,
    enough: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """The highest floor per row that keeps enough; the lowest finite value where none does.

    `enough(floor_B)` gives (whether the values from the floor up are enough, how many they are),
    the first falling as the floor rises. A row is done when its bounds enclose one value, or no
    float lies between them.
    Steps halve the distance and the count of floats in turn: the first is fast on usual logits,
    the second ends after 32 steps whatever they are.
    """
    lowest_B = -_max(jnp.where(x_BRC > -jnp.inf, -x_BRC, -jnp.inf))
    _, all_B = enough(lowest_B)
    best_is_enough_B, top_B = enough(best_B)

    def open_rows(low_B, high_B, low_count_B, high_count_B):
        return (low_count_B - high_count_B > 1) & (low_B + 1 < high_B)

    def one(bounds):
        low_B, high_B, low_count_B, high_count_B, by_distance = bounds
        nearer_B = _ordered(_float(low_B) / 2 + _float(high_B) / 2)
        inside_B = (nearer_B > low_B) & (nearer_B < high_B)
        halved_B = jnp.maximum((low_B >> 1) + (high_B >> 1), low_B + 1)
        middle_B = jnp.where(by_distance & inside_B, nearer_B, halved_B)
        is_enough_B, count_B = enough(_float(middle_B))
        active_B = open_rows(low_B, high_B, low_count_B, high_count_B)
        up_B, down_B = active_B & is_enough_B, active_B & ~is_enough_B
        return (
            jnp.where(up_B, middle_B, low_B),
            jnp.where(down_B, middle_B, high_B),
            jnp.where(up_B, count_B, low_count_B),
            jnp.where(down_B, count_B, high_count_B),
            ~by_distance,
        )

    # Where the best value alone is enough, the bounds meet there. They are kept as integers, since
    # CPUs take the smallest floats for zero when they compare.
    best, lowest = _ordered(best_B), _ordered(lowest_B)
    start = (
        jnp.where(best_is_enough_B, best, lowest),
        best,
        jnp.where(best_is_enough_B, top_B, all_B),
        top_B,
        jnp.bool_(True),
    )
    bounds = jax.lax.while_loop(lambda bounds: jnp.any(open_rows(*bounds[:4])), one, start)
    return _float(bounds[0])


def _ordered(x_B: jax.Array) -> jax.Array:
    """Floats as integers in the same order."""
    bits_B = jax.lax.bitcast_convert_type(x_B, jnp.int32)
    return jnp.where(bits_B < 0, jnp.int32(-(2**31)) - bits_B, bits_B)


def _float(ordered_B: jax.Array) -> jax.Array:
    bits_B = jnp.where(ordered_B < 0, jnp.int32(-(2**31)) - ordered_B, ordered_B)
    return jax.lax.bitcast_convert_type(bits_B, jnp.float32)


# ── The draw ────────────────────────────────────────────────────────────────────────────────────


def _uniform(key_B2: jax.Array, position_B: jax.Array) -> jax.Array:
    """One number in [0, 1) per row, a function of its key and position."""

    def one(key_2: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(one)(key_B2, position_B)


def _draw(mass_BRC: jax.Array, u_B: jax.Array) -> jax.Array:
    """The id at share `u_B` of the mass: first its column, then its row. Never one without mass."""
    C = mass_BRC.shape[2]
    column_BC = jnp.sum(mass_BRC, axis=1)
    column_B, rest_B = _invert(column_BC, u_B * jnp.sum(column_BC, axis=-1))
    within_BR = jnp.take_along_axis(mass_BRC, column_B[:, None, None], axis=2)[:, :, 0]
    row_B, _ = _invert(within_BR, rest_B)
    return row_B * C + column_B


def _invert(mass_BN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index whose cumulative mass exceeds the target, and the target within it."""
    upto_BN = jnp.cumsum(mass_BN, axis=-1)
    index_BN = jnp.broadcast_to(jnp.arange(mass_BN.shape[-1]), mass_BN.shape)
    past_BN = (upto_BN > target_B[:, None]) & (mass_BN > 0)
    # Rounding may leave the target at or beyond the end: then the last index that has mass.
    last_B = jnp.max(jnp.where(mass_BN > 0, index_BN, 0), axis=-1)
    first_B = jnp.min(jnp.where(past_BN, index_BN, mass_BN.shape[-1]), axis=-1)
    index_B = jnp.minimum(first_B, last_B)
    before_BN = jnp.where(index_BN < index_B[:, None], mass_BN, 0.0)
    return index_B, jnp.maximum(target_B - jnp.sum(before_BN, axis=-1), 0.0)


# ── Rows of the vocabulary as matrices [R, C] ───────────────────────────────────────────────────


def _in_columns(x_BV: jax.Array, fill: float = -jnp.inf) -> jax.Array:
    """[B, V] -> [B, R, C], id = r * C + c; filled up with -inf, or False."""
    B, V = x_BV.shape
    fill = False if x_BV.dtype == bool else fill
    x_BV = jnp.pad(x_BV, ((0, 0), (0, -V % _COLUMNS)), constant_values=fill)
    return x_BV.reshape(B, -1, _COLUMNS)


def _each(x_B: jax.Array) -> jax.Array:
    return x_B[:, None, None]


def _max(x_BRC: jax.Array) -> jax.Array:
    return jnp.max(jnp.max(x_BRC, axis=1), axis=-1)


def _sum(x_BRC: jax.Array) -> jax.Array:
    if x_BRC.dtype == bool:
        x_BRC = x_BRC.astype(jnp.int32)
    return jnp.sum(jnp.sum(x_BRC, axis=1), axis=-1)


def _first(here_BRC: jax.Array) -> jax.Array:
    """The lowest id that is True."""
    R, C = here_BRC.shape[1:]
    id_1RC = jnp.arange(R * C, dtype=jnp.int32).reshape(1, R, C)
    return jnp.min(jnp.min(jnp.where(here_BRC, id_1RC, R * C - 1), axis=1), axis=-1)
