"""CORE while training: a few items of each task, every so many steps."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax.sharding import Mesh

from gchat.config import TrainConfig
from gchat.evals.core import bundle as bundles
from gchat.evals.core import evaluate, summary
from gchat.evals.core.tasks import TASKS, VERSIONS
from gchat.score import Scorer
from gchat.tokenizer import Tokenizer


class PeriodicCore:
    """Holds the items of a run's evaluations on CORE.

    Args:
        config: derived; `eval.core_every_steps` is not 0.
        tokenizer: of the run.
        graph: static part of the model.
        mesh: of the parameters.

    Raises:
        GaiaError: the bundle cannot be used.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, graph: Any, mesh: Mesh) -> None:
        self._tokenizer = tokenizer
        self._scorer = Scorer(graph, config, mesh)
        self.bundle = bundles.read(config.eval.core_bundle, TASKS)
        self._plan = evaluate.plan(self.bundle, config.eval.core_max_per_task)

    def describe(self) -> str:
        """One sentence on what is evaluated."""
        said = (
            f"core: {len(self._plan.order):,} items of {len(self.bundle.tasks)} tasks from "
            f"{self.bundle.folder}"
        )
        if self.bundle.missing:
            said += f"; no file for {', '.join(self.bundle.missing)}, so it is no CORE score"
        return said

    def evaluate(
        self, params: Any, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """`eval/core_v1`, `eval/core_v2` and `eval/core/TASK` (accuracy).

        With a part of the tasks their means are `eval/partial_core_v1` and `_v2`.
        `progress` is told (items done, of how many) after each batch.
        """
        counts = evaluate.evaluate(
            self._plan,
            self._tokenizer,
            partial(self._scorer.stream, params),
            progress=lambda state: progress(state.items, state.of),
        )
        return metrics(summary.summary(counts))


def metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """A summary as values for the log."""
    names = [summary.score_name(figures, version) for version in VERSIONS]
    values = {f"eval/{name}": figures[name] for name in names}
    return values | {f"eval/core/{name}": row["accuracy"] for name, row in figures["tasks"].items()}
