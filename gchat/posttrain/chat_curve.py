"""ChatCORE while a stage trains, every `eval.chat_every_steps`."""

from collections.abc import Callable
from typing import Any

from gaia.errors import ConfigError
from gchat.evals.chat.periodic import PeriodicChat
from gchat.posttrain.start import Started
from gchat.run.loop import Alive
from gchat.train_state import graphdef


def chat_curve(started: Started) -> Callable[[Any, Alive], dict[str, float]] | None:
    """(params, alive) -> values for the log; None where it is not asked for.

    Raises:
        ConfigError: it is asked for, and the run is trained on plain text.
    """
    config = started.config
    if not config.eval.chat_every_steps:
        return None
    if started.format is None:
        raise ConfigError(
            f"eval.chat_every_steps is {config.eval.chat_every_steps}, and the data is text",
            "leave it out, or train on conversations",
        )
    plain = started.plain()
    graph = graphdef(plain)
    chat = PeriodicChat(plain, started.tokenizer, started.format, graph, started.mesh)
    print(chat.describe())
    return lambda params, alive: chat.evaluate(started.whole(params), alive)
