"""The protocol of gchat.queue as a plain dictionary, and a state machine that compares the two.

Time does not pass in a test: a lease or a delay of 0 s is over at once, one of 1,000 s never ends.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from gchat.queue import Item

ATTEMPTS = 3
IDS = [f"item {i}: ü/'%\"" for i in range(8)]


@dataclass
class Row:
    """One item as the protocol says it must be."""

    order: int
    payload: dict
    priority: float
    state: str = "waiting"
    over: bool = True  # the delay or lease has ended
    attempts: int = 0
    receipt: str | None = None
    result: dict | None = None
    reason: str = ""


@dataclass
class Model:
    """All items, by id."""

    rows: dict[str, Row] = field(default_factory=dict)
    results: list[tuple[str, dict]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    buried: bool = False

    def failed(self, kind, cost=0.0):
        self.failures[kind] = self.failures.get(kind, 0) + 1
        self.cost += cost

    def lend(self, n):
        """Ids that are lent next, in order."""
        for row in self.rows.values():
            if row.state == "leased" and row.over:
                row.receipt = None
                if row.attempts >= ATTEMPTS:
                    row.state, row.reason = "dead", "lease ran out"
                    self.failed("lease ran out")
                else:
                    row.state = "waiting"
        free = [(r.priority, r.order, i) for i, r in self.rows.items()
                if r.state == "waiting" and r.over]  # fmt: skip
        return [i for _, _, i in sorted(free, key=lambda t: (-t[0], t[1]))[:n]]

    def held(self, lease):
        row = self.rows[lease.item.id]
        return row if row.state == "leased" and row.receipt == lease.receipt else None

    def count(self, state):
        if state == "waiting":
            return sum(r.state == "waiting" or (r.state == "leased" and r.over)
                       for r in self.rows.values())  # fmt: skip
        return sum(r.state == state and not (state == "leased" and r.over)
                   for r in self.rows.values())  # fmt: skip


class Machine(RuleBasedStateMachine):
    """Calls in any order. A subclass says how an empty queue is opened."""

    leases = Bundle("leases")

    def open(self, attempts):
        raise NotImplementedError

    @initialize()
    def begin(self):
        self.model = Model()
        self.queue = self.open(ATTEMPTS)

    def teardown(self):
        if hasattr(self, "queue"):
            self.queue.close()

    @rule(chosen=st.lists(st.sampled_from(IDS), max_size=4), priority=st.sampled_from([-1, 0, 2.5]))
    def add(self, chosen, priority):
        items, new = [], 0
        for id in chosen:
            payload = {"id": id, "kind": "ab"[IDS.index(id) % 2], "n": IDS.index(id)}
            items.append(Item(id, payload, priority))
            if id not in self.model.rows:
                self.model.rows[id] = Row(len(self.model.rows), payload, priority)
                new += 1
        assert self.queue.add(items) == new

    @rule(target=leases, n=st.integers(1, 3), seconds=st.sampled_from([0, 1000]))
    def lease(self, n, seconds):
        expected = self.model.lend(n)
        got = self.queue.lease(n, seconds, "a worker")
        assert [lease.item.id for lease in got] == expected
        for lease in got:
            row = self.model.rows[lease.item.id]
            row.state, row.receipt, row.over = "leased", lease.receipt, seconds == 0
            row.attempts += 1
            assert lease.attempt == row.attempts
            assert (lease.item.payload, lease.item.priority) == (row.payload, row.priority)
        return multiple(*got)

    @rule(lease=leases, seconds=st.sampled_from([0, 1000]))
    def extend(self, lease, seconds):
        row = self.model.held(lease)
        assert self.queue.extend(lease, seconds) == (row is not None)
        if row is not None:
            row.over = seconds == 0

    @rule(lease=leases, value=st.sampled_from(["x", "ü", 3]))
    def complete(self, lease, value):
        result = {"value": value, "cost": 0.5}
        row, was = self.model.held(lease), self.model.rows[lease.item.id]
        again = was.state == "done" and was.receipt == lease.receipt
        assert self.queue.complete(lease, result) == (row is not None or again)
        if row is not None:
            row.state, row.result = "done", result
            self.model.results.append((lease.item.id, result))
            self.model.cost += 0.5

    @rule(
        lease=leases,
        wait=st.sampled_from([0, 1000]),
        counts=st.booleans(),
        final=st.booleans(),
        reason=st.sampled_from(["time-out: of x", "schema", "a: b: c"]),
    )
    def fail(self, lease, wait, counts, final, reason):
        row = self.model.held(lease)
        told = self.queue.fail(lease, reason, retry_in=wait, counts=counts, final=final, cost=0.25)
        assert told == (row is not None)
        if row is None:
            return
        row.attempts -= 0 if counts or final else 1
        row.receipt, row.reason, row.over = None, reason, wait == 0
        row.state = "dead" if final or row.attempts >= ATTEMPTS else "waiting"
        self.model.failed(reason.partition(":")[0], 0.25)

    @rule(lease=leases)
    def release(self, lease):
        row = self.model.held(lease)
        assert self.queue.release(lease) == (row is not None)
        if row is not None:
            row.state, row.receipt, row.over = "waiting", None, True
            row.attempts -= 1

    @rule(where=st.sampled_from([{}, {"kind": "a"}, {"n": "3"}, {"none": "1"}]),
          value=st.sampled_from([-3, 0, 7.5]))  # fmt: skip
    def priority(self, where, value):
        changed = [
            r for r in self.model.rows.values()
            if r.state in ("waiting", "leased")
            and all(str(r.payload.get(k)) == v for k, v in where.items())
        ]  # fmt: skip
        assert self.queue.priority(where, value) == len(changed)
        for row in changed:
            row.priority = value

    @rule(reason=st.sampled_from([None, "time-out", "schema", "lease ran out"]))
    def revive(self, reason):
        back = [
            r for r in self.model.rows.values()
            if r.state == "dead" and reason in (None, r.reason.partition(":")[0])
        ]  # fmt: skip
        assert self.queue.revive(reason) == len(back)
        for row in back:
            row.state, row.attempts, row.reason, row.over = "waiting", 0, "", True

    @invariant()
    def counts(self):
        if not hasattr(self, "model"):
            return
        counts = self.queue.counts()
        for state in ("waiting", "leased", "done", "dead"):
            assert getattr(counts, state) == self.model.count(state), (state, counts)
        facts = self.queue.facts()
        assert facts.counts == counts and facts.recent == len(self.model.results)
        assert facts.failures == self.model.failures
        assert abs(facts.cost - self.model.cost) < 1e-6
        assert sum(facts.workers.values()) == counts.leased

    @invariant()
    def results(self):
        if not hasattr(self, "model"):
            return
        got = list(self.queue.results())
        assert [(r.id, r.result) for r in got] == self.model.results
        numbers = [r.number for r in got]
        assert numbers == sorted(set(numbers))
        if len(got) > 1:
            assert list(self.queue.results(got[0].number)) == got[1:]

    @invariant()
    def dead(self):
        if not hasattr(self, "model"):
            return
        got = {d.item.id: (d.reason.partition(":")[0], d.attempts) for d in self.queue.dead()}
        wanted = {
            i: (r.reason.partition(":")[0], r.attempts)
            for i, r in self.model.rows.items() if r.state == "dead"
        }  # fmt: skip
        assert got == wanted
