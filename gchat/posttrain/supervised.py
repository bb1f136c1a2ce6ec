"""The stage that midtraining and fine-tuning share: next tokens of conversations or of text."""

from dataclasses import replace
from typing import Any

from gaia.adapters import merged
from gaia.errors import ConfigError
from gchat.evals.chat.periodic import PeriodicChat
from gchat.evals.held_out import HeldOut
from gchat.evals.periodic import EVAL_ROWS, Evaluator
from gchat.posttrain.start import Started
from gchat.run.loop import Stage
from gchat.train_state import graphdef
from gchat.train_step import make_scorer, make_train_step


def supervised(started: Started) -> Stage:
    """Trains on what the data's masks let be learned, validated on what it holds out.

    Conversations are measured by their answers (`HeldOut`), text as in pretraining.

    Raises:
        ConfigError: a size does not divide over the mesh.
        DataError: nothing is held out.
    """
    config, mesh, graph, data = started.config, started.mesh, started.graph, started.data
    assert data is not None
    plain = replace(config, model=config.model.without_adapters())
    plain_graph = graphdef(plain)
    evaluator_of = Evaluator if started.format is None else HeldOut
    evaluator = evaluator_of(
        config,
        started.tokenizer,
        plain_graph,
        make_scorer(graph, config, mesh),
        rows=EVAL_ROWS * mesh.size,
    )
    chat = None
    if config.eval.chat_every_steps:
        if started.format is None:
            raise ConfigError(
                f"eval.chat_every_steps is {config.eval.chat_every_steps}, and the data is text",
                "leave it out, or train on conversations",
            )
        chat = PeriodicChat(plain, started.tokenizer, started.format, plain_graph, mesh)
        print(chat.describe())

    def whole(params: Any) -> Any:
        """Parameters as others than the update take them: with adapters merged."""
        return merged(params, config.model.lora_scale) if config.model.lora_rank else params

    return Stage(
        mesh=mesh,
        init=started.init,
        blank=started.blank,
        update=make_train_step(graph, config, mesh),
        batches=lambda index: data.loader(config, index, mesh),
        evaluate=evaluator.validate,
        sample=lambda params: evaluator.sample(whole(params)),
        chat=chat and (lambda params, alive: chat.evaluate(whole(params), alive)),
    )
