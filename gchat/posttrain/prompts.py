"""The order of prompts: batches of a task's items, each a function of (seed, index)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np


def shuffled(items: Sequence[int], size: int, seed: int, index: int) -> np.ndarray:
    """The items of one of endless batches, int64 [size]: each epoch is a shuffle of all of them."""
    epochs, places = np.divmod(np.arange(index * size, (index + 1) * size), len(items))
    batch = np.zeros(size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order = np.random.default_rng([seed, int(epoch)]).permutation(np.asarray(items))
        batch[here] = order[places[here]]
    return batch


@jax.tree_util.register_static
@dataclass(frozen=True)
class Prompts:
    """The items of one batch. It has no arrays: the loop hands it over as it is."""

    index: int
    items: tuple[int, ...]


class PromptOrder:
    """Batches of items without an end: each epoch is a shuffle of all of them.

    Args:
        items: places in the task of those that take part.
        prompts: of a batch.
        seed: of the run.
        step: index of the next batch.
        at_close: called when training has ended.
    """

    def __init__(
        self,
        items: Sequence[int],
        prompts: int,
        seed: int,
        step: int,
        at_close: Callable[[], object] = lambda: None,
    ) -> None:
        self._items, self._prompts, self._seed, self.step = items, prompts, seed, step
        self._at_close = at_close

    def __next__(self) -> Prompts:
        index, self.step = self.step, self.step + 1
        return Prompts(index, tuple(self.row_ids(index).tolist()))

    def row_ids(self, step: int) -> np.ndarray:
        """Places in the task of a batch's items."""
        return shuffled(self._items, self._prompts, self._seed, step)

    def metrics(self, step: int) -> dict[str, float]:
        """Nothing: the update tells of its rollouts."""
        del step
        return {}

    def describe(self) -> str:
        """One sentence on the prompts."""
        return f"prompts: {len(self._items):,} items, {self._prompts} a step"

    def close(self) -> None:
        """Ends what grading has started."""
        self._at_close()
