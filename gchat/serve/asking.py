"""Questions to an engine from the event loop: what waits, what runs, and what comes back."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from gaia.errors import GaiaError
from gchat.engine.requests import Event, Request
from gchat.engine.tools import Piece
from gchat.serve.driver import Driver
from gchat.serve.errors import ApiError, leaving, printable
from gchat.serve.fair_queue import FairQueue
from gchat.serve.metrics import Metrics
from gchat.serve.usage import Usage

News = Event | Piece


def said(news: News) -> str:
    """Text of an answer that is meant for people: not what goes to the calculator and back."""
    return news.text if getattr(news, "kind", "text") == "text" else ""


class Model(Protocol):
    """An engine and those who wait for it, as `gchat.serve.local_model` has them."""

    name: str
    queue: FairQueue
    driver: Driver
    metrics: Metrics
    asked: "set[Asked]"

    def submit(
        self, request: Request, listener: Callable[[News], None], *, calculator: bool
    ) -> Callable[[], None]:
        """Gives a request to the engine; returns what cancels it."""
        ...


class Asked:
    """The prompts of one HTTP request at one engine; its answers are numbered prompt by prompt.

    Args:
        model: that is asked.
        holder: of the key that came with the request.
        requests: one for each prompt, n samples each.
        limit_s: seconds after which the answers are broken off.
        calculator: lets the answers call it, where the model can.
        ended: is told the tokens that were used, once: prompts that never had their turn were not.

    Attributes:
        usage: tokens so far.

    Raises:
        ApiError: too much waits already; nothing was begun.
    """

    def __init__(
        self,
        model: Model,
        holder: str,
        requests: Sequence[Request],
        limit_s: float,
        *,
        calculator: bool = False,
        ended: Callable[[Usage], None] = lambda usage: None,
    ) -> None:
        self._model, self._holder, self._ended = model, holder, ended
        self._events: asyncio.Queue[tuple[int, News] | ApiError] = asyncio.Queue()
        self._began = time.monotonic()
        self.usage = Usage(prompt_tokens=sum(len(request.ids) for request in requests))
        first, self._jobs = 0, list[_Job]()
        for request in requests:
            for part in _parts(request, model.queue.slots):
                self._jobs.append(_Job(model, part, first, calculator, self._events.put_nowait))
                first += part.n
        self._open = self.count = first
        model.queue.add(holder, list(self._jobs))
        model.asked.add(self)
        loop = asyncio.get_running_loop()  # one timer: one for each piece would be dear
        self._timer = loop.call_later(limit_s, self.abort, _too_slow(limit_s))

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """Yields (answer, news of it) up to the last of all answers; closing it cancels them.

        Raises:
            ApiError: an answer could not be finished.
        """
        try:
            while self._open:
                index, news = await self._next()
                if news.finish == "error":
                    raise ApiError(500, f"the answer ended: {printable(news.error)}")
                if news.finish == "cancelled":
                    raise leaving()
                self._note(news)
                yield index, news
        finally:
            self.cancel()

    async def _next(self) -> tuple[int, News]:
        item = await self._events.get()
        if isinstance(item, ApiError):
            raise item
        return item

    def _note(self, news: News) -> None:
        metrics = self._model.metrics
        if self.usage.completion_tokens == 0 and (news.ids or news.finish):
            metrics.first_token.observe(time.monotonic() - self._began)
        self.usage.completion_tokens += len(news.ids)
        metrics.tokens.labels(self._model.name, "completion").inc(len(news.ids))
        if news.finish is not None:
            self._open -= 1
            self.usage.cached_tokens += news.cached

    def cancel(self) -> None:
        """Ends what still waits or runs."""
        if self not in self._model.asked:
            return
        self._model.asked.discard(self)
        self._timer.cancel()
        read = sum(job.prompt_tokens for job in self._jobs)
        self._ended(replace(self.usage, prompt_tokens=read))
        for job in reversed(self._jobs):  # else each would begin as the one before it leaves
            job.cancel(self._holder)

    def abort(self, error: ApiError) -> None:
        """Makes `news` raise this error."""
        self._events.put_nowait(error)


def _parts(request: Request, most: int) -> list[Request]:
    """A request in parts of samples that fit into an engine at once: others' turns lie between."""
    parts = [
        replace(request, first=request.first + at, n=min(most, request.n - at))
        for at in range(0, request.n, most)
    ]
    return [parts[0], *(replace(part, prompt_logprobs=None) for part in parts[1:])]


def _too_slow(limit_s: float) -> ApiError:
    return ApiError(
        504, f"the answer took longer than {limit_s:.0f} s and was ended", code="timeout"
    )


class _Job:
    """One prompt: in the queue, at the engine, or done."""

    def __init__(
        self,
        model: Model,
        request: Request,
        first: int,
        calculator: bool,
        tell: Callable[[tuple[int, News] | ApiError], None],
    ) -> None:
        self.samples = self._left = request.n
        self._model, self._request, self._first, self._tell = model, request, first, tell
        self._calculator = calculator
        self._loop = asyncio.get_running_loop()
        self._cancel: Callable[[], None] | None = None
        self._began = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that the engine was given; its further samples find it read."""
        return len(self._request.ids) if self._began and not self._request.first else 0

    def begin(self) -> None:
        self._began = time.monotonic()
        try:
            self._cancel = self._model.submit(
                self._request, self._from_engine, calculator=self._calculator
            )
        except GaiaError as error:
            self._tell(ApiError(400, printable(str(error))))
            self._left = 0
            self._loop.call_soon(self._model.queue.ended, self.samples, 0.0)

    def _from_engine(self, news: News) -> None:
        """Hears from the engine, in its thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._hear, news)

    def _hear(self, news: News) -> None:
        if news.finish is not None:
            self._left -= 1
            self._model.queue.ended(1, time.monotonic() - self._began)
        self._tell((self._first + news.index, news))

    def cancel(self, holder: str) -> None:
        if self._cancel is None:
            self._model.queue.leave(holder, self)
        elif self._left:
            self._cancel()
            self._model.driver.wake()
