"""Answers to prompts, sampled from the parameters of a training step, with their log-probabilities.

The engine is made once and takes each step's parameters (`Engine.use`): nothing is compiled again,
and what it held of the step before is forgotten. What an answer is depends on the parameters, its
prompt and its seed alone, and its seed on (seed of the run, batch, prompt): a resumed run samples
what it would have sampled.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gaia.errors import ConfigError, GaiaError
from gchat.chat_format import ChatFormat, Message, Part
from gchat.engine.engine import Engine
from gchat.engine.requests import Event, Request, SamplingConfig, TokenLogprob
from gchat.engine.tools import Piece, Tools, ToolStream, has_tools
from gchat.posttrain.policy import Rollout

News = Event | Piece
Alive = Callable[[int, int], None]


@dataclass
class _Sample:
    """One answer as it grows."""

    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    ended: bool = False

    def take(self, news: News) -> None:
        forced = isinstance(news, Piece) and news.forced
        self._add(news.ids, news.logprobs, forced)
        kind = news.kind if isinstance(news, Piece) else "text"
        if news.text and self.parts and self.parts[-1].kind == kind:
            self.parts[-1] = Part(kind, self.parts[-1].text + news.text)
        elif news.text:
            self.parts.append(Part(kind, news.text))
        if isinstance(news.stopped_by, int) and news.finish is not None:
            # The token that ends an answer is the model's choice like any other.
            assert news.stop_logprob is not None
            self._add((news.stopped_by,), (news.stop_logprob,), False)
            self.ended = True

    def _add(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob], forced: bool) -> None:
        self.ids += ids
        self.chosen += [not forced] * len(ids)
        self.logprobs += [0.0] * len(ids) if forced else [one.logprob for one in logprobs]

    def message(self) -> Message:
        """The answer as people and tasks read it."""
        text = "".join(part.text for part in self.parts if part.kind == "text")
        called = any(part.kind != "text" for part in self.parts)
        return Message("assistant", text, tuple(self.parts) if called else ())

    def rollout(self, prompt: tuple[int, ...]) -> Rollout:
        return Rollout(
            prompt,
            tuple(self.ids),
            tuple(self.chosen),
            tuple(self.logprobs),
            self.message(),
            self.ended,
        )


class Sampler:
    """Draws groups of answers with an engine.

    Args:
        engine: made with `decode_bytes`.
        chat_format: of the model.
        max_new_tokens: limit of an answer.
    """

    def __init__(self, engine: Engine, chat_format: ChatFormat, max_new_tokens: int) -> None:
        self.engine, self._format, self._limit = engine, chat_format, max_new_tokens
        tokenizer = chat_format.tokenizer
        tools = chat_format.kind == "native" and has_tools(tokenizer)
        self._tools = Tools(tokenizer) if tools else None
        ends = () if chat_format.end_id is None else (chat_format.end_id,)
        self._stop_ids = tuple(dict.fromkeys((*ends, *engine.stop_ids)))

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a question, up to where the answer begins.

        Raises:
            ConfigError: it leaves no room for an answer of the asked length.
        """
        ids = tuple(self._format.prompt(messages))
        if len(ids) + self._limit > self.engine.seq_len:
            raise ConfigError(
                f"a prompt of {len(ids)} tokens and rl.max_new_tokens {self._limit} do not fit "
                f"model.seq_len {self.engine.seq_len}",
                "lower --rl.max-new-tokens",
            )
        return ids

    def draw(
        self, params: Any, prompts: Sequence[tuple[int, ...]], *, samples: int, temperature: float,
        seeds: Sequence[int], alive: Alive = lambda done, total: None,
    ) -> list[list[Rollout]]:  # fmt: skip
        """Groups of `samples` answers to each prompt.

        Args:
            params: of the model, as it is trained.
            prompts: ids, from `prompt`.
            samples: answers to each.
            temperature: 0 for the likeliest answer.
            seeds: of each prompt.
            alive: called with (answers that have ended, of how many).

        Raises:
            GaiaError: an answer could not be finished.
        """
        self.engine.use(params)
        news: queue.SimpleQueue[tuple[int, News]] = queue.SimpleQueue()
        for g, (ids, seed) in enumerate(zip(prompts, seeds, strict=True)):
            sampling = SamplingConfig(temperature=temperature, seed=seed)
            self._submit(ids, sampling, samples, lambda one, g=g: news.put((g, one)))
        groups = [[_Sample() for _ in range(samples)] for _ in prompts]
        total = open_samples = len(prompts) * samples
        while open_samples:
            while news.empty():
                self.engine.step()
            g, one = news.get()
            if one.finish == "error":
                raise GaiaError(f"a rollout ended: {one.error}", "see whether the loss diverged")
            groups[g][one.index].take(one)
            if one.finish is not None:
                open_samples -= 1
                alive(total - open_samples, total)
        self.engine.use(None)  # the update wants the memory
        return [
            [sample.rollout(ids) for sample in group]
            for ids, group in zip(prompts, groups, strict=True)
        ]

    def _submit(
        self, ids: tuple[int, ...], sampling: SamplingConfig, samples: int,
        listener: Callable[[News], None],
    ) -> None:  # fmt: skip
        request = Request(
            ids, self._limit, sampling, stop_ids=self._stop_ids, n=samples, logprobs=0
        )
        if self._tools is None:
            self.engine.submit(request, listener)
        else:
            ToolStream(self.engine, self._tools, request, listener)


def seeds(run_seed: int, batch: int, count: int) -> list[int]:
    """A seed for each prompt of a batch, a function of the run's seed and the batch's index."""
    words = np.random.SeedSequence([run_seed, batch]).generate_state(count)
    return [int(word) for word in words]
