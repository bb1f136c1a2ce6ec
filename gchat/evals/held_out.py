"""Held-out conversations: loss on the tokens that training would learn, and answers to look at.

Conversations are packed as in training, each a segment of its own, and scored where their masks
hold: answers, calls of tools, and the tokens that end them. The loss is the mean over these; bits
per byte leaves out those that stand for no text.

Shapes: B batch rows, T time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gaia.data.batch import Batch
from gaia.data.loader import iter_examples
from gaia.data.packing import Example, pack_examples
from gaia.errors import DataError
from gchat.config import TrainConfig
from gchat.engine.requests import SamplingConfig
from gchat.evals import bpb
from gchat.evals.periodic import SAMPLE_SLOTS, VALIDATION, encoded_files, make_engine
from gchat.tokenizer import Tokenizer
from gchat.train_step import EVAL_ROWS

QUESTIONS = 4  # held-out conversations whose first question is answered in samples


class HeldOut:
    """Holds a run's validation conversations in packed rows, so that an evaluation only scores.

    Args:
        config: derived.
        tokenizer: of the run.
        graph: static part of the model, without adapters.
        scorer: jitted (params, rows) -> nats [B, T].
        rows: scored at once, over all devices.

    Raises:
        DataError: no conversation is held out, or an evaluation file is missing or empty.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer,
        graph: Any,
        scorer: Callable[[Any, Batch], jax.Array],
        rows: int = EVAL_ROWS,
    ) -> None:
        self._scorer, self._graph, self._tokenizer = scorer, graph, tokenizer
        self._seq_len, self._sample_tokens = config.model.seq_len, config.eval.sample_tokens
        self._token_bytes = tokenizer.token_bytes()
        where = config.data.place
        examples = _up_to(iter_examples(where, "val"), config.eval.tokens)
        if not any(example.loss_mask[1:].any() for example in examples):
            raise DataError(f"{where} holds out no answer to validate on", "prepare it again")
        self._batches = packed(examples, self._seq_len, rows)
        self._files = {
            name: bpb.pack(
                [tokens],
                seq_len=self._seq_len,
                stride=max(1, round(self._seq_len * config.eval.stride_fraction)),
                batch_size=rows,
            )
            for name, tokens in encoded_files(config, tokenizer).items()
        }
        self._questions = [question(example) for example in examples[:QUESTIONS]]

    def validate(
        self, params: Any, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, float]:
        """`eval/val_bpb`, `_loss` and `_perplexity` of the answers, and of each named file."""
        values = self._answers(params, progress).logged(VALIDATION)
        for name, batches in self._files.items():
            score = bpb.evaluate(
                lambda rows: self._scorer(params, rows), batches, self._token_bytes, progress
            )
            values |= score.logged(name)
        return values

    def _answers(self, params: Any, progress: Callable[[int, int], None]) -> bpb.Score:
        """Score of the answers: the loss of all learned tokens, the bits of those with text."""
        nats = text_nats = 0.0
        bytes_ = tokens = 0
        for i, batch in enumerate(self._batches):
            nll_BT = np.asarray(self._scorer(params, batch), np.float64)
            learned_BT = batch.targets_BT >= 0
            bytes_BT = np.where(learned_BT, self._token_bytes[batch.targets_BT.clip(0)], 0)
            nats += float(nll_BT[learned_BT].sum())
            text_nats += float(nll_BT[bytes_BT > 0].sum())
            bytes_ += int(bytes_BT.sum())
            tokens += int(learned_BT.sum())
            progress(i + 1, len(self._batches))
        return bpb.Score(text_nats / (math.log(2) * max(1, bytes_)), nats / tokens, tokens, bytes_)

    def sample(self, params: Any) -> str:
        """Greedy answers to the first questions, beside the held-out ones."""
        fitting = [
            (asked, answer) for asked, answer in self._questions if len(asked) < self._seq_len
        ]
        if not fitting:
            return ""
        longest = max(len(asked) for asked, _ in fitting) + self._sample_tokens
        engine = make_engine(
            self._graph,
            params,
            self._tokenizer,
            min(longest, self._seq_len),
            slots=min(len(fitting), SAMPLE_SLOTS),
        )
        answers = engine.generate(
            [asked for asked, _ in fitting],
            max_new_tokens=self._sample_tokens,
            sampling=SamplingConfig(temperature=0.0),
        )
        decode = self._tokenizer.decode
        return "\n".join(
            f"{decode(asked)} →{decode(ids)!r} (held out: {decode(answer)!r})"
            for (asked, answer), ids in zip(fitting, answers, strict=True)
        )


def packed(examples: Sequence[Example], seq_len: int, batch_size: int) -> list[Batch]:
    """Examples in packed rows, in batches of one size; the last one is filled with padding."""
    rows = pack_examples(examples, seq_len)
    empty = Batch.padding(-len(rows.inputs_BT) % batch_size, seq_len)
    inputs, targets, positions, segments = (
        np.concatenate(pair) for pair in zip(rows[:4], empty[:4], strict=True)
    )
    batches = []
    for first in range(0, len(inputs), batch_size):
        here = slice(first, first + batch_size)
        batches.append(Batch(inputs[here], targets[here], positions[here], segments[here]))
    return batches


def question(example: Example) -> tuple[list[int], list[int]]:
    """Ids up to the first learned one, and those of the answer that follows."""
    learned = np.flatnonzero(example.loss_mask)
    if not len(learned):
        return [], []
    first = int(learned[0])
    end = first
    while end < len(example.loss_mask) and example.loss_mask[end]:
        end += 1
    return example.tokens[:first].tolist(), example.tokens[first:end].tolist()


def _up_to(examples: Iterable[Example], limit: int) -> list[Example]:
    """Whole examples from the front, about `limit` tokens in all, at least one."""
    taken, left = [], limit
    for example in examples:
        if left <= 0:
            break
        taken.append(example)
        left -= len(example.tokens)
    return taken
