"""The budget of a month: what was spent, what is still bound, and what that forbids.

The limit and the spending are documents that all machines of an owner share (`gml.documents`), so
that a supervisor elsewhere obeys what was set here. Each machine adds what it knows: its own cost
history, and what each pass of the reaper sees. Amounts are list prices, not the bill.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gml.documents import NEW, Conflict, Documents, open_documents
from gml.durations import format_duration
from gml.errors import GmlError, NotFound, Unsafe, UsageError
from gml.fleet import Fleet
from gml.model import WAITING, Node

LIMIT, SPENDING = "budget", "spending"
COPY = "budget.json"
UNSEEN_S = 3600


@dataclass(frozen=True)
class Month:
    """US dollars of this month: the limit (None: none), spent so far, bound until the deadlines.

    `unpriced` are machines whose price nobody knows. `problem` tells why the shared documents could
    not be read: limit and money are then what this machine alone knows, and allow nothing.
    """

    limit: float | None
    spent: float
    bound: float
    unpriced: tuple[str, ...] = ()
    problem: str = ""


def month_start(now: float) -> float:
    """Unix seconds of the month's first moment, in UTC."""
    day = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return day.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def _end(deadline: int | None, now: float) -> float:
    """Unix seconds until which a machine binds money: an endless one to the end of the month.

    In the next month it binds the next month's, whose limit holds it then.
    """
    return month_start(month_start(now) + 32 * 86400) if deadline is None else deadline


def set_limit(fleet: Fleet, usd: float | None) -> None:
    """Sets or removes the limit; raises Conflict when somebody else did so at this moment."""
    documents = open_documents(fleet.config)
    there = documents.read(LIMIT)
    documents.write(LIMIT, {"month_usd": usd}, there[1] if there else NEW)
    _remember(fleet, documents, usd)


def limit_of(fleet: Fleet) -> float | None:
    """The limit in US dollars a month that all machines share; None where none is set.

    Raises:
        GmlError, OSError: it can't be read, which is not the same as none.
    """
    documents = open_documents(fleet.config)
    there = documents.read(LIMIT)
    usd = there[0].get("month_usd") if there else None
    if usd is not None and not isinstance(usd, (int, float)):
        raise _damaged(documents, LIMIT)
    if there is None and (known := _remembered(fleet, documents)) is not None:
        # To lift a limit writes that there is none: its document never goes away by itself.
        raise NotFound(
            f"{documents.where}/{LIMIT}.json is gone, and held ${known:.2f} when last read",
            "set it again with `gml budget --month`, or lift it with `gml budget --none`",
        )
    _remember(fleet, documents, usd)
    return None if usd is None else float(usd)


def _remember(fleet: Fleet, documents: Documents, usd: float | None) -> None:
    """Keeps a copy, which `gml budget` shows while the shared limit can't be read."""
    if _remembered(fleet, documents) != usd:
        with contextlib.suppress(OSError):  # a full disk keeps nobody from the limit itself
            fleet.store.write_json(COPY, {"month_usd": usd, "where": documents.where})


def _remembered(fleet: Fleet, documents: Documents) -> float | None:
    """The limit as it was last read there; None where it was none, or never read."""
    copy = fleet.store.read_json(COPY)
    usd = copy.get("month_usd") if copy.get("where") == documents.where else None
    return float(usd) if isinstance(usd, (int, float)) else None


def _damaged(documents: Documents, name: str) -> UsageError:
    return UsageError(f"{documents.where}/{name}.json is damaged", "mend or remove it")


@contextlib.contextmanager
def reserving(fleet: Fleet) -> Iterator[None]:
    """Lets one gml of this machine at a time check the budget and note what it will make.

    Waits for its turn; the kernel drops the lock if we die.
    """
    fleet.store.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(fleet.store.home / "budget.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def month(fleet: Fleet, nodes: Sequence[Node] = (), apart_from: str = "") -> Month:
    """This month's money by all that is known here.

    Args:
        fleet: whose records, history and shared spending are read.
        nodes: machines as just seen in the clouds, which the records may not have.
        apart_from: id of the machine under way whose intent binds nothing yet.
    """
    problem, entries = "", {}
    documents = open_documents(fleet.config)
    try:
        limit = limit_of(fleet)
        entries = _entries(documents, documents.read(SPENDING))
    except (GmlError, OSError) as error:
        problem = getattr(error, "problem", str(error))
        limit = _remembered(fleet, documents)
    now = fleet.now()
    for node in (*fleet.store.history(), *fleet.store.all(), *nodes):
        _enter(entries, node, now)
    start = month_start(now)
    spent = sum(_cost(e, start, now) for e in entries.values())
    bound = sum(_bound(e, now) for e in entries.values())
    # Creates under way, also of other processes here: what they make will run to its deadline.
    for node in fleet.store.all():
        if _only_intended(node) and node.id != apart_from and _key(node) not in entries:
            bound += (node.price or 0.0) * max(0.0, (node.deadline or 0) - now) / 3600
    unpriced = tuple(e["id"] for e in entries.values() if e["price"] is None and not e["ended"])
    return Month(limit, spent, bound, unpriced, problem)


def check(fleet: Fleet, what: str, price: float | None, seconds: int, apart_from: str = "") -> None:
    """Refuses what would pass the month's budget.

    Args:
        fleet: whose budget it is.
        what: thing to make, as people call it.
        price: US dollars per hour; None where unknown.
        seconds: longest time for which it may run.
        apart_from: its id, where its own intent may already name a price.

    Raises:
        Unsafe: it would, or nobody can tell: the price is unknown, or the budget can't be read.
    """
    if price == 0:
        return
    try:
        limit = limit_of(fleet)
    except (GmlError, OSError) as error:
        raise _unread(what, error) from None
    if limit is None:
        return
    if price is None:
        raise Unsafe(
            f"the price of {what} is unknown, so the month's budget can't be kept",
            "take another zone or type, or lift it with `gml budget --none`",
        )
    money = month(fleet, apart_from=apart_from)
    if money.problem:  # what others have spent is as much a part of it as the limit
        raise _unread(what, GmlError(money.problem))
    cost = price * seconds / 3600
    if money.spent + money.bound + cost > limit:
        raise Unsafe(
            f"{what} may cost ${cost:.2f}, and of this month's ${limit:.2f} "
            f"${money.spent:.2f} are spent and ${money.bound:.2f} bound by what runs",
            "take a shorter --timeout, end something, or raise it with `gml budget --month`",
        )


def check_longer(fleet: Fleet, node: Node, deadline: int | None) -> None:
    """Refuses a later end (None: none) that would pass the month's budget.

    Raises:
        Unsafe: as `check` does, for the time that is added.
    """
    now = fleet.now()
    added = round(_end(deadline, now) - max(now, _end(node.deadline, now)))
    if added > 0 or (deadline is None and node.deadline is not None):
        what = f"{node.id} for {format_duration(max(added, 0))} more"
        check(fleet, what, node.price, max(added, 0))


def _unread(what: str, error: Exception) -> Unsafe:
    problem, remedy = getattr(error, "problem", str(error)), getattr(error, "remedy", "")
    return Unsafe(
        f"the month's budget can't be read ({problem}), so nobody can tell whether {what} fits",
        remedy or "run it again once it answers; `gml doctor` checks bucket and sign-in",
    )


def parse_money(text: str) -> float:
    """`200USD`, `$200` or `200` into US dollars; raises UsageError."""
    number = text.strip().upper().removeprefix("$").removesuffix("USD").removesuffix("$").strip()
    try:
        usd = float(number)
    except ValueError:
        usd = -1.0
    if not 0 < usd < 1e9:
        raise UsageError(f"{text!r} is not an amount in US dollars", "write 200USD")
    return usd


def share_spending(fleet: Fleet, nodes: Sequence[Node]) -> None:
    """Adds what is known here to the spending that all machines share.

    Raises:
        GmlError: the documents do not answer.
    """
    documents = open_documents(fleet.config)
    now = fleet.now()
    for _ in range(5):
        there = documents.read(SPENDING)
        entries = _entries(documents, there)
        before = dict(entries)
        for node in (*fleet.store.history(), *nodes):
            _enter(entries, node, now)
        oldest = month_start(now) - 40 * 86400
        kept = {k: e for k, e in entries.items() if max(e["seen"], e["ended"] or 0) > oldest}
        if kept == before:
            return
        with contextlib.suppress(Conflict):
            documents.write(SPENDING, {"machines": kept}, there[1] if there else NEW)
            return


def _entries(
    documents: Documents, there: tuple[dict[str, Any], int] | None
) -> dict[str, dict[str, Any]]:
    machines = there[0].get("machines") if there else {}
    if not isinstance(machines, dict):
        raise _damaged(documents, SPENDING)
    return dict(machines)


def _only_intended(node: Node) -> bool:
    """Tells whether no cloud has shown the machine yet."""
    return node.phase == "intent" and not node.state


def _key(node: Node) -> str:
    return f"{node.id}@{node.created}"


def _enter(entries: dict[str, dict[str, Any]], node: Node, now: float) -> None:
    """Adds a machine, or what is newer about it."""
    if node.price == 0 or not node.created or _only_intended(node):
        return
    key = _key(node)
    old = entries.get(key, {})
    ended = node.deleted or old.get("ended")
    seen = round(max(old.get("seen", 0), node.deleted or node.ended(now)))
    price = node.price if node.price is not None else old.get("price")
    # None while it waits in a queue: it binds money then, and costs none.
    up = node.up or old.get("up") or (None if node.state == WAITING else node.created)
    entries[key] = {"id": node.id, "created": node.created, "price": price, "seen": seen,
                    "ended": ended, "deadline": node.deadline, "up": up}  # fmt: skip


def _cost(entry: dict[str, Any], start: float, now: float) -> float:
    begun = entry.get("up", entry["created"])  # those of an older gml have no time of their own
    if begun is None:
        return 0.0
    until = min(entry["ended"] or entry["seen"], now)
    hours = max(0.0, until - max(begun, start)) / 3600
    return (entry["price"] or 0.0) * hours


def _bound(entry: dict[str, Any], now: float) -> float:
    """Money until the deadline (else the month's end) of a machine that runs as far as is known.

    One that nobody has seen for an hour was deleted where we have not heard of it.
    """
    if entry["ended"] or entry["seen"] < now - UNSEEN_S:
        return 0.0
    return (entry["price"] or 0.0) * max(0.0, _end(entry["deadline"], now) - now) / 3600
