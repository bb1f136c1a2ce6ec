"""The stage that midtraining and fine-tuning share: next tokens of conversations or of text."""

from gchat.evals.held_out import HeldOut
from gchat.evals.periodic import Evaluator
from gchat.posttrain.chat_curve import chat_curve
from gchat.posttrain.start import Started
from gchat.run.loop import Stage
from gchat.train_state import graphdef
from gchat.train_step import changing_step, eval_rows, make_scorer, make_train_step


def supervised(started: Started) -> Stage:
    """Trains on what the data's masks let be learned, validated on what it holds out.

    Conversations are measured by their answers (`HeldOut`), text as in pretraining.

    Raises:
        ConfigError: a size does not divide over the mesh.
        DataError: nothing is held out.
    """
    config, mesh, graph, data = started.config, started.mesh, started.graph, started.data
    assert data is not None
    evaluator_of = Evaluator if started.format is None else HeldOut
    evaluator = evaluator_of(
        config,
        started.tokenizer,
        graphdef(started.plain()),
        make_scorer(graph, config, mesh),
        rows=eval_rows(mesh, config.model.seq_len),
    )
    return Stage(
        mesh=mesh,
        init=started.init,
        blank=started.blank,
        update=make_train_step(graph, config, mesh),
        update_at=changing_step(graph, config, mesh),
        batches=lambda index: data.loader(config, index, mesh),
        evaluate=evaluator.validate,
        sample=lambda params: evaluator.sample(started.whole(params)),
        chat=chat_curve(started),
    )
