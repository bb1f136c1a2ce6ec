"""A queue in one SQLite file, for all processes of one machine.

Each call is one transaction (`BEGIN IMMEDIATE`) in WAL mode with `synchronous = NORMAL`, which
leaves the log unsynced until a checkpoint. Where a call must outlive a power cut (added items,
results, failures) it returns after an fsync of the log that began after its commit, as with
`synchronous = FULL`; but threads that wait at once share one (`group_sync`). Leases, which a power
cut ends anyway, are not waited for. A killed process loses neither.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gaia.errors import ConfigError
from gchat.queue import protocol
from gchat.queue import sqlite_schema as sql
from gchat.queue.base import Closing, to_json
from gchat.queue.group_sync import GroupSync
from gchat.queue.protocol import Counts, Dead, Facts, Item, Lease, QueueError, Result

_BUSY_S = 60.0  # another process may hold the file so long before we give up
_AT_ONCE = 1000  # items that are added in one transaction


class SqliteQueue(Closing):
    """A queue in a file.

    Args:
        path: of the file.
        create: make it where it is not there.
        settings: values to keep in a new queue, or to change in this one: attempts, age_s, results.
        sync: "normal" leaves the syncing of results and failures to SQLite's checkpoints, here and
            now: a power cut may undo the newest ones, whose items are then done again.

    Raises:
        ConfigError: there is no file, or it is no queue, or one of another version; it stays as
            it is.
        QueueError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        settings: Mapping[str, str] | None = None,
        sync: str = "full",
    ) -> None:
        self.url, self._path = f"sqlite:{path}", path
        self._lock = threading.Lock()
        self._is_full = sync == "full"
        # SQLite holds no lock on the log, so closing our handle of it frees none.
        self._log = GroupSync(path.with_name(f"{path.name}-wal"))
        self._check(create)
        with self._explained():
            self._db = self._connect()
            self._prepare(dict(settings or {}))
            self.settings = dict(self._db.execute("SELECT name, value FROM settings"))
        self._attempts = int(self.settings["attempts"])
        self._age_s = float(self.settings["age_s"])

    def _check(self, create: bool) -> None:
        """Refuses what is no queue of ours, without a byte being written."""
        path = self._path
        if not path.exists():
            if not create:
                raise ConfigError(f"there is no queue at {str(path)!r}", "check the path")
            if not path.parent.is_dir():
                raise ConfigError(f"the folder {str(path.parent)!r} does not exist", "make it")
            return
        if not path.is_file():
            raise ConfigError(f"queue {str(path)!r} is no file", "name a file, such as work.queue")
        if path.stat().st_size == 0:  # made by a process that died, or by one that is just here
            return
        application, version = self._header()
        log = path.with_name(f"{path.name}-wal")
        if not application and (version or log.exists()):
            # A program that has it open, or was killed, leaves the newest header in the log.
            application, version = self._read_through_log()
        if application == sql.APPLICATION:
            self._check_version(version)
        elif application or version or self._has_tables():
            raise ConfigError(f"{str(path)!r} is a database, but no queue", "name another file")

    def _header(self) -> tuple[int, int]:
        """Application and version that the file's header names; sqlite.org/fileformat2.html.

        SQLite itself would leave a -wal and a -shm beside a file that it only reads.
        """
        with open(self._path, "rb") as file:
            head = file.read(100)
        if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
            problem = f"queue {str(self._path)!r}: file is not a database"
            raise ConfigError(problem, "check the path")
        return int.from_bytes(head[68:72]), int.from_bytes(head[60:64])

    def _read_through_log(self) -> tuple[int, int]:
        with self._reader() as reader:
            names = ("application_id", "user_version")
            application, version = (
                reader.execute(f"PRAGMA {name}").fetchone()[0] for name in names
            )
        return application, version

    def _has_tables(self) -> bool:
        with self._reader() as reader:
            return reader.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        uri = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        with self._explained(), contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
            yield reader

    def _check_version(self, version: int) -> None:
        if version != protocol.VERSION:
            raise ConfigError(
                f"queue {str(self._path)!r} has version {version}, and this program reads "
                f"{protocol.VERSION}",
                "finish it with the gaia that made it; it was not changed",
            )

    def _connect(self) -> sqlite3.Connection:
        made = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA synchronous = NORMAL")
        made.create_function("matches", 2, _matches, deterministic=True)
        made.create_function("kind_of", 1, protocol.kind_of, deterministic=True)
        return made

    def _prepare(self, changed: dict[str, str]) -> None:
        """Makes the tables in one transaction, unless another process was faster."""
        with self._synced(), self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version:  # the header may still lie in the log that a killed process left
                self._check_version(version)
            else:
                for statement in sql.TABLES.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {sql.APPLICATION}")
                db.execute(f"PRAGMA user_version = {protocol.VERSION}")
                defaults = {"attempts": str(protocol.ATTEMPTS), "age_s": str(protocol.AGE_S)}
                changed = {**defaults, "made": str(time.time()), **changed}
            db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", changed.items())

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────

    def add(self, items: Iterable[Item]) -> int:
        """Adds items whose ids are new; how many. They are on the disk when it returns."""
        new, part = 0, list[Item]()
        for item in items:
            part.append(item)
            if len(part) == _AT_ONCE:
                new, part = new + self._add(part), []
        return new + self._add(part)

    def _add(self, items: list[Item]) -> int:
        now = time.time()
        rows = [
            (one.id, to_json(one.payload), one.priority, now, now - one.priority * self._age_s)
            for one in items
        ]
        if not rows:
            return 0
        with self._synced(), self._on() as db:
            before = db.total_changes
            db.executemany(sql.ADD, rows)
            return db.total_changes - before

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Lends up to n items, the most urgent first."""
        now = time.time()
        with self._on() as db:
            lost = db.execute(sql.BURY, {"now": now, "most": self._attempts}).fetchall()
            if lost:
                db.execute(sql.COUNT_FAILURE, ("lease ran out", len(lost), 0.0))
            db.execute(sql.WAKE, {"now": now})
            asked = {"until": now + seconds, "worker": worker, "n": n}
            rows = sorted(db.execute(sql.LEASE, asked).fetchall())
        return [
            Lease(Item(id, json.loads(payload), priority), receipt, attempt, until)
            for _, _, id, payload, priority, receipt, attempt, until in rows
        ]

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Prolongs a lease to so many seconds from now."""
        with self._on() as db:
            until = time.time() + seconds
            return db.execute(sql.EXTEND, (until, lease.item.id, lease.receipt)).rowcount == 1

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Keeps the result and ends the item, in one transaction."""
        held = (lease.item.id, lease.receipt)
        text, cost = to_json(result), protocol.cost_of(result)
        with self._synced(self._is_full), self._on() as db:
            row = db.execute(sql.COMPLETE, held).fetchone()
            if row is None:
                return db.execute(sql.IS_DONE, held).fetchone() is not None
            db.execute(sql.RESULT, (row[0], text, cost, time.time()))
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
        facts = {
            "id": lease.item.id, "receipt": lease.receipt, "reason": reason, "final": final,
            "wait": retry_in, "now": time.time(), "most": self._attempts,
            "unspent": 0 if counts or final else 1,
        }  # fmt: skip
        with self._synced(self._is_full), self._on() as db:
            held = db.execute(sql.FAIL, facts).rowcount == 1
            if held:
                db.execute(sql.COUNT_FAILURE, (protocol.kind_of(reason), 1, cost))
            return held

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched."""
        with self._on() as db:
            return db.execute(sql.RELEASE, (lease.item.id, lease.receipt)).rowcount == 1

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of open items whose payload has these values."""
        facts = {"value": value, "age_s": self._age_s, "where": to_json(dict(where))}
        with self._synced(), self._on() as db:
            return db.execute(sql.PRIORITY, facts).rowcount

    def counts(self) -> Counts:
        """Items by state."""
        with self._reading() as db:
            return Counts(*db.execute(sql.COUNTS, {"now": time.time()}).fetchone())

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts, rate, cost and failures."""
        now = time.time()
        with self._reading() as db:
            counts = Counts(*db.execute(sql.COUNTS, {"now": now}).fetchone())
            recent, first = 0, now
            newest_first = "SELECT finished FROM results ORDER BY number DESC"
            for (finished,) in db.execute(newest_first):
                if finished <= now - window_s:
                    first = now - window_s
                    break
                recent, first = recent + 1, min(first, finished)
            cost = db.execute(
                "SELECT (SELECT total(cost) FROM results) + (SELECT total(cost) FROM failures)"
            ).fetchone()[0]
            oldest = db.execute(
                "SELECT min(added) FROM items WHERE state = 0 UNION ALL "
                "SELECT min(added) FROM items WHERE state IN (1, 2) AND state = 1"
            ).fetchall()
            waits = [now - added for (added,) in oldest if added is not None]
            failures = dict(db.execute("SELECT kind, count FROM failures ORDER BY count DESC"))
            workers = db.execute(
                "SELECT worker, count(*) FROM items WHERE state IN (1, 2) AND state = 2 "
                "AND due > ? GROUP BY worker ORDER BY worker", (now,),
            )  # fmt: skip
            longest = max(waits, default=0.0)
            return Facts(counts, recent, now - first, cost, longest, failures, dict(workers))

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results whose number is above `since`, in order of their numbers."""
        text = (
            "SELECT number, id, result FROM results JOIN items USING (seq) WHERE number > ? "
            "ORDER BY number LIMIT 1000"
        )
        while True:  # what is handed on here is never undone, so it is synced first
            with self._synced(self._is_full), self._reading() as db:
                rows = db.execute(text, (since,)).fetchall()
            for number, id, result in rows:
                since = number
                yield Result(number, id, json.loads(result))
            if not rows:
                return

    def dead(self) -> Iterator[Dead]:
        """Items that were given up, in the order of their adding."""
        text = (
            "SELECT id, payload, priority, reason, attempts FROM items WHERE state = 4 ORDER BY seq"
        )
        with self._reading() as db:
            rows = db.execute(text).fetchall()
        for id, payload, priority, reason, attempts in rows:
            yield Dead(Item(id, json.loads(payload), priority), reason, attempts)

    def revive(self, reason: str | None = None) -> int:
        """Makes dead items wait again, with all their attempts."""
        with self._synced(), self._on() as db:
            return db.execute(sql.REVIVE, {"kind": reason}).rowcount

    def close(self) -> None:
        """Closes the file; what is committed stays."""
        with self._lock:
            self._log.close()
            with contextlib.suppress(sqlite3.Error):
                self._db.close()

    # ── Transactions ────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _on(self) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._lock, self._transaction() as db:
            yield db

    @contextlib.contextmanager
    def _synced(self, is_needed: bool = True) -> Iterator[None]:
        """Ends when the transactions of its body are on the disk; others may work meanwhile."""
        yield
        if is_needed:
            try:
                self._log.wait()
            except OSError as error:
                problem = f"queue {str(self._path)!r} cannot be synced ({error.strerror})"
                raise QueueError(problem, "check the disk; start again") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One snapshot; nothing is written."""
        with self._explained(), self._lock:
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back by itself after some errors
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text or "I/O" in text:
                remedy = "make room on the disk and start again: nothing is lost"
            elif "not a database" in text or "malformed" in text:
                remedy = "name another file, or restore it from a copy"
            elif "locked" in text:
                remedy = "another program holds the file; end it"
            else:
                remedy = "check the file and its folder"
            problem = f"queue {str(self._path)!r} cannot be used ({text})"
            raise QueueError(problem, remedy) from error


def _matches(payload: str, where: str) -> bool:
    return protocol.matches(json.loads(payload), json.loads(where))
