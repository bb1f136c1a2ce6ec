"""The protocol on message brokers (SQS, Pub/Sub), which lend messages and keep nothing else.

What a broker cannot hold lies in a store of objects (`results=`): results, dead items, and a mark
for each item that was sent. It may deliver a message twice; the first result of an item stays, and
who finds one there asks nobody again. Three bands of messages stand for priorities: a broker has
none, and cannot change a message that waits, so `priority` takes the waiting ones out and sends
them anew.

    STORE/queue.json    version and settings        STORE/results/…  what was made
    STORE/items/…       what was sent               STORE/dead/…     what was given up
    STORE/workers/…     counts of each worker, for `status`
"""

import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gaia.errors import ConfigError
from gchat.queue import protocol
from gchat.queue.base import Closing
from gchat.queue.protocol import Counts, Dead, Facts, Item, Lease, QueueError, Result
from gchat.queue.store import Store
from gchat.queue.transport import BANDS, Message, Transport

_FAIR = 8  # each so many calls begin with the lower bands, so that nothing starves
_TALLY_S = 2.0  # between two writings of a worker's counts
_DRAIN_S = 60.0
_KNOWN = 10_000  # receipts of finished items that are remembered
_ROUNDS = 10  # batches in a row of nothing new, after which a band counts as gone through


class BrokerQueue(Closing):
    """A queue over a broker and a store.

    Args:
        transport: of the broker.
        store: for everything that must last.
        create: make it where there is none.
        settings: see `SqliteQueue`.

    Raises:
        ConfigError: no such queue, or one of another version.
    """

    def __init__(
        self, transport: Transport, store: Store, *, create: bool, settings: Mapping[str, str]
    ) -> None:
        self.url, self.store, self._broker = transport.url, store, transport
        self._open(create, dict(settings))
        self._attempts = int(self.settings["attempts"])
        self._lock = threading.Lock()
        self._turn = 0
        self._completed: dict[str, None] = {}
        self._tallies: dict[str, dict[str, Any]] = {}
        self._written = 0.0
        self._workers: dict[str, str] = {}  # by receipt

    def _open(self, create: bool, changed: dict[str, str]) -> None:
        kept = self.store.get("queue", "queue")
        if kept is None:
            if not create:
                raise ConfigError(f"there is no queue at {self.url!r}", "check name and results=")
            kept = {"version": protocol.VERSION, "attempts": str(protocol.ATTEMPTS)}
        if kept["version"] != protocol.VERSION:
            raise ConfigError(
                f"queue {self.url!r} has version {kept['version']}, and this program reads "
                f"{protocol.VERSION}",
                "finish it with the gaia that made it; it was not changed",
            )
        changed.pop("results", None)
        self.settings = {"began": str(time.time()), **kept, **changed}
        if create:
            self._broker.make(int(self.settings["attempts"]))
        if create or changed:
            self.store.replace("queue", "queue", self.settings)

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────

    def add(self, items: Iterable[Item]) -> int:
        """Sends items that were not sent before, and open ones that the broker has dropped for
        their age; how many. The mark is written after the message: a kill between the two sends
        it twice, which costs an answer and loses nothing."""
        marked, new = set(self.store.ids("items")), 0
        aged = self._aged(marked)
        seen: set[str] = set()
        part: list[tuple[Item, bool]] = []
        for item in items:
            again = item.id in marked
            if item.id in seen or (again and not (item.id in aged and self._dropped(item.id))):
                continue
            seen.add(item.id)
            part.append((item, again))
            if len(part) == 10:
                new, part = new + self._send(part), []
        return new + self._send(part)

    def _send(self, items: list[tuple[Item, bool]]) -> int:
        for band in BANDS:
            chosen = [_body(i, again=again) for i, again in items if band_of(i.priority) == band]
            if chosen:
                self._broker.send(band, chosen)
        for item, _ in items:
            mark = {"priority": item.priority, "sent": time.time()}
            if not self.store.put("items", item.id, mark):
                self.store.replace("items", item.id, mark)
        return len(items)

    def _aged(self, marked: set[str]) -> set[str]:
        """Open items, in a queue that is old enough for the broker to have dropped some."""
        if time.time() - float(self.settings["began"]) < self._broker.retention_s:
            return set()
        return marked - set(self.store.ids("results")) - set(self.store.ids("dead"))

    def _dropped(self, id: str) -> bool:
        sent = (self.store.get("items", id) or {}).get("sent", float(self.settings["began"]))
        return time.time() - sent > self._broker.retention_s

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Takes up to n messages, those of the higher bands first."""
        with self._lock:
            self._turn += 1
            bands = BANDS if self._turn % _FAIR else BANDS[::-1]
        leases: list[Lease] = []
        for band in bands:
            while len(leases) < n:
                messages = self._broker.receive(band, min(10, n - len(leases)), seconds)
                until = time.time() + seconds
                for message in messages:
                    lease = self._lent(band, message, until)
                    if lease is not None:
                        leases.append(lease)
                        self._workers[lease.receipt] = worker
                if not messages:
                    break
        self._bury_lost()
        return leases

    def _lent(self, band: str, message: Message, until: float) -> Lease | None:
        """The lease of a message; None where its item has ended."""
        body = message.body
        item = Item(body["id"], body["payload"], body["priority"])
        attempt = body.get("spent", 0) + message.received
        receipt = f"{band} {message.handle}"
        again = attempt > 1 or body.get("again", False) or "moved" in body
        if again and self.store.get("results", item.id) is not None:
            self._broker.delete(band, message.handle)
            return None
        if attempt > self._attempts:  # its workers died
            reason = "lease ran out: its workers died or were silent"
            self._bury(Lease(item, receipt, attempt - 1, until), reason)
            self._note("", "failures", "lease ran out")
            return None
        return Lease(item, receipt, attempt, until)

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Hides a message for so many seconds from now."""
        band, handle = lease.receipt.split(" ", 1)
        return self._broker.hide(band, handle, seconds)

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Writes the result, then ends the message. The first result of an item stays."""
        band, handle = lease.receipt.split(" ", 1)
        new = lease.receipt in self._completed
        if not new:
            kept = {"result": result, "finished": time.time()}
            new = self.store.put("results", lease.item.id, kept)
            worker = self._workers.pop(lease.receipt, "")
            if new:  # before the message is ended: where that fails, this is called again
                with self._lock:
                    self._completed[lease.receipt] = None
                    if len(self._completed) > _KNOWN:  # the oldest is nobody's any more
                        del self._completed[next(iter(self._completed))]
                self._note(worker, "done", "", protocol.cost_of(result))
        self._broker.delete(band, handle)
        return new

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
        """Hides the message until the next attempt; the last one moves it to the dead items."""
        band, handle = lease.receipt.split(" ", 1)
        if final or (counts and lease.attempt >= self._attempts):
            held = self._bury(lease, reason)
        elif counts:
            held = self._broker.hide(band, handle, retry_in)
        else:
            held = self._anew(lease, retry_in)
        if held:
            worker = self._workers.pop(lease.receipt, "")
            self._note(worker, "failures", protocol.kind_of(reason), cost)
        return held

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched."""
        self._workers.pop(lease.receipt, None)
        return self._anew(lease, 0.0)

    def _anew(self, lease: Lease, delay_s: float) -> bool:
        """Sends an item again without this attempt: a broker counts deliveries for ever."""
        band, handle = lease.receipt.split(" ", 1)
        if not self._broker.hide(band, handle, _DRAIN_S):
            return False
        self._broker.send(band, [_body(lease.item, lease.attempt - 1)], delay_s)
        self._broker.delete(band, handle)
        return True

    def _bury(self, lease: Lease, reason: str) -> bool:
        band, handle = lease.receipt.split(" ", 1)
        if not self._broker.hide(band, handle, _DRAIN_S):
            return False
        self._write_dead(lease.item, reason, lease.attempt)
        self._broker.delete(band, handle)
        return True

    def _write_dead(self, item: Item, reason: str, attempts: int) -> None:
        facts = {"payload": item.payload, "priority": item.priority}
        facts |= {"reason": reason, "attempts": attempts}
        self.store.replace("dead", item.id, facts)

    def _bury_lost(self) -> None:
        """Takes over what the broker itself has moved to its dead letter."""
        for message in self._broker.receive("dead", 10, _DRAIN_S):
            body = message.body
            item = Item(body["id"], body["payload"], body["priority"])
            if self.store.get("results", item.id) is None:
                self._write_dead(item, "lease ran out: its workers died or were silent",
                                 self._attempts)  # fmt: skip
                self._note("", "failures", "lease ran out")
            self._broker.delete("dead", message.handle)

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of waiting items whose payload has these values; those in work
        keep theirs. Takes ten waiting items at a time and sends them anew before the next ten, so
        that no more than these are ever away; what it sent it knows by a token."""
        token, changed = secrets.token_hex(8), dict[str, None]()
        for band in BANDS:
            known = 0
            while known < _ROUNDS:
                messages = self._broker.receive(band, 10, _DRAIN_S, thorough=True)
                if not messages:
                    break
                new = any(message.body.get("moved") != token for message in messages)
                known = 0 if new else known + 1
                moved: dict[str, list[dict[str, Any]]] = {}
                for message in messages:
                    body = message.body
                    chosen = protocol.matches(body["payload"], where)
                    priority = value if chosen else body["priority"]
                    spent = body.get("spent", 0) + message.received - 1
                    sent = body | {"priority": priority, "spent": spent, "moved": token}
                    moved.setdefault(band_of(priority), []).append(sent)
                    changed |= {body["id"]: None} if chosen else {}
                for other, bodies in moved.items():
                    self._broker.send(other, bodies)
                for message in messages:
                    self._broker.delete(band, message.handle)
        return len(changed)

    def counts(self) -> Counts:
        """Items by state: marks less results and dead items; those in work as the broker tells."""
        items = set(self.store.ids("items"))
        done = set(self.store.ids("results"))
        dead = set(self.store.ids("dead")) - done
        waiting = len(items - done - dead)
        leased = min(waiting, self._broker.in_work())
        return Counts(waiting - leased, leased, len(done), len(dead))

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts; and rate, cost and failures as the workers noted them, every few seconds."""
        self._write_tallies()
        cost, recent, first, now = 0.0, 0, time.time(), time.time()
        failures: Counter[str] = Counter()
        for name in self.store.ids("workers"):
            tally = self.store.get("workers", name) or {}
            cost += tally["cost"]
            failures.update(tally["failures"])
            since = [moment for moment in tally["finished"] if moment > now - window_s]
            recent += len(since)
            first = min([first, *since])
        return Facts(self.counts(), recent, now - first, cost, 0.0, dict(failures.most_common()))

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results by the moment they were written; listed anew at each call."""
        every = []
        for id in self.store.ids("results"):
            value = self.store.get("results", id)
            if value is not None:
                every.append((value["finished"], id, value["result"]))
        for number, (_, id, result) in enumerate(sorted(every, key=lambda row: row[:2]), 1):
            if number > since:
                yield Result(number, id, result)

    def dead(self) -> Iterator[Dead]:
        """Items that were given up."""
        self._bury_lost()
        for id in sorted(self.store.ids("dead")):
            facts = self.store.get("dead", id)
            if facts is not None and self.store.get("results", id) is None:
                item = Item(id, facts["payload"], facts["priority"])
                yield Dead(item, facts["reason"], facts["attempts"])

    def revive(self, reason: str | None = None) -> int:
        """Sends dead items again, with all their attempts."""
        back = 0
        for one in list(self.dead()):
            if reason in (None, protocol.kind_of(one.reason)):
                self._broker.send(band_of(one.item.priority), [_body(one.item, again=True)])
                self.store.delete("dead", one.item.id)
                back += 1
        return back

    def close(self) -> None:
        """Writes the counts and lets go of connections."""
        with contextlib.suppress(QueueError):
            self._write_tallies()
        self._broker.close()

    # ── Counts of workers ───────────────────────────────────────────────────────────────────────

    def _note(self, worker: str, what: str, kind: str, cost: float = 0.0) -> None:
        with self._lock:
            empty = {"done": 0, "cost": 0.0, "failures": {}, "finished": []}
            tally = self._tallies.setdefault(worker or "nobody", empty)
            tally["cost"] += cost
            if what == "done":
                tally["done"] += 1
                tally["finished"] = [*tally["finished"][-9999:], time.time()]
            else:
                tally["failures"][kind] = tally["failures"].get(kind, 0) + 1
            late = time.monotonic() - self._written > _TALLY_S
        if late:
            self._write_tallies()

    def _write_tallies(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            copies = {name: dict(tally) for name, tally in self._tallies.items()}
        for name, tally in copies.items():
            self.store.replace("workers", name, tally)


def band_of(priority: float) -> str:
    """The band of a priority: above 0 high, below 0 low."""
    return "high" if priority > 0 else "low" if priority < 0 else "middle"


def _body(item: Item, spent: int = 0, again: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {"id": item.id, "payload": item.payload, "priority": item.priority}
    if spent:
        body["spent"] = spent
    if again:
        body["again"] = True
    return body
