"""A batch: one pytree from the shards to the loss, whatever the stage.

Shapes: B rows, T time.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

IGNORE = -1
"""Target of a position that is not learned."""


class Batch(NamedTuple):
    """Rows of tokens and what is learned from them; each array [B, T], NumPy or JAX.

    A field that is None is no leaf of the pytree: a program compiled for rows of one stream has no
    argument for segments. An objective says which fields it reads.
    """

    inputs_BT: Any
    """int32 token ids."""
    targets_BT: Any
    """int32 id that each position predicts; IGNORE where nothing is learned."""
    positions_BT: Any = None
    """int32 position of each token in its segment, from 0; None: 0 … T-1."""
    segments_BT: Any = None
    """int32 segment of each token, from 1 in each row, 0 for padding; None: one segment a row."""
    weights_BT: Any = None
    """fp32 weight of each target in the loss; None: 1."""
    more: Mapping[str, Any] | None = None
    """Further arrays [B, T] by name, for the objective that reads them: the log-probabilities of
    another model, advantages."""

    @classmethod
    def padding(cls, rows: int, seq_len: int) -> "Batch":
        """Rows that hold nothing yet: inputs, positions and segments 0, targets IGNORE."""
        inputs, positions, segments = (np.zeros((rows, seq_len), np.int32) for _ in range(3))
        targets = np.full((rows, seq_len), IGNORE, np.int32)
        return cls(inputs, targets, positions, segments)
