"""The state of a running site."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from gchat.serve.service import Service
from gchat.serve.site import accounts, messages
from gchat.serve.site.answers import Answers
from gchat.serve.site.attempts import Attempts
from gchat.serve.site.database import Database, Unavailable
from gchat.serve.site.faults import Fault
from gchat.serve.site.journal import PATIENCE_S, Journal
from gchat.serve.site.passwords import Passwords
from gchat.serve.site.quotas import Quotas
from gchat.serve.site.rendered import Rendered
from gchat.serve.site.shapes import message_json
from gchat.serve.site.window import Fitted, fit

Row = dict[str, Any]
_log = logging.getLogger("gchat.serve")


@dataclass(frozen=True)
class Rules:
    """Settings of a site that do not change while it runs.

    Attributes:
        single_user: the one who is let in without a password; None where accounts are needed.
        context: tokens that models read whose server does not say.
        max_bytes: of a request's body.
    """

    name: str = "gchat"
    registration: str = "closed"
    single_user: str | None = None
    context: int | None = None
    max_bytes: int = 4 << 20


@dataclass(eq=False)
class Site:
    """One site.

    Attributes:
        growing: makes what renders a growing text.
        find: pages of the web for a query; None where it is off.
        quote: text of pages, as data before a question.
        recent: seconds to the first token of the newest answers, and whether they failed.
    """

    service: Service
    database: Database
    passwords: Passwords
    quotas: Quotas
    rules: Rules
    render: Callable[[str], str]
    growing: Callable[[], Any]
    find: Callable[[str], Awaitable[Sequence[Any]]] | None = None
    quote: Callable[[Sequence[Any], int], str] = lambda sources, most: ""
    list_sources: Callable[[Sequence[Any]], list[Any]] = lambda sources: []
    patience_s: float = PATIENCE_S
    attempts: Attempts = field(default_factory=Attempts)
    registrations: Attempts = field(
        default_factory=lambda: Attempts(free=20, said="too many new accounts; try again later")
    )
    began: float = field(default_factory=time.monotonic)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=500))

    def __post_init__(self) -> None:
        self.journal = Journal(self.database, self.patience_s)
        self.answers = Answers(self.journal, self.growing, self.ended_json)
        self.html = Rendered(self.render)
        self._background: list[asyncio.Task[None]] = []

    # ── Life ────────────────────────────────────────────────────────────────────────────────────

    async def start(self, *tasks: Callable[["Site"], Awaitable[None]]) -> None:
        """Ends what a former server left unfinished, and begins to work."""
        interrupted = await self.database.write(messages.end_interrupted)
        if interrupted:
            _log.warning("%d answers had been interrupted; they are marked", interrupted)
        self.journal.start()
        for task in tasks:
            self._background.append(asyncio.create_task(self._often(task)))

    async def close(self) -> None:
        """Ends answers, saves what there is, and closes the database."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.answers.close(0.0)
        await self.journal.close()
        with contextlib.suppress(Exception):
            await self.quotas.save()
        self.passwords.close()
        self.database.close()

    async def _often(self, task: Callable[["Site"], Awaitable[None]]) -> None:
        while True:
            try:
                await task(self)
            except Unavailable as error:
                _log.warning("%s", error)
                await asyncio.sleep(1)
            except Exception:
                _log.exception("a task of the site failed")
                await asyncio.sleep(1)

    # ── Models ──────────────────────────────────────────────────────────────────────────────────

    def model(self, name: str | None) -> Any:
        """A model by name, or the first; Fault where there is none of this name."""
        models = self.service.models
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise Fault(409, "the model of this conversation is not served any more; choose one",
                        "model")  # fmt: skip
        return models[name]

    def context_of(self, model: Any) -> int | None:
        """Tokens that a model reads with its answer; None where nobody knows."""
        return self.rules.context if model.seq_len is None else model.seq_len

    async def fitted(self, conversation: Row, rows: Sequence[Row]) -> Fitted:
        """The prompt of a branch of a conversation."""
        model = self.model(conversation["model"])
        limit = conversation["sampling"].get("max_tokens")
        return await run_in_threadpool(
            fit, model, self.context_of(model), conversation["system"], rows, limit
        )

    async def context(self, conversation: Row, rows: Sequence[Row]) -> dict[str, Any]:
        """The context meter of a branch; a branch that cannot be asked has one too."""
        try:
            return (await self.fitted(conversation, rows)).context()
        except Fault:
            limit = None
            with contextlib.suppress(Fault):
                limit = self.context_of(self.model(conversation["model"]))
            return {"used": limit or 0, "limit": limit, "dropped_before": None}

    # ── JSON ────────────────────────────────────────────────────────────────────────────────────

    async def branch_json(self, rows: dict[str, Row], leaf: str | None) -> list[dict[str, Any]]:
        """The messages of a branch."""
        branch, kin = messages.path(rows, leaf), messages.siblings(rows)

        def made() -> list[dict[str, Any]]:
            return [
                message_json(row, self.html(row["content"]), kin[row["parent"]]) for row in branch
            ]

        return await run_in_threadpool(made)

    async def ended_json(self, user_id: str, message_id: str) -> dict[str, Any]:
        """An answer that has ended, and the context meter after it."""

        def read(c: sa.Connection) -> tuple[Row, dict[str, Row]]:
            from gchat.serve.site import conversations

            row = messages.owned(c, user_id, message_id)
            there = conversations.one(c, user_id, row["conversation_id"])
            return there, messages.tree(c, row["conversation_id"])

        there, rows = await self.database.read(read)
        branch = await self.branch_json(rows, message_id)
        context = await self.context(there, messages.path(rows, message_id))
        return {"message": branch[-1], "context": context}

    def user_json(self, user: accounts.User) -> dict[str, Any]:
        """The facts of a user that he may know."""
        return {"name": user.name, "role": user.role, "quota": user.quota,
                "settings": user.settings or {}}  # fmt: skip
