"""Answers that are being written: saved, then shown to every tab that follows them."""

import asyncio
import contextlib
import json
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from gchat.serve.errors import ApiError
from gchat.serve.site.asking_models import Told
from gchat.serve.site.database import Unavailable
from gchat.serve.site.faults import Fault
from gchat.serve.site.journal import Journal

_KEPT = 4 << 20
"""Bytes of events that are kept for tabs that come back; older ones get the whole instead."""
_QUICK_S = 0.02
"""A rendering that takes longer is not done between the requests of others."""
MOST_RUNNING = 4
"""Answers that a user may have written at once."""
_log = logging.getLogger("gchat.serve")

Write = Callable[["Answer"], AsyncIterator[str]]


def encoded(number: int, name: str, data: Any) -> bytes:
    """One server-sent event with its number."""
    text = f"id: {number}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    # Halves of characters were replaced where they came in; one that was not must end no stream.
    return text.encode("utf-8", "replace")


class Answer:
    """One answer that is being written.

    Attributes:
        text: that is saved, and so may be shown.
        n: number of the last piece that is saved.
        sources: pages that the answer may quote.
    """

    def __init__(self, user_id: str, conversation_id: str, message_id: str, growing: Any) -> None:
        self.user_id, self.conversation_id = user_id, conversation_id
        self.message_id = message_id
        self.text, self.n, self.pieces = "", 0, 0
        self.sources = list[Any]()
        self.told = Told()
        self._growing = growing
        self._later: asyncio.Task[None] | None = None
        self._events: deque[tuple[int, bytes]] = deque()
        self._size, self._first = 0, 1
        self._number = 0
        self._news = asyncio.Event()
        self.over = False
        self.stopped = asyncio.Event()
        self.problem: str | None = None
        """Says why it ended without being done."""

    def show(self, name: str, data: Any) -> None:
        """Gives an event to all who follow."""
        self._number += 1
        event = encoded(self._number, name, data)
        self._events.append((self._number, event))
        self._size += len(event)
        while self._size > _KEPT and len(self._events) > 1:
            self._size -= len(self._events.popleft()[1])
            self._first = self._events[0][0]
        self._news.set()
        self._news = asyncio.Event()

    def unsaved(self, problem: str) -> None:
        """Notes that a piece could not be saved: the answer ends."""
        self.problem = problem
        self.stopped.set()

    def saved(self, n: int, text: str) -> None:
        """Shows a piece that has been saved."""
        self.text += text
        self.n = n
        change = self._growing.add(text, render=self._growing.cost_s < _QUICK_S)
        self.show("delta", {"text": text, "n": self.n, **change})
        if self._growing.wait_s is not None and self._later is None:
            self._later = asyncio.create_task(self._render_later())

    async def _render_later(self) -> None:
        """Shows the HTML that waits when it is due, rendered beside all that others ask for."""
        while (wait_s := self._growing.wait_s) is not None:
            await asyncio.sleep(wait_s)
            if self._growing.wait_s == 0:
                made = await asyncio.to_thread(self._growing.begin())
                self.show("delta", {"text": "", "n": self.n, **self._growing.take(made)})
        self._later = None

    def end(self, name: str, data: Any) -> None:
        """Shows the last event, which has the whole text's HTML."""
        self.over = True
        if self._later is not None:
            self._later.cancel()
        self.show(name, data)

    async def follow(self, after: int | None) -> AsyncIterator[bytes]:
        """Yields events after a number, and then all that come; without one, all so far at once."""
        if after is None or after + 1 < self._first or after > self._number:
            after = self._number
            if not self.over:
                whole = {"text": self.text, "n": self.n, **self._growing.snapshot()}
                yield encoded(after, "delta", whole)
                if self.sources:
                    yield encoded(after, "sources", self.sources)
            else:
                after -= 1
        while True:
            news = self._news
            # Events are numbered without gaps; a reader that fell behind what is kept begins anew.
            if after + 1 < self._first:
                whole = {"text": self.text, "n": self.n, **self._growing.snapshot()}
                after = self._number - 1 if self.over else self._number
                yield encoded(after, "delta", whole)
                continue  # more may have come, and gone, before it was read
            # Counted from the end: a long answer has thousands that every reader has read.
            for number, event in [self._events[i] for i in range(after - self._number, 0)]:
                yield event
                after = number
            if self.over and after >= self._number:
                return
            if after >= self._number:
                await news.wait()


class Answers:
    """All answers that are being written.

    Args:
        journal: that saves them.
        growing: makes what renders a growing text.
        shown: makes the JSON of a message that has ended.
    """

    def __init__(
        self,
        journal: Journal,
        growing: Callable[[], Any],
        shown: Callable[[str, str], Awaitable[dict[str, Any]]],
    ) -> None:
        self._journal, self._growing, self._shown = journal, growing, shown
        self.running: dict[str, Answer] = {}
        self._beginning = Counter[str]()  # by user
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors = 0
        self.tokens = 0

    @contextlib.contextmanager
    def place(self, user_id: str) -> Iterator[None]:
        """Keeps a place for an answer until it has begun.

        Raises:
            Fault: the user has too many answers written already.
        """
        mine = sum(one.user_id == user_id for one in self.running.values())
        if mine + self._beginning[user_id] >= MOST_RUNNING:
            raise Fault(429, f"{MOST_RUNNING} answers are being written for you already",
                        after_s=5)  # fmt: skip
        self._beginning[user_id] += 1
        try:
            yield
        finally:
            self._beginning[user_id] -= 1
            if not self._beginning[user_id]:
                del self._beginning[user_id]

    def begin(self, user_id: str, conversation_id: str, message_id: str, write: Write) -> Answer:
        """Begins to write an answer: it goes on whether anybody follows or not."""
        one = Answer(user_id, conversation_id, message_id, self._growing())
        self.running[message_id] = one
        task = asyncio.create_task(self._begun(one, write), name=f"answer {message_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return one

    def of(self, user_id: str, message_id: str) -> Answer | None:
        """The answer of this message, if it is this user's and being written."""
        one = self.running.get(message_id)
        return one if one is not None and one.user_id == user_id else None

    async def stop(self, chosen: Callable[[Answer], bool]) -> int:
        """Stops answers, and waits for their ends to be saved; returns their number."""
        which = [one for one in self.running.values() if chosen(one)]
        for one in which:
            one.stopped.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                for one in which:
                    while not one.over:
                        await one._news.wait()
        return len(which)

    async def close(self, patience_s: float) -> None:
        """Waits for answers; those that take longer end with what they have."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            for one in self.running.values():
                one.problem = one.problem or "the server is shutting down"
                one.stopped.set()
            if late:
                await asyncio.wait(late, timeout=15)

    async def _begun(self, one: Answer, write: Write) -> None:
        try:
            await self._write(one, write)
        finally:  # whatever happened: a place that stays taken is one less for this user
            self.running.pop(one.message_id, None)

    async def _write(self, one: Answer, write: Write) -> None:
        saved: asyncio.Queue[str | None] = asyncio.Queue()
        written, status, error = "", "done", None
        pieces = write(one)
        try:
            async for text in _until(pieces, one.stopped):
                written += text
                self._journal.piece(one, text)
            status, error = ("failed", one.problem) if one.problem else ("done", None)
            if one.stopped.is_set() and not one.problem:
                status = "stopped"
        except (ApiError, Fault) as problem:
            status, error = "failed", problem.message
        except Unavailable as problem:
            status, error = "failed", str(problem)
        except Exception:
            _log.exception("an answer failed")
            status, error = "failed", "an error of the server; its log has it"
        finally:
            with contextlib.suppress(Exception):
                await pieces.aclose()  # type: ignore[attr-defined]
        self.errors += status == "failed"
        self.tokens += one.told.tokens
        row = {"user_id": one.user_id, "message_id": one.message_id, "content": written,
               "status": status, "error": error, "tokens": one.told.tokens,
               "sources": one.sources}  # fmt: skip
        self._journal.end(row, saved.put_nowait)
        failed = await saved.get()
        await self._show_end(one, row, error, failed)

    async def _show_end(
        self, one: Answer, row: dict[str, Any], error: str | None, failed: str | None
    ) -> None:
        try:
            message = await self._shown(one.user_id, one.message_id)
        except Exception:  # the database is gone still: what is known here must do
            message = {"message": {"id": one.message_id, "role": "assistant", "parent": None,
                                   "content": one.text, "status": row["status"]}}  # fmt: skip
        problem = error or failed
        if problem is not None:
            one.end("error", {"message": problem, "saved": message["message"]})
        else:
            one.end("end", message)


async def _until(pieces: AsyncIterator[str], stopped: asyncio.Event) -> AsyncIterator[str]:
    """The pieces until an event, also while none comes."""
    stopping = asyncio.ensure_future(stopped.wait())
    coming: asyncio.Future[str] | None = None
    try:
        while not stopped.is_set():
            coming = asyncio.ensure_future(_next(pieces))
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            try:
                text = coming.result()
            except StopAsyncIteration:
                return
            yield text
    finally:
        for task in (stopping, coming):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _next(pieces: AsyncIterator[str]) -> str:
    return await anext(pieces)
