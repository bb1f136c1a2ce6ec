"""ChatCORE while training: a few items of each task, every so many steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from gaia.errors import ConfigError
from gchat.chat_format import ChatFormat
from gchat.config import TrainConfig
from gchat.engine.engine import Engine
from gchat.engine.tools import Tools, has_tools
from gchat.engine_client import EngineClient
from gchat.evals.chat import entries, evaluate, summary
from gchat.evals.periodic import make_engine
from gchat.evals.results import Record
from gchat.score import Scorer
from gchat.tokenizer import Tokenizer

SLOTS = 8  # answers that are decoded at once


class PeriodicChat:
    """Holds the items of a run's evaluations on ChatCORE.

    Args:
        config: derived; `eval.chat_every_steps` is not 0.
        tokenizer: of the run.
        chat_format: that the run is trained on.
        graph: static part of the model.
        mesh: of the parameters.

    Raises:
        GaiaError: a task cannot be opened, or cannot be graded on this machine.
        ConfigError: there are several processes, and the engine works in one.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        graph: Any,
        mesh: Mesh,
    ) -> None:
        if jax.process_count() > 1:
            raise ConfigError(
                f"eval.chat_every_steps is {config.eval.chat_every_steps} on "
                f"{jax.process_count()} hosts",
                "use 0 there, and `gchat eval chat` on one",
            )
        self._tokenizer, self._format, self._graph = tokenizer, chat_format, graph
        self._seq_len = config.model.seq_len
        self._scorer = Scorer(graph, config, mesh)
        chosen = config.eval
        self._writing = evaluate.Writing(max_tokens=chosen.chat_max_tokens)
        self._writing.check()
        self.tasks = entries.opened(
            chosen.chat_tasks, chosen.chat_max_per_task, chosen.chat_max_written
        )
        made = entries.entries(self.tasks)
        self._choices = [entry for entry in made if entry.task.kind == "choice"]
        self._written = [entry for entry in made if entry.task.kind == "generate"]

    def describe(self) -> str:
        """One sentence on what is evaluated."""
        counts = ", ".join(f"{len(task)} of {task.name}" for task in self.tasks)
        return f"chat: {len(self._choices) + len(self._written):,} items ({counts})"

    def evaluate(
        self, params: Any, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """`eval/chatcore` and `eval/chat/TASK` (accuracy).

        `progress` is told (items done, of how many) after each batch.
        """
        records: list[Record] = []
        total = len(self._choices) + len(self._written)

        def take(made: list[Record]) -> None:
            records.extend(made)
            progress(len(records), total)

        stream = partial(self._scorer.stream, params)
        scored = evaluate.scored(self._choices, stream, self._format)
        evaluate.evaluate([("choices", len(self._choices), scored)], record=take)
        if self._written:
            engine = make_engine(
                self._graph, params, self._tokenizer, self._seq_len,
                slots=min(SLOTS, len(self._written)),
            )  # fmt: skip
            client = engine_client(engine, self._tokenizer, self._format)
            answered = evaluate.answered(self._written, client, self._writing)
            evaluate.evaluate([("answers", len(self._written), answered)], record=take)
        return summary.metrics(summary.summary(self.tasks, records))


def engine_client(
    engine: Engine, tokenizer: Tokenizer, chat_format: ChatFormat, *, model: str = "run"
) -> EngineClient:
    """A client whose answers call the calculator where the tokenizer has the tags for it."""
    calls = chat_format.kind == "native" and has_tools(tokenizer)
    tools = Tools(tokenizer) if calls else None
    return EngineClient(engine, tokenizer, chat_format, model=model, slots=SLOTS, tools=tools)
