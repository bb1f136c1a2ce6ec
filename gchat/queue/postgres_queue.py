"""A queue in a PostgreSQL database, for many machines: each call is one transaction.

`FOR UPDATE SKIP LOCKED` lets workers lease beside one another, and the server's clock decides
when leases end. What is committed is on the server's disk (its `synchronous_commit` is on unless
somebody turned it off).
"""

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from gaia.errors import ConfigError
from gchat.queue import postgres_schema as sql
from gchat.queue import protocol
from gchat.queue.base import Closing, driver, to_json
from gchat.queue.protocol import Counts, Dead, Facts, Item, Lease, QueueError, Result

_AT_ONCE = 1000


class PostgresQueue(Closing):
    """A queue in a schema of its own, `gaia_queue_NAME`.

    Args:
        url: `postgresql://USER@HOST:5432/DATABASE?name=NAME`, with the driver's own parameters as
            it likes. The password may stand in PGPASSWORD or ~/.pgpass.
        create: make the queue where there is none.
        settings: see `SqliteQueue`.

    Raises:
        ConfigError: no such queue, or one of another version; it stays as it is.
        QueueError: no connection.
    """

    def __init__(
        self, url: str, *, create: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        self._address, name, self.url = _split(url)
        self._psycopg = driver("psycopg", "postgresql")
        self._schema = f"gaia_queue_{name}"
        self._lock = threading.RLock()
        self._connection: Any = None
        self._open(create, dict(settings or {}))

    def _open(self, create: bool, changed: dict[str, str]) -> None:
        with self._transaction() as run:
            # One at a time: two that make the same queue would fail on each other's schema.
            run("SELECT pg_advisory_xact_lock(hashtext(%(s)s))", s=self._schema)
            there = run("SELECT to_regnamespace(%(s)s) IS NOT NULL", s=self._schema).fetchone()[0]
            if not there:
                if not create:
                    raise ConfigError(f"there is no queue at {self.url!r}", "check its name")
                for statement in sql.TABLES.split(";\n"):
                    run(statement)
                defaults = {"attempts": str(protocol.ATTEMPTS), "age_s": str(protocol.AGE_S)}
                changed = {"version": str(protocol.VERSION), **defaults, **changed}
            kept = dict(run("SELECT name, value FROM {s}.settings").fetchall())
            version = kept.get("version", changed.get("version"))
            if version != str(protocol.VERSION):
                raise ConfigError(
                    f"queue {self.url!r} has version {version}, and this program reads "
                    f"{protocol.VERSION}",
                    "finish it with the gaia that made it; it was not changed",
                )
            for key, value in changed.items():
                run(sql.SETTING, name=key, value=value)
            self.settings = {**kept, **changed}
        self._attempts = int(self.settings["attempts"])
        self._age_s = float(self.settings["age_s"])

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────

    def add(self, items: Iterable[Item]) -> int:
        """Adds items whose ids are new; how many."""
        new, part = 0, list[Item]()
        for item in items:
            part.append(item)
            if len(part) == _AT_ONCE:
                new, part = new + self._add(part), []
        return new + (self._add(part) if part else 0)

    def _add(self, items: list[Item]) -> int:
        with self._transaction() as run:
            return run(
                sql.ADD, ids=[item.id for item in items], age=self._age_s,
                payloads=[to_json(item.payload) for item in items],
                priorities=[float(item.priority) for item in items],
            ).rowcount  # fmt: skip

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Lends up to n items, the most urgent first."""
        with self._transaction() as run:
            lost = run(sql.BURY, most=self._attempts).rowcount
            if lost:
                run(sql.COUNT_FAILURE, kind="lease ran out", count=lost)
            run(sql.WAKE, most=self._attempts)
            token = secrets.token_hex(12)
            rows = run(sql.LEASE, n=n, seconds=seconds, worker=worker, token=token).fetchall()
        return [
            Lease(Item(id, json.loads(payload), priority), receipt, attempt, until)
            for _, _, id, payload, priority, receipt, attempt, until in sorted(
                rows, key=lambda row: row[:2]
            )
        ]

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Prolongs a lease to so many seconds from now."""
        with self._transaction() as run:
            return run(sql.EXTEND, seconds=seconds, **_held(lease)).rowcount == 1

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Keeps the result and ends the item, in one transaction."""
        text = to_json(result)
        with self._transaction() as run:
            row = run(sql.COMPLETE, **_held(lease)).fetchone()
            if row is None:
                return run(sql.IS_DONE, **_held(lease)).fetchone() is not None
            run(sql.RESULT, seq=row[0], result=text, cost=protocol.cost_of(result))
        return True

    def fail(
        self,
        lease: Lease,
        reason: str,
        *,
        retry_in: float = 0.0,
        counts: bool = True,
        final: bool = False,
        cost: float = 0.0,
    ) -> bool:
        """Ends an attempt without a result; the last one makes the item dead."""
        unspent = 0 if counts or final else 1
        with self._transaction() as run:
            held = run(
                sql.FAIL, reason=reason.replace("\0", ""), final=final, wait=float(retry_in),
                most=self._attempts, unspent=unspent, **_held(lease),
            ).rowcount == 1  # fmt: skip
            if held:
                run(sql.COUNT_FAILURE, kind=protocol.kind_of(reason).replace("\0", ""), count=1)
                if cost:
                    run(sql.ADD_COST, cost=cost)
            return held

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched."""
        with self._transaction() as run:
            return run(sql.RELEASE, **_held(lease)).rowcount == 1

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of open items whose payload has these values."""
        facts = {"value": float(value), "age": self._age_s, "where": json.dumps(dict(where))}
        with self._transaction() as run:
            rows = run(sql.WITH_NUL).fetchall()
            seqs = [seq for seq, text in rows if protocol.matches(json.loads(text), where)]
            return run(sql.PRIORITY, seqs=seqs, **facts).rowcount

    def counts(self) -> Counts:
        """Items by state."""
        with self._transaction() as run:
            return Counts(*run(sql.COUNTS).fetchone())

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts, rate, cost and failures."""
        with self._transaction() as run:
            counts = Counts(*run(sql.COUNTS).fetchone())
            recent, since_s = run(sql.RECENT, window=window_s).fetchone()
            cost = run("SELECT cost FROM {s}.totals").fetchone()[0]
            oldest_s = run(sql.OLDEST).fetchone()[0]
            failures = run("SELECT kind, count FROM {s}.failures ORDER BY count DESC").fetchall()
            workers = run(sql.WORKERS).fetchall()
        if recent < counts.done:  # there are older ones: it worked through the whole window
            since_s = window_s
        return Facts(counts, recent, since_s, cost, oldest_s, dict(failures), dict(workers))

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results whose number is above `since`, in order of their numbers."""
        while True:
            with self._transaction() as run:
                rows = run(sql.RESULTS, since=since).fetchall()
            for number, id, result in rows:
                since = number
                yield Result(number, id, json.loads(result))
            if not rows:
                return

    def dead(self) -> Iterator[Dead]:
        """Items that were given up, in the order of their adding."""
        with self._transaction() as run:
            rows = run(sql.DEAD).fetchall()
        for _, id, payload, priority, reason, attempts in rows:
            yield Dead(Item(id, json.loads(payload), priority), reason, attempts)

    def revive(self, reason: str | None = None) -> int:
        """Makes dead items wait again, with all their attempts."""
        with self._transaction() as run:
            rows = run(sql.DEAD).fetchall()
            seqs = [row[0] for row in rows if reason in (None, protocol.kind_of(row[4]))]
            return run(sql.REVIVE, seqs=seqs).rowcount

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(Exception):
                    self._connection.close()
            self._connection = None

    # ── Transactions ────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Yields a function that runs a statement; commits at the end."""
        try:
            with self._lock:
                connection = self._connected()
                with connection.transaction(), connection.cursor() as cursor:

                    def run(text: str, **values: Any) -> Any:
                        text = text.replace("{s}", self._schema).replace("{now}", sql.NOW)
                        return cursor.execute(text, values or None)

                    yield run
        except self._psycopg.Error as error:
            text = " ".join(str(error).split())[:300]
            raise QueueError(
                f"queue {self.url!r} does not answer as it should ({text})",
                "check that the server runs, its address and its disk",
            ) from None

    def _connected(self) -> Any:
        """The connection; a new one where the server has closed the last."""
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(
                self._address, autocommit=True, connect_timeout=30,
                application_name="gaia queue",
            )  # fmt: skip
        return self._connection


def _held(lease: Lease) -> dict[str, str]:
    return {"id": lease.item.id, "receipt": lease.receipt}


def _split(url: str) -> tuple[str, str, str]:
    """(address for the driver, name of the queue, address to show: without a password)."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    name = query.pop("name", "gaia")
    if not re.fullmatch(r"[a-z0-9_]{1,40}", name):
        raise ConfigError(f"name {name!r} of the queue", "use lower-case letters, digits and _")
    place = parts.netloc.rpartition("@")[2]
    shown = urlunsplit((parts.scheme, place, parts.path, f"name={name}", ""))
    return urlunsplit(parts._replace(query=urlencode(query))), name, shown
