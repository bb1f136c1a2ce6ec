"""The reconcile loop: looks, decides one step (`plan.py`), writes it down, does it, looks again.

Any number of supervisors may run. A queue's document has a lease, and every write names the
generation that was read; whoever is killed leaves a lease that runs out, and the next one goes on.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from typing import Protocol

from gml.documents import NEW, Conflict, Documents
from gml.errors import GmlError, NotFound, RateLimited, StockOut, UsageError
from gml.model import Node
from gml.progress import Progress, silent, unbreakable
from gml.supervisor.plan import Seen, Step, next_step
from gml.supervisor.queue import FOLDER, Job, Machine, Queue, load, queue_names, update

# Longer than any step goes without telling its progress, and than any cloud's list lags.
LEASE_S = 600
RENEW_S = 60
# Pause before a machine is asked for again where there was none.
RETRY_S = 60
# More steps than a pass ever needs: a loop that does not settle is ended, and goes on next time.
MOST_STEPS = 40


class Driver(Protocol):
    """The machine or cluster of a queue: `MachineDriver` or `ClusterDriver`."""

    def observe(self, queue: Queue) -> Seen:
        """Looks at what is really there."""
        ...

    def create(self, queue: Queue, machine_id: str, progress: Progress) -> Node:
        """Makes the machine of that name."""
        ...

    def delete(self, queue: Queue, node: Node, progress: Progress = silent) -> None:
        """Deletes it, where it is the queue's, and waits until it is gone."""
        ...

    def delete_half(self, queue: Queue, progress: Progress = silent) -> None:
        """Deletes what an interrupted create may have left where no list shows it."""
        ...

    def start(self, queue: Queue, job: Job, progress: Progress) -> None:
        """Starts the job unless it runs already."""
        ...

    def log(self, queue: Queue, job: Job) -> str:
        """The end of its log."""
        ...

    def end_job(self, queue: Queue, job: Job) -> None:
        """Ends it before its time."""
        ...

    def forget(self, queue: Queue) -> None:
        """Removes what the jobs of a queue that is removed have left."""
        ...


class Lost(Exception):
    """Another supervisor has taken the queue over."""


class Supervisor:
    """One pass after the other over all queues of an owner.

    Args:
        documents: where the queues are.
        driver: what a queue runs on.
        now: unix seconds by the services' clock.
        progress: told of each step.
    """

    def __init__(
        self,
        documents: Documents,
        driver: Callable[[Queue], Driver],
        now: Callable[[], float],
        progress: Progress = silent,
    ) -> None:
        self.documents = documents
        self.driver = driver
        self.now = now
        self.progress = unbreakable(progress)
        self.holder = secrets.token_hex(8)
        self._renewed = 0.0

    def run(self) -> list[str]:
        """One pass; lines on queues that could not be worked on."""
        problems = []
        for name in queue_names(self.documents):
            try:
                self.reconcile(name)
            except (Lost, NotFound):
                continue  # somebody else has it, or it was removed
            except (GmlError, OSError) as error:  # the other queues are worked on all the same
                problems.append(f"queue {name}: {error}")
        return problems

    def reconcile(self, name: str) -> None:
        """Does all steps of one queue that can be done now.

        Raises:
            Lost: another supervisor works on it. GmlError: a step failed; it is noted.
        """
        queue = self._take(name)
        try:
            for _ in range(MOST_STEPS):
                driver = self.driver(queue)
                seen = driver.observe(queue)
                queue = self._silence(queue, seen)
                step = next_step(queue, seen, self.now())
                if step.kind == "rest":
                    break
                self.progress(f"{name}: {step.kind} {step.why}".rstrip())
                queue = self._do(queue, step, seen, driver)
            if queue.removing and queue.machine is None:
                driver.forget(queue)
        except GmlError as error:
            problem = error
            later = round(self.now()) + RETRY_S
            self._change(name, lambda q: q.replace(note=problem.problem, retry_at=later))
            self._release(name)
            if isinstance(error, (StockOut, RateLimited)):
                return  # no machine now is no problem: the next pass asks again
            raise
        if queue.removing and queue.machine is None:
            for path in (*self._belongings(name), f"{FOLDER}/{name}"):
                there = self.documents.read(path)
                if there is not None:
                    self.documents.delete(path, there[1])
            return
        self._release(name)

    def _belongings(self, name: str) -> list[str]:
        """Documents of the queue beside its own; that one goes last."""
        return [n for kind in ("code", "logs") for n in self.documents.names(f"{kind}/{name}")]

    # ---- the lease

    def _take(self, name: str) -> Queue:
        def take(queue: Queue) -> Queue:
            holder, until = queue.lease
            if holder not in ("", self.holder) and until > self.now():
                raise Lost(name)
            return queue.replace(lease=(self.holder, round(self.now()) + LEASE_S))

        self._renewed = time.monotonic()
        return update(self.documents, name, take)

    def _change(self, name: str, change: Callable[[Queue], Queue]) -> Queue:
        """Writes a change, as long as the lease is ours."""

        def held(queue: Queue) -> Queue:
            if queue.lease[0] != self.holder:
                raise Lost(name)
            return change(queue).replace(lease=(self.holder, round(self.now()) + LEASE_S))

        self._renewed = time.monotonic()
        return update(self.documents, name, held)

    def _release(self, name: str) -> None:
        def release(queue: Queue) -> Queue:
            return queue.replace(lease=("", 0)) if queue.lease[0] == self.holder else queue

        update(self.documents, name, release)

    def _renewing(self, name: str) -> Progress:
        """Progress that keeps the lease while a step takes long; raises Lost without it."""

        def tell(step: str) -> None:
            self.progress(f"{name}: {step}")
            if time.monotonic() - self._renewed > RENEW_S:
                self._change(name, lambda queue: queue)

        return tell

    # ---- steps

    def _do(self, queue: Queue, step: Step, seen: Seen, driver: Driver) -> Queue:
        if step.kind == "sweep":
            for node_id in step.ids:
                self._bill(queue.name, seen.machines[node_id])
                driver.delete(queue, seen.machines[node_id], self._renewing(queue.name))
            return load(self.documents, queue.name)[0]
        if step.kind == "drop":
            return self._drop(queue, step, seen, driver)
        if step.kind == "create":
            return self._create(queue, driver)
        if step.kind == "start":
            return self._start(queue, step, driver)
        if step.kind == "finish":
            assert step.job is not None
            self._keep_log(queue, step.job, driver)
            state = "done" if step.code == 0 else "failed"
            return self._set_job(queue.name, step.job.name, state=state, exit_code=step.code)
        return self._fail(queue, step.why)

    def _create(self, queue: Queue, driver: Driver) -> Queue:
        """Writes the intent, makes the machine, writes what it has become."""
        number, now = queue.made + 1, round(self.now())
        machine_id = queue.cluster or f"{queue.name}-{number}"
        intent = Machine(machine_id, "creating", now)
        changes = {"machine": intent, "made": number, "labelled": machine_id, "note": ""}
        queue = self._change(queue.name, lambda q: q.replace(**changes))
        try:
            node = driver.create(queue, machine_id, self._renewing(queue.name))
        except UsageError as error:
            # It would not be made next time either: the jobs are told why.
            return self._fail(queue, error.problem)
        up = Machine(machine_id, "up", now, node)
        return self._change(queue.name, lambda q: q.replace(machine=up))

    def _drop(self, queue: Queue, step: Step, seen: Seen, driver: Driver) -> Queue:
        """Deletes the queue's machine; what is to be counted is written down first."""
        machine = queue.machine
        assert machine is not None
        job = queue.job
        if machine.phase == "up":
            running = seen.job == "running" and job is not None

            def leaving(q: Queue) -> Queue:
                q = q.replace(
                    machine=Machine(machine.id, "deleting", machine.since, machine.node),
                    restarts=q.restarts + step.again,
                    silent_since=0,
                    note=f"{machine.id} {step.why}",
                )
                current = q.job
                if step.again and current is not None and current.state == "running":
                    again = {"state": "waiting", "attempt": current.attempt + 1}
                    q = q.with_job(_changed(current, **again))
                return q

            queue = self._change(queue.name, leaving)
            if running and job is not None and not step.again:
                driver.end_job(queue, job)
        live = seen.machines.get(machine.id)
        node = live or machine.node
        if live is not None or machine.phase == "up":
            assert node is not None
            driver.delete(queue, node, self._renewing(queue.name))
        driver.delete_half(queue, self._renewing(queue.name))
        if node is not None:
            self._bill(queue.name, _with_price(node, machine.node))
        return self._change(queue.name, lambda q: q.replace(machine=None))

    def _bill(self, name: str, node: Node) -> None:
        """Notes what a machine has cost; noted twice it is noted once."""
        cost = node.cost(self.now())
        if cost is not None:
            self._change(name, lambda q: q.replace(bills={**q.bills, node.id: round(cost, 4)}))

    def _start(self, queue: Queue, step: Step, driver: Driver) -> Queue:
        job = step.job
        assert job is not None
        try:
            driver.start(queue, job, self._renewing(queue.name))
        except (UsageError, NotFound) as error:
            # The job itself can't be started: its setup fails, a secret or its code is missing.
            return self._set_job(queue.name, job.name, state="failed", note=error.problem)
        return self._set_job(queue.name, job.name, state="running")

    def _fail(self, queue: Queue, why: str) -> Queue:
        def fail(q: Queue) -> Queue:
            open_jobs = [j for j in q.jobs if j.state in ("waiting", "running")]
            for job in open_jobs:
                q = q.with_job(_changed(job, state="failed", note=why))
            return q.replace(note=why)

        return self._change(queue.name, fail)

    def _set_job(self, name: str, job_name: str, **changes: object) -> Queue:
        def change(queue: Queue) -> Queue:
            job = next((j for j in queue.jobs if j.name == job_name), None)
            return queue if job is None else queue.with_job(_changed(job, **changes))

        return self._change(name, change)

    def _keep_log(self, queue: Queue, job: Job, driver: Driver) -> None:
        name = f"logs/{queue.name}/{job.name}"
        there = self.documents.read(name)
        value = {"log": driver.log(queue, job)}
        try:
            self.documents.write(name, value, there[1] if there else NEW)
        except Conflict:
            return  # another supervisor keeps it

    def _silence(self, queue: Queue, seen: Seen) -> Queue:
        """Notes since when the machine does not answer."""
        silent_now = seen.job == "silent"
        if silent_now == bool(queue.silent_since):
            return queue
        since = round(self.now()) if silent_now else 0
        return self._change(queue.name, lambda q: q.replace(silent_since=since))


def _changed(job: Job, **changes: object) -> Job:
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def _with_price(live: Node, known: Node | None) -> Node:
    """The machine with the price it was made at, where its labels have none."""
    if known is None:
        return live
    return live.replace(price=live.price if live.price is not None else known.price,
                        created=live.created or known.created, up=live.up or known.up)  # fmt: skip
