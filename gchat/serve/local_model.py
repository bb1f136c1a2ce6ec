"""A trained run behind the server: its engine, its tokenizer, and who waits for it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gchat.chat_format import ChatFormat
from gchat.engine.engine import Engine
from gchat.engine.grammar import Grammar, Matcher, Vocabulary
from gchat.engine.requests import Request
from gchat.engine.tools import Tools, ToolStream
from gchat.serve.asking import Asked
from gchat.serve.driver import Driver
from gchat.serve.errors import leaving
from gchat.serve.fair_queue import FairQueue
from gchat.serve.metrics import Metrics
from gchat.serve.usage import Usage
from gchat.tokenizer import Tokenizer


class TokenText:
    """Text and ids of a model that has a tokenizer here."""

    tokenizer: Tokenizer

    def ids(self, text: str) -> list[int]:
        """Ids of a text that begins a document; what looks like a special token stays text."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def text_of(self, number: int) -> str:
        """Text of one id, broken characters as U+FFFD."""
        return self.bytes_of(number).decode("utf-8", "replace")

    def bytes_of(self, number: int) -> bytes:
        """Bytes of one id; padding has none."""
        ids: Sequence[int] = [number] if 0 <= number < self.tokenizer.vocab_size else []
        return self.tokenizer.decode_bytes(ids)


@dataclass(eq=False)
class LocalModel(TokenText):
    """One model by name.

    Attributes:
        name: that requests call it by.
        step: of the checkpoint.
        tools: the calculator, where answers may call it.
        max_tokens: limit of an answer.
        asked: HTTP requests that are being answered.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_format: ChatFormat
    queue: FairQueue
    driver: Driver
    metrics: Metrics
    step: int = 0
    tools: Tools | None = None
    max_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    asked: set[Asked] = field(default_factory=set)

    def __post_init__(self) -> None:
        ends = () if self.chat_format.end_id is None else (self.chat_format.end_id,)
        self.stop_ids = tuple(dict.fromkeys((*self.engine.stop_ids, *ends)))
        self.vocabulary = Vocabulary(self.tokenizer, self.stop_ids)
        self.max_tokens = min(self.max_tokens or self.seq_len, self.seq_len)

    @property
    def seq_len(self) -> int:
        """Positions for prompt and answer together."""
        return self.engine.seq_len

    def mask(self, grammar: Grammar | None) -> Callable[[], Matcher] | None:
        """The `mask` of a request whose answer must follow a grammar.

        Raises:
            ConfigError: the grammar cannot be compiled, or no text fulfils it.
            GaiaError: the library for grammars is not installed.
        """
        if grammar is None:
            return None
        Matcher(grammar, self.vocabulary)
        return lambda: Matcher(grammar, self.vocabulary)

    def ask(
        self,
        holder: str,
        requests: Sequence[Request],
        limit_s: float,
        *,
        calculator: bool,
        ended: Callable[[Usage], None],
    ) -> Asked:
        """Queues the prompts of one HTTP request; arguments as those of `Asked`.

        Raises:
            ApiError: too much waits already.
        """
        return Asked(self, holder, requests, limit_s, calculator=calculator, ended=ended)

    def submit(
        self, request: Request, listener: Callable[[Any], None], *, calculator: bool
    ) -> Callable[[], None]:
        """Gives a request to the engine; returns what cancels it."""
        if calculator and self.tools is not None and request.mask is None:
            cancel = ToolStream(self.engine, self.tools, request, listener).cancel
        else:
            cancel = self.engine.submit(request, listener).cancel
        self.driver.wake()
        return cancel

    def end(self) -> None:
        """Ends what is being answered: the time to finish it is over."""
        for asked in list(self.asked):
            asked.abort(leaving())
