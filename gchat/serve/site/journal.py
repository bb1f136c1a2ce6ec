"""Saves pieces of all answers that are being written, many in one commit, before they are shown.

While a commit runs, further pieces gather: a slow disk makes pieces larger, and loses none.
What the database does not take is tried again; nothing of it has been shown yet.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa

from gchat.serve.site import messages
from gchat.serve.site.database import Database, Unavailable

PATIENCE_S = 60.0
"""Time without a commit after which answers are given up."""
GATHER_S = 0.03
"""Pieces that come within this time are saved and shown together."""
_log = logging.getLogger("gchat.serve")


class Author(Protocol):
    """One who writes an answer, and hears what became of his pieces."""

    message_id: str
    pieces: int
    """Number of his pieces so far."""

    def saved(self, n: int, text: str) -> None:
        """Hears that a piece is saved."""
        ...

    def unsaved(self, problem: str) -> None:
        """Hears that a piece cannot be saved."""
        ...


@dataclass
class Piece:
    """Text that waits to be saved."""

    author: Author
    n: int
    text: str


@dataclass
class Batch:
    """The contents of one commit, and who is told of the ends in it."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    ends: list[dict[str, Any]] = field(default_factory=list)
    told: list[Callable[[str | None], None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pieces or self.ends)

    def bits(self) -> list["Batch"]:
        """The batch in batches of one piece or end each."""
        told = self.told or [lambda problem: None] * len(self.ends)
        made = [Batch({name: piece}) for name, piece in self.pieces.items()]
        return made + [Batch({}, [end], [one]) for end, one in zip(self.ends, told, strict=True)]

    def done(self) -> None:
        """Tells all that they are saved."""
        for piece in self.pieces.values():
            piece.author.saved(piece.n, piece.text)
        for told in self.told:
            told(None)

    def give_up(self, problem: str) -> None:
        """Tells all that they are not saved; ends are kept, to be saved without anybody waiting."""
        for piece in self.pieces.values():
            piece.author.unsaved(problem)
        for told in self.told:
            told(problem)
        self.pieces, self.told = {}, []


class Journal:
    """The one writer of answers.

    Args:
        database: that is written.
        patience_s: time without a commit after which waiting pieces are given up.
    """

    def __init__(self, database: Database, patience_s: float = PATIENCE_S) -> None:
        self._database, self._patience_s = database, patience_s
        self._next = Batch()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.failing_since: float | None = None
        """Time of the first of the commits that have failed since one worked."""

    def start(self) -> None:
        """Begins to save."""
        self._task = asyncio.create_task(self._run(), name="journal")

    def piece(self, author: Author, text: str) -> None:
        """Saves a piece, together with what the author has waiting."""
        waiting = self._next.pieces.get(author.message_id)
        if waiting is not None:
            waiting.text += text
        else:
            author.pieces += 1
            self._next.pieces[author.message_id] = Piece(author, author.pieces, text)
        self._news.set()

    def end(self, row: dict[str, Any], told: Callable[[str | None], None]) -> None:
        """Saves the end of an answer: arguments of `messages.end_answer`. Tried for ever."""
        self._next.ends.append(row)
        self._next.told.append(told)
        self._news.set()

    async def close(self) -> None:
        """Saves what is there, and ends; what the database does not take now stays unsaved."""
        self._closing = True
        self._news.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            if not self._closing:
                await asyncio.sleep(GATHER_S)
            self._news.clear()
            batch, self._next = self._next, Batch()
            if batch:
                await self._save(batch)
            if self._closing and not self._next:
                return

    async def _save(self, batch: Batch) -> None:
        pause_s = 0.1
        while batch:
            try:
                await self._database.write(_save, batch)
            except Unavailable as error:
                reason = self._failed(error)
            except Exception:
                _log.exception("answers could not be saved")
                await self._apart(batch)
                return
            else:
                self.failing_since = None
                batch.done()
                return
            since = time.monotonic() - (self.failing_since or 0)
            if since > self._patience_s:
                batch.give_up(reason)
            if self._closing and since > min(5.0, self._patience_s):
                batch.give_up(reason)
                _log.error("answers could not be saved to their ends: %s", reason)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)

    async def _apart(self, batch: Batch) -> None:
        """Saves a batch that cannot be saved as a whole bit by bit, so that one spoils no other."""
        bits = batch.bits()
        if len(bits) == 1:
            batch.give_up("the answer could not be saved")
            return
        for bit in bits:
            await self._save(bit)

    def _failed(self, error: Unavailable) -> str:
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            _log.warning("answers wait to be saved: %s", error)
        return str(error)


def _save(c: sa.Connection, batch: Batch) -> None:
    rows = [
        {"message_id": piece.author.message_id, "n": piece.n, "text": piece.text}
        for piece in batch.pieces.values()
    ]
    messages.save_pieces(c, rows)
    for row in batch.ends:
        messages.end_answer(c, **row)
