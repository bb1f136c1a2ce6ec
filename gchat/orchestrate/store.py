"""The state of an orchestrator: one SQLite file, each change one transaction.

Workloads wait, run, are done, have failed or were stopped. A turn is begun here before anything is
started, and ended here after nothing of it is left; what a kill leaves open between the two is
settled from the turn's own result (`warden.py`) or, without one, was lost and waits again.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gaia.errors import ConfigError, GaiaError
from gchat.orchestrate.plan import Workload

FILE, VERSION = "orchestrate.db", 1
State = Literal["waiting", "running", "done", "failed", "stopped"]
Outcome = Literal["done", "yielded", "failed", "lost"]
FIRST_PAUSE_S = 5.0
LOST_IN_A_ROW = 5
"""Turns in a row that may be lost before a workload counts as failed: it may kill its machine."""
_TABLES = """
create table meta (key text primary key, value text not null);
create table workload (
    name text primary key, place integer not null, spec text not null, origin text not null,
    state text not null default 'waiting', since real not null, not_before real not null default 0,
    turns integer not null default 0, runs integer not null default 0,
    covered integer not null default 0, failures integer not null default 0,
    lost integer not null default 0, seconds real not null default 0,
    message text not null default ''
);
create table turn (
    id integer primary key autoincrement, workload text not null, command text not null,
    began real not null, ended real, outcome text, result text, memory text
);
create table request (id integer primary key, kind text not null, workload text not null);
"""


class StateError(GaiaError):
    """The state cannot be written; what it held it still holds."""

    exit_status = 1


@dataclass(frozen=True)
class Row:
    """A workload with its state."""

    work: Workload
    place: int
    """Place in the plan."""
    origin: str
    """"plan" or "added"."""
    state: State
    since: float
    """Time since which it waits, in seconds since 1970."""
    not_before: float
    """Earliest time of the next try."""
    turns: int
    """Turns that ended with something done."""
    runs: int
    """Runs that came to their end."""
    covered: int
    """Turns of the workload of `each` that had ended when this one began last."""
    failures: int
    """Failures since the last good turn."""
    lost: int
    seconds: float
    """Time of all turns."""
    message: str


@dataclass(frozen=True)
class Turn:
    """One turn of a workload."""

    id: int
    workload: str
    command: list[str]
    began: float


class Store:
    """Opens the state in a folder, or makes it.

    Args:
        folder: of the state.
        make: make it where there is none.

    Raises:
        ConfigError: there is none, or it is of another version of this program.
    """

    def __init__(self, folder: Path, *, make: bool = False) -> None:
        self._path = folder / FILE
        if not self._path.exists():
            if not make:
                raise ConfigError(f"{str(folder)!r} holds no work", "start the plan first")
            folder.mkdir(parents=True, exist_ok=True)
        # A journal beside the file, not WAL, which writes two more files merely to read.
        self._db = sqlite3.connect(self._path, timeout=30.0, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self.id = self._opened(make=make)
        except sqlite3.DatabaseError as error:
            self.close()
            problem = f"{self._path} cannot be read ({error})"
            raise ConfigError(problem, "restore it from a copy, or name another folder") from None
        except GaiaError:
            self.close()
            raise

    def _opened(self, *, make: bool) -> str:
        """Identity of the state, whose tables are made where they are wanted."""
        self._db.execute("pragma synchronous = full")
        if make and not self._has_tables():
            with self._write():
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                made = {"version": str(VERSION), "id": uuid.uuid4().hex}
                self._db.executemany("insert into meta values (?, ?)", made.items())
        if not self._has_tables():
            raise ConfigError(
                f"{str(self._path.parent)!r} holds no work yet", "start the plan first"
            )
        facts = dict(self._db.execute("select key, value from meta").fetchall())
        if facts.get("version") != str(VERSION):
            raise ConfigError(
                f"{self._path} is of version {facts.get('version')} of the state, this program "
                f"knows {VERSION}",
                "finish it with the version that made it, or name another folder",
            )
        return facts["id"]

    def _has_tables(self) -> bool:
        query = "select 1 from sqlite_master where name = 'meta'"
        return self._db.execute(query).fetchone() is not None

    @contextmanager
    def _write(self) -> Iterator[None]:
        """One transaction: all of it or nothing, whatever ends this process.

        Raises:
            StateError: it could not be written; the state is as it was.
        """
        try:
            self._db.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._db.rollback()
                raise
            self._db.execute("commit")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.rollback()
            raise StateError(
                f"{self._path} cannot be written ({error})",
                "make room and start again: it goes on where it stopped",
            ) from None

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    # ── Workloads ───────────────────────────────────────────────────────────────────────────────

    def take_plan(self, workloads: Sequence[Workload]) -> None:
        """Brings the plan's workloads in; those that are no more in it are stopped.

        A new number of runs counts from what has run already: it may end a workload or reopen it.

        Raises:
            ConfigError: one that is done has another command now.
        """
        with self._write():
            there = {row.work.name: row for row in self.rows()}
            for place, work in enumerate(workloads):
                row = there.pop(work.name, None)
                if row and row.state == "done" and row.work.command != work.command:
                    raise ConfigError(
                        f"workload {work.name!r} is done, with another command",
                        "give the new one another name",
                    )
                self._put(work, place, "plan")
                if row and (state := _replanned(row, work)) != row.state:
                    self._set(work.name, state=state, since=time.time(), message="", **_FRESH)
            for row in there.values():
                if row.origin == "plan" and row.state in ("waiting", "running"):
                    self._set(row.work.name, state="stopped", message=_GONE)

    def add(self, work: Workload) -> None:
        """Adds one workload.

        Raises:
            ConfigError: there is one of that name.
        """
        with self._write():
            rows = self.rows()
            if any(row.work.name == work.name for row in rows):
                raise ConfigError(f"there is a workload {work.name!r}", "choose another name")
            self._put(work, max((row.place for row in rows), default=-1) + 1, "added")

    def again(self, name: str) -> None:
        """Puts a stopped or failed workload back among those that wait.

        Raises:
            ConfigError: there is none of that name, or it is neither.
        """
        with self._write():
            state = self.row(name).state
            if state not in ("stopped", "failed"):
                raise ConfigError(f"workload {name!r} is {state}", "only stopped or failed ones")
            self._set(name, state="waiting", since=time.time(), message="", **_FRESH)

    def stop(self, name: str) -> None:
        """Takes a waiting workload out of the queue."""
        with self._write():
            if self.row(name).state == "waiting":
                self._set(name, state="stopped", message="on request")

    def _put(self, work: Workload, place: int, origin: str) -> None:
        self._db.execute(
            "insert into workload (name, place, spec, origin, since) values (?, ?, ?, ?, ?) "
            "on conflict (name) do update set place = excluded.place, spec = excluded.spec",
            (work.name, place, work.to_json(), origin, time.time()),
        )

    def _set(self, name: str, **values: Any) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        self._db.execute(f"update workload set {columns} where name = ?", (*values.values(), name))

    def rows(self) -> list[Row]:
        """All workloads in the plan's order."""
        return [_row(one) for one in self._db.execute("select * from workload order by place")]

    def row(self, name: str) -> Row:
        """One workload.

        Raises:
            ConfigError: there is none of that name.
        """
        one = self._db.execute("select * from workload where name = ?", (name,)).fetchone()
        if one is None:
            known = ", ".join(row.work.name for row in self.rows())
            raise ConfigError(f"there is no workload {name!r}", f"use one of {known}")
        return _row(one)

    # ── Turns ───────────────────────────────────────────────────────────────────────────────────

    def begin(self, name: str, command: Sequence[str]) -> Turn:
        """Notes a turn before anything of it is started."""
        now = time.time()
        with self._write():
            row = self.row(name)
            covered = self.row(row.work.each).turns if row.work.each else 0
            self._set(name, state="running", covered=covered, message="")
            turn = self._db.execute(
                "insert into turn (workload, command, began) values (?, ?, ?)",
                (name, json.dumps(list(command)), now),
            ).lastrowid
        assert turn is not None
        return Turn(turn, name, list(command), now)

    def open_turns(self) -> list[Turn]:
        """Turns that were begun and never ended: of a process that was killed."""
        query = "select * from turn where ended is null order by id"
        return [
            Turn(one["id"], one["workload"], json.loads(one["command"]), one["began"])
            for one in self._db.execute(query)
        ]

    def end(
        self, turn: Turn, outcome: Outcome, message: str, *, result: str = "", memory: str = ""
    ) -> State:
        """Notes the end of a turn, and what follows from it for its workload; its new state."""
        now = time.time()
        with self._write():
            row = self.row(turn.workload)
            self._db.execute(
                "update turn set ended = ?, outcome = ?, result = ?, memory = ? where id = ?",
                (now, outcome, result, memory, turn.id),
            )
            changes: dict[str, Any] = {
                "since": now, "message": message, "not_before": 0.0,
                "seconds": row.seconds + (0.0 if outcome == "lost" else now - turn.began),
            }  # fmt: skip
            changes |= _after(row, outcome, now)
            if row.work.each and outcome != "done":  # that turn still wants this one
                changes["covered"] = max(0, row.covered - 1)
            if row.state == "stopped":  # on request, or out of the plan, while it ran
                changes |= {"state": "stopped", "message": row.message or message}
            elif row.state == "done":  # by the plan's new number of runs, while it ran
                changes["state"] = "done"
            self._set(turn.workload, **changes)
            if outcome in ("done", "yielded"):
                for other in self.rows():
                    if other.work.each == turn.workload and other.state in _AGAIN:
                        self._set(other.work.name, state="waiting", since=now, failures=0, lost=0)
        return changes["state"]

    def mark_done(self, name: str) -> None:
        """Notes that the file is there which says that a workload is done."""
        with self._write():
            row = self.row(name)
            self._set(name, state="done", runs=row.runs + 1, message=f"{row.work.done} is there")

    def mark_stopped(self, name: str) -> None:
        """Notes that a running workload is to stop and not to wait again."""
        with self._write():
            self._set(name, state="stopped", message="on request")

    def had_turn(self, name: str) -> bool:
        """Tells whether an earlier turn may have left something to go on with."""
        query = "select outcome from turn where workload = ? and ended is not null order by id desc"
        one = self._db.execute(query, (name,)).fetchone()
        return one is not None and one["outcome"] != "done"

    def turns(self, last: int) -> list[dict[str, Any]]:
        """The newest turns, oldest first."""
        query = "select * from (select * from turn order by id desc limit ?) order by id"
        return [dict(one) for one in self._db.execute(query, (last,))]

    # ── Requests of other processes ─────────────────────────────────────────────────────────────

    def ask(self, kind: str, workload: str = "") -> None:
        """Leaves a request for the process that runs the work."""
        with self._write():
            self._db.execute("insert into request (kind, workload) values (?, ?)", (kind, workload))

    def forget_stop(self) -> None:
        """Drops requests to stop all the work, which nobody has taken up."""
        with self._write():
            self._db.execute("delete from request where kind = 'stop' and workload = ''")

    def requests(self) -> list[tuple[str, str]]:
        """Takes the requests that wait, in order."""
        if not self._db.execute("select 1 from request limit 1").fetchone():
            return []
        with self._write():
            taken = self._db.execute("select kind, workload from request order by id").fetchall()
            self._db.execute("delete from request")
        return [(one["kind"], one["workload"]) for one in taken]


_GONE = "no more in the plan"
_AGAIN = ("waiting", "done", "failed")
"""States out of which a workload of `each` comes back."""
_FRESH = {"failures": 0, "lost": 0, "not_before": 0.0}
"""Fields of a workload that is put back: its earlier failures are forgotten."""


def _row(one: sqlite3.Row) -> Row:
    names = Row.__dataclass_fields__.keys() - {"work"}
    return Row(Workload.from_json(one["spec"]), **{name: one[name] for name in names})


def _has_run_enough(work: Workload, runs: int) -> bool:
    """Tells whether a workload has run as often as it is to; of `each` that is never known."""
    return work.each is None and 0 < work.times <= runs


def _replanned(row: Row, work: Workload) -> State:
    """State of a workload that the plan names again, perhaps with another number of runs.

    Only a change counts: what somebody put back by hand runs again although it has run enough.
    """
    back = row.state == "stopped" and row.message == _GONE
    state: State = "waiting" if back else row.state
    same = (work.times, work.each) == (row.work.times, row.work.each)
    if (same and not back) or work.each is not None or state == "stopped":
        return state
    if _has_run_enough(work, row.runs):
        return "done"
    return "waiting" if state == "done" else state


def _after(row: Row, outcome: Outcome, now: float) -> dict[str, Any]:
    """A workload's changes by the end of its turn."""
    if outcome == "done":
        runs = row.runs + 1
        enough = row.work.each is not None or _has_run_enough(row.work, runs)
        state = "done" if enough else "waiting"
        return {"state": state, "runs": runs, "turns": row.turns + 1, "failures": 0, "lost": 0}
    if outcome == "yielded":
        return {"state": "waiting", "turns": row.turns + 1, "failures": 0, "lost": 0}
    if outcome == "lost":
        lost = row.lost + 1
        return {"state": "failed" if lost >= LOST_IN_A_ROW else "waiting", "lost": lost}
    failures = row.failures + 1
    if failures > row.work.retries:
        return {"state": "failed", "failures": failures}
    pause = min(600.0, FIRST_PAUSE_S * 2 ** (failures - 1))
    return {"state": "waiting", "failures": failures, "not_before": now + pause}
