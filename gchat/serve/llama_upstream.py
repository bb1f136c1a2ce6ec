"""llama.cpp's server asked by its own `/completion`, with the prompt rendered here.

The prompt goes as ids of the exported run's tokenizer, so that a user's `<|im_end|>` stays text:
llama.cpp would read a special token in a prompt that is text. Everything else of this server
(chats, tools, schemas, log-probabilities, responses) works on it as on a run.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gaia.errors import ConfigError
from gchat.chat_format import ChatFormat
from gchat.engine.grammar import Grammar
from gchat.engine.requests import Event, Finish, Request, TokenLogprob
from gchat.ranges import MAX_SEED
from gchat.serve.errors import ApiError, leaving
from gchat.serve.fair_queue import FairQueue
from gchat.serve.forward import lines
from gchat.serve.local_model import TokenText
from gchat.serve.metrics import Metrics
from gchat.serve.upstream import Address, Turn
from gchat.serve.usage import Usage

_ENDS: dict[str, Finish] = {"limit": "length", "eos": "stop", "word": "stop"}


class Form:
    """A grammar in the place of a request's mask: llama.cpp makes its own of the schema."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def __call__(self) -> Any:
        """Makes no mask: no engine of ours draws the tokens."""
        raise AssertionError("llama.cpp draws the tokens")


@dataclass(eq=False)
class LlamaModel(TokenText):
    """A model that llama.cpp's server runs.

    Attributes:
        name: that requests call it by.
        seq_len: positions that the server gives to one answer and its prompt.
        max_tokens: limit of an answer.
    """

    name: str
    address: Address
    chat_format: ChatFormat
    seq_len: int
    metrics: Metrics
    max_tokens: int = 0
    step: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.tokenizer = self.chat_format.tokenizer
        ends = () if self.chat_format.end_id is None else (self.chat_format.end_id,)
        self.stop_ids = tuple(dict.fromkeys((*self.tokenizer.stop_ids, *ends)))
        self.max_tokens = min(self.max_tokens or self.seq_len, self.seq_len)

    @property
    def queue(self) -> FairQueue:
        """Those who wait."""
        return self.address.queue

    def mask(self, grammar: Grammar | None) -> Callable[[], Any] | None:
        """The form of an answer.

        Raises:
            ConfigError: llama.cpp has no such form.
        """
        if grammar is None:
            return None
        if grammar.kind == "regex":
            raise ConfigError("llama.cpp takes no regex", "give a schema or choices")
        return Form(grammar)

    def ask(
        self,
        holder: str,
        requests: Sequence[Request],
        limit_s: float,
        *,
        calculator: bool,
        ended: Callable[[Usage], None],
    ) -> "LlamaAsked":
        """Asks for all answers to these prompts; arguments as those of `Asked`.

        Raises:
            ApiError: too much waits already, or a prompt is to be scored.
        """
        if any(request.prompt_logprobs is not None for request in requests):
            raise ApiError(
                400, "llama.cpp gives no log-probabilities of prompts; leave echo out",
                param="echo", code="unsupported_parameter",
            )  # fmt: skip
        return LlamaAsked(self, holder, requests, limit_s, ended)

    def end(self) -> None:
        """Ends what is being answered."""
        self.address.leaving.set()


class LlamaAsked:
    """The prompts of one HTTP request at llama.cpp's server; as `asking.Asked` is for an engine."""

    def __init__(
        self,
        model: LlamaModel,
        holder: str,
        requests: Sequence[Request],
        limit_s: float,
        ended: Callable[[Usage], None],
    ) -> None:
        self._model, self._ended = model, ended
        self._events: asyncio.Queue[tuple[int, Event] | ApiError] = asyncio.Queue()
        self._began, self._limit_s = time.monotonic(), limit_s
        self.usage = Usage(prompt_tokens=sum(len(request.ids) for request in requests))
        self._lengths = [len(request.ids) for request in requests]
        self._taken: dict[int, int] = {}  # places of prompts that llama.cpp has, by answer
        samples = [(k, one, i) for k, one in enumerate(requests) for i in range(one.n)]
        self._open = self.count = len(samples)
        self._tasks: list[asyncio.Task[None]] = []
        turns = model.address.line_up(holder, len(samples))
        for index, (turn, sample) in enumerate(zip(turns, samples, strict=True)):
            task = asyncio.ensure_future(self._answer(index, turn, *sample))
            # One that is cancelled before it began never entered its turn.
            task.add_done_callback(lambda _, turn=turn: turn.end())
            self._tasks.append(task)
        self._tasks.append(asyncio.ensure_future(self._watch()))

    async def news(self) -> AsyncIterator[tuple[int, Event]]:
        """Yields (answer, news of it) up to the last of all answers; closing it cancels them.

        Raises:
            ApiError: an answer could not be finished.
        """
        try:
            while self._open:
                try:
                    left = self._limit_s - (time.monotonic() - self._began)
                    async with asyncio.timeout(left):
                        item = await self._events.get()
                except TimeoutError:
                    raise ApiError(504, "the answer took too long and was ended",
                                   code="timeout") from None  # fmt: skip
                if isinstance(item, ApiError):
                    raise item
                index, one = item
                if self.usage.completion_tokens == 0 and (one.ids or one.finish):
                    self._model.metrics.first_token.observe(time.monotonic() - self._began)
                self.usage.completion_tokens += len(one.ids)
                self._model.metrics.tokens.labels(self._model.name, "completion").inc(len(one.ids))
                self.usage.cached_tokens += one.cached
                self._open -= one.finish is not None
                yield index, one
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Closes the connections: llama.cpp then stops."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            read = sum(self._lengths[prompt] for prompt in set(self._taken.values()))
            self._ended(replace(self.usage, prompt_tokens=read))
        self._tasks = []

    async def _watch(self) -> None:
        await self._model.address.leaving.wait()
        self._events.put_nowait(leaving())

    async def _answer(
        self, index: int, turn: Turn, prompt: int, request: Request, sample: int
    ) -> None:
        address, url = self._model.address, f"{self._model.address.root}/completion"

        def note(taken: bool) -> None:
            if taken:
                self._taken[index] = prompt
            else:
                self._taken.pop(index, None)

        try:
            async with turn:
                body = _body(request, sample, self._model.seq_len)
                async with address.post(url, body, note) as response:
                    async for _, data in lines(response.aiter_bytes()):
                        event = self._event(address.parsed(data), request)
                        self._events.put_nowait((index, event))
                        if event.finish is not None:
                            return
            error = ApiError(502, "the upstream's stream broke off before its end; ask again",
                             code="upstream_error")  # fmt: skip
            self._events.put_nowait(error)
        except ApiError as error:
            self._events.put_nowait(error)
        except Exception as error:  # what it sent is not llama.cpp's
            text = f"the upstream's answer is not llama.cpp's ({type(error).__name__})"
            self._events.put_nowait(ApiError(502, text, code="upstream_error"))

    def _event(self, data: dict[str, Any], request: Request) -> Event:
        if data.get("error"):
            hidden = self._model.address.hide(json.dumps(data["error"]))
            raise ApiError(502, f"the upstream: {hidden}", code="upstream_error")
        likely = tuple(_token(one) for one in data.get("completion_probabilities") or ())
        stop = bool(data["stop"])
        ids = () if stop else tuple(int(i) for i in data.get("tokens") or ())
        return Event(
            0, 0, ids, str(data["content"]), likely if request.logprobs is not None else (),
            _ENDS.get(str(data.get("stop_type")), "stop") if stop else None,
            str(data.get("stopping_word") or "") or None if stop else None,
            # What was not evaluated was there already.
            cached=int((data.get("timings") or {}).get("cache_n") or 0) if stop else 0,
        )  # fmt: skip


def _body(request: Request, sample: int, window: int) -> dict[str, Any]:
    """The request in llama.cpp's words; all that it would otherwise choose itself is said."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": [int(i) for i in request.ids],
        "stream": True,
        "n_predict": request.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "seed": (sampling.seed + sample) % (MAX_SEED + 1),
        "stop": list(request.stop),
        "cache_prompt": True,
        "return_tokens": True,
    }
    if sampling.repetition_penalty != 1:
        body["repeat_last_n"] = window  # else of the last 64 tokens only
    if request.logprobs is not None:
        body["n_probs"] = max(1, request.logprobs)
    if request.logit_bias:
        body["logit_bias"] = [[number, value] for number, value in request.logit_bias.items()]
    if isinstance(request.mask, Form):
        grammar = request.mask.grammar
        if grammar.kind == "json":
            body["json_schema"] = json.loads(grammar.text)
        else:
            texts = (json.dumps(one, ensure_ascii=False) for one in json.loads(grammar.text))
            body["grammar"] = f"root ::= {' | '.join(texts)}"
    return body


def _token(one: dict[str, Any]) -> TokenLogprob:
    top = tuple((int(t["id"]), float(t["logprob"])) for t in one.get("top_logprobs") or ())
    return TokenLogprob(int(one["id"]), float(one["logprob"]), top)
