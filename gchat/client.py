"""The one way to ask a model, wherever it runs: what is asked, what is answered, what it may cost.

    client.complete(Question(messages=(Message("user", "Hello"),), max_tokens=50)).text
    for delta in client.stream(question): ...
    for index, answer in client.batch(questions): ...

`gchat.engine_client` asks the engine in this process, `gchat.endpoint_client` any URL that speaks
OpenAI's protocol. Everything that asks a model takes a `Client`.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from gaia.errors import ConfigError, GaiaError
from gchat.chat_format import Message, Part, check
from gchat.engine.grammar import Grammar
from gchat.engine.requests import SamplingConfig


class ClientError(GaiaError):
    """A question that got no answer.

    Attributes:
        status: HTTP status, 0 where there was none.
        fatal: the next question would fare no better: a wrong key, no connection, a spent budget.
        after_s: seconds after which a later try may fare better, as the endpoint says; 0 where it
            does not say, None where no waiting helps.
        cause: how a connection ended: "away" (none came about), "time-out" or "broken off"; empty
            where it did not.
    """

    exit_status = 1

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        *,
        status: int = 0,
        fatal: bool = False,
        after_s: float | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(problem, remedy)
        self.status, self.fatal = status, fatal
        self.after_s, self.cause = after_s, cause


@dataclass(frozen=True)
class Question:
    """A prompt to continue, or a conversation to answer: exactly one of the two."""

    prompt: str | None = None
    """Text to continue."""
    messages: tuple[Message, ...] = ()
    """Conversation whose next message is wanted."""
    max_tokens: int = 128
    """Limit of the tokens to add."""
    sampling: SamplingConfig = SamplingConfig()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it."""
    n: int = 1
    """Answers to the same question."""
    logprobs: int | None = None
    """Log-probability of each token, and of this many most likely ones beside it."""
    grammar: Grammar | None = None
    """Form that the answer must have."""

    def check(self) -> None:
        """Raises ConfigError naming the field that cannot work anywhere."""
        if (self.prompt is None) == (not self.messages):
            raise ConfigError("a question has neither or both of prompt and messages", "give one")
        if self.messages:
            check(self.messages)
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}", "use at least 1")
        if self.n < 1:
            raise ConfigError(f"n is {self.n}", "use at least 1")
        if self.logprobs is not None and self.logprobs < 0:
            raise ConfigError(f"logprobs is {self.logprobs}", "use 0 or more")
        self.sampling.check()


@dataclass(frozen=True)
class Token:
    """A token of an answer and its log-probability, as `gchat.engine.requests` defines it.

    An endpoint has a definition of its own; vLLM's and OpenAI's are before any penalty.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens at its place with their log-probabilities, in order."""


@dataclass(frozen=True)
class Usage:
    """Tokens that were read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that were not read again."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class Choice:
    """One answer."""

    text: str
    finish: str
    """"stop", "length", or an endpoint's own reason such as "content_filter"."""
    tokens: tuple[Token, ...] = ()
    """Filled where the question asks for log-probabilities."""
    parts: tuple[Part, ...] = ()
    """The answer with its calls of tools; empty where there was none."""


@dataclass(frozen=True)
class Answer:
    """All answers to one question."""

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    model: str = ""

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text


@dataclass(frozen=True)
class Delta:
    """News of one answer as it grows; the last one of each has `finish`."""

    index: int = 0
    text: str = ""
    kind: str = "text"
    """"text", or "call" and "output" of a tool."""
    finish: str | None = None
    tokens: tuple[Token, ...] = ()
    usage: Usage | None = None
    """In one of the last deltas."""


class Client(Protocol):
    """Asks one model. Thread-safe."""

    model: str
    """Name of the model, for records."""
    converses: bool
    """Messages get tags around them; else they are one text that goes on."""

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a step of decoding gave an answer on average; None without speculation."""
        ...

    def check(self, question: Question) -> None:
        """Raises ConfigError where the question cannot be asked here; asks nothing."""
        ...

    def fit(self, question: Question) -> tuple[Question, int, bool]:
        """The question as it fits the model; how many old messages went; if a message was cut."""
        ...

    def complete(self, question: Question) -> Answer:
        """Asks, and waits for the whole answer.

        Raises:
            ConfigError: the question cannot be asked here.
            ClientError: no answer came.
        """
        ...

    def stream(self, question: Question) -> Iterator[Delta]:
        """Asks, and yields pieces as they come; closing the iterator ends the answer."""
        ...

    def batch(self, questions: Iterable[Question]) -> Iterator[tuple[int, Answer | GaiaError]]:
        """Asks many at once; yields (index, answer or error) in the order of their ends.

        Questions are taken from the iterable as there is room. A fatal error is raised.
        """
        ...

    def close(self) -> None:
        """Lets go of connections and memory."""
        ...


def joined(deltas: Iterable[Delta], n: int, model: str) -> Answer:
    """The answer that the deltas of a stream make up.

    Raises:
        ClientError: one of `n` answers has no end.
    """
    text: list[list[Delta]] = [[] for _ in range(n)]
    usage = Usage()
    for delta in deltas:
        text[delta.index].append(delta)
        usage = delta.usage or usage
    choices = []
    for pieces in text:
        finish = next((piece.finish for piece in pieces if piece.finish is not None), None)
        if finish is None:
            raise ClientError("an answer broke off", "ask again")
        parts = _parts(pieces)
        choices.append(
            Choice(
                "".join(piece.text for piece in pieces if piece.kind == "text"),
                finish,
                tuple(token for piece in pieces for token in piece.tokens),
                parts if any(part.kind != "text" for part in parts) else (),
            )
        )
    return Answer(tuple(choices), usage, model)


def _parts(pieces: Iterable[Delta]) -> tuple[Part, ...]:
    """Neighbours of one kind become one part."""
    parts: list[Part] = []
    for piece in pieces:
        if not piece.text:
            continue
        if parts and parts[-1].kind == piece.kind:
            parts[-1] = Part(parts[-1].kind, parts[-1].text + piece.text)
        else:
            parts.append(Part(piece.kind, piece.text))  # type: ignore[arg-type]
    return tuple(parts)


@dataclass
class Budget:
    """Caps on what a client may spend, counted over all its threads."""

    max_requests: int | None = None
    """Limit of the requests sent, repetitions of failed ones included."""
    max_tokens: int | None = None
    """Limit of the tokens of prompts and answers, as the endpoint counts them."""
    max_cost: float | None = None
    """Limit of the US dollars that they cost."""
    prompt_price: float = 0.0
    """US dollars for a million tokens of prompts."""
    completion_price: float = 0.0
    """US dollars for a million tokens of answers."""
    requests: int = 0
    tokens: int = 0
    cost: float = 0.0
    """US dollars spent; of those spent before, where work goes on."""
    _reserved: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, answer_tokens: int) -> None:
        """Notes a request that is about to be sent, whose answer is at most so long.

        Raises:
            ClientError: a cap would be passed; nothing may be sent.
        """
        with self._lock:
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise ClientError(
                    f"the budget of {self.max_requests:,} requests is spent",
                    "raise --max-requests to go on",
                    fatal=True,
                )
            most = self.tokens + self._reserved + answer_tokens
            if self.max_tokens is not None and most > self.max_tokens:
                raise ClientError(
                    f"the next answer may pass the budget of {self.max_tokens:,} tokens "
                    f"({self.tokens:,} are spent)",
                    "raise --max-total-tokens to go on",
                    fatal=True,
                )
            reserved = (self._reserved + answer_tokens) * self.completion_price / 1e6
            if self.max_cost is not None and self.cost + reserved > self.max_cost:
                raise ClientError(
                    f"the next answer may pass the budget of ${self.max_cost:,.2f} "
                    f"(${self.cost:,.4f} are spent)",
                    "raise --max-cost to go on",
                    fatal=True,
                )
            self.requests += 1
            self._reserved += answer_tokens

    def end(self, answer_tokens: int, usage: Usage) -> None:
        """Notes what the request of `begin` has cost in the end."""
        with self._lock:
            self._reserved -= answer_tokens
            self.tokens += usage.prompt_tokens + usage.completion_tokens
            self.cost += usage.prompt_tokens * self.prompt_price / 1e6
            self.cost += usage.completion_tokens * self.completion_price / 1e6
