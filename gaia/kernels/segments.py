"""Segments and prefix trees: which tokens of a packed row see each other.

Shapes: B rows, T tokens of a row, S keys, Q queries of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Trie(NamedTuple):
    """Rows in which sequences that begin alike share their beginning, as in a prefix tree.

    A token is seen by what comes after it in the row up to `ends`, so it lies once in a row for all
    the sequences that go through it. A document packed alone is a trie without branches.
    """

    ends_BT: jax.Array
    """int32 index in the row, behind the last token that continues this one."""
    positions_BT: jax.Array
    """int32 position of each token in its sequence, which sliding windows are measured in."""


Segments = jax.Array | Trie
"""Ids of segments [B, T], or a trie."""


def seen_through(
    q: Segments,
    k: Segments,
    queries: slice,
    keys: slice,
    row0: jax.Array | int,
    window: int | None,
) -> jax.Array:
    """Mask [B, Q, S] of the keys that are of each query's segment, or that it continues.

    Args:
        q: of the queries' rows.
        k: of the keys' rows.
        queries: of the block.
        keys: of the block.
        row0: place of the block's first query among the keys.
        window: a query of a trie sees itself and the `window - 1` positions before it.
    """
    if isinstance(q, Trie) or isinstance(k, Trie):
        assert isinstance(q, Trie) and isinstance(k, Trie)  # both are of the same rows
        return _continued(q, k, queries, keys, row0, window)
    return q[:, queries, None] == k[:, None, keys]


def _continued(
    q: Trie, k: Trie, queries: slice, keys: slice, row0: jax.Array | int, window: int | None
) -> jax.Array:
    ends_B1S = k.ends_BT[:, None, keys]
    shape = (1, queries.stop - queries.start, ends_B1S.shape[2])
    seen_BQS = row0 + jax.lax.broadcasted_iota(jnp.int32, shape, 1) < ends_B1S
    if window is not None:
        first_BQ1 = q.positions_BT[:, queries, None] - window
        seen_BQS &= k.positions_BT[:, None, keys] > first_BQ1
    return seen_BQS
