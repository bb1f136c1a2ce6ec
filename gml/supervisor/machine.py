"""A queue's machine: a node like any other, made and deleted as `gml run` would."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from gml.documents import Documents
from gml.errors import Busy, GmlError, Incomplete, Unavailable, UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.nodes.change import delete
from gml.nodes.create import create
from gml.planning import find_offers, make_spec, provider_for
from gml.progress import Progress, silent
from gml.remote import jobs
from gml.run import Console, Runner, RunRequest
from gml.store import write_private
from gml.supervisor.code import unpacked
from gml.supervisor.plan import SHORTEST_S, Seen, lifetime
from gml.supervisor.queue import Job, Queue
from gml.threads import on_hosts

LOG_BYTES = 200_000


class MachineDriver:
    """Carries out the loop's steps on a machine of the queue's own."""

    def __init__(self, fleet: Fleet, documents: Documents) -> None:
        self.fleet = fleet
        self.documents = documents

    def observe(self, queue: Queue) -> Seen:
        """Its machines by label, the current one by name, and the state of the job on it.

        Raises:
            GmlError: the cloud could not be looked at.
        """
        provider = self.fleet.provider(provider_for(self.fleet, queue.request))
        machine = queue.machine
        try:
            listed = provider.list_nodes()
        except Incomplete as error:
            if machine is None or machine.node is None:
                raise  # only the list could tell whether there is one
            listed = error.seen
        live = {n.id: n for n in listed if is_own(queue, n)}
        record = machine and (machine.node or self._record(queue))
        if machine is not None and record and machine.id not in live:
            # By name: a list lags, and this one may be incomplete.
            named = provider.find(record)
            if named is not None and is_own(queue, named):
                live[machine.id] = named
        dead = {i: n.state for i, n in live.items() if n.dead()}
        state = "none"
        if machine is not None and machine.phase == "up" and machine.id in {*live} - {*dead}:
            state = self._job_state(self._known(queue), queue.job) if queue.job else "none"
        return Seen(live, dead, state)

    def _record(self, queue: Queue) -> Node | None:
        """This home's record of the current machine; one of the user's of that name is none."""
        record = self.fleet.store.get(queue.machine.id) if queue.machine else None
        return record if record is not None and is_own(queue, record) else None

    def _known(self, queue: Queue) -> Node:
        """The current machine, also in the records of a home that has never seen it."""
        machine = queue.machine
        assert machine is not None and machine.node is not None
        record = self.fleet.store.get(machine.id)
        another = record is not None and record.created != machine.node.created
        if record is None or (another and record.queue == queue.name):
            self.fleet.store.put(machine.node)
        elif another:  # ssh would reach the user's own machine
            raise Busy(
                f"{machine.id} is another machine by the records here",
                f"end that one (`gml node show {machine.id}`), or supervise from elsewhere",
            )
        self.fleet.ssh.write_config()
        return machine.node

    def _job_state(self, node: Node, job: Job) -> str:
        """State on all hosts together: the first that failed decides."""
        name = job_name(job)
        try:
            states = on_hosts(
                len(node.hosts), lambda i: jobs.status(self.fleet.ssh, node, name, index=i)
            )
        except Unavailable:
            return "silent"
        failed = [s for s in states if s == "lost" or (s.isdigit() and s != "0")]
        if failed:
            return failed[0]
        if "none" in states:
            return "none"  # not started everywhere; those that have it keep it
        return "running" if "running" in states else "0"

    def create(self, queue: Queue, machine_id: str, progress: Progress) -> Node:
        """Makes the machine, within the queue's deadline and budget."""
        now = self.fleet.now()
        wanted = dataclasses.replace(queue.request, name=machine_id, queue=queue.name)
        price = self._price(queue)
        seconds, highest = lifetime(queue, price, now)
        if seconds < SHORTEST_S:
            what = "the price is unknown" if price is None else "too little money is left"
            raise UsageError(
                f"{what}, so the budget of ${queue.budget or 0:.2f} can't be kept",
                "add the jobs to a queue without --budget, or with another --zone",
            )
        wanted = dataclasses.replace(wanted, timeout_s=seconds, max_price=highest)
        return create(self.fleet, wanted, progress)

    def _price(self, queue: Queue) -> float | None:
        if queue.budget is None:
            return None
        probe = dataclasses.replace(queue.request, timeout_s=3600, name="")
        offers = find_offers(self.fleet, make_spec(self.fleet, probe), probe)
        return min((o.price for o in offers if o.price is not None), default=None)

    def delete(self, queue: Queue, node: Node, progress: Progress = silent) -> None:
        """Deletes it, and waits until the cloud no longer knows it."""
        live = self.fleet.provider(node.provider).find(node)
        if live is None or is_own(queue, live):  # else it is gone, and its name somebody else's
            delete(self.fleet, node, progress)

    def delete_half(self, queue: Queue, progress: Progress = silent) -> None:
        """Deletes what an interrupted create of this home has left, list or no list."""
        record = self._record(queue)
        if record is not None:
            self.delete(queue, record, progress)

    def start(self, queue: Queue, job: Job, progress: Progress) -> None:
        """Sends the code and starts the job; one that runs already goes on."""
        node = self._known(queue)
        missing = [s for s in job.secrets if s not in os.environ]
        if missing:
            raise UsageError(
                f"the supervisor's environment lacks the secret {missing[0]}",
                "give it to the supervisor (see `gml reaper install --help`)",
            )
        secret = {name: os.environ[name] for name in job.secrets}
        request = RunRequest(
            job=job_name(job),
            dest=job.dest,
            data=job.data,
            setup=job.setup,
            sync=bool(job.code),
            environment={**job.env, **secret},
        )
        with contextlib.ExitStack() as stack:
            if job.code:
                folder = stack.enter_context(unpacked(self.documents, job.code))
                request = dataclasses.replace(request, folder=folder)
            runner = Runner(self.fleet, request, Console(progress))
            runner.prepare(node)
            resume = f" {job.resume_flag}" if job.attempt and job.resume_flag else ""
            runner.start(node, job.command + resume, 0)

    def log(self, queue: Queue, job: Job) -> str:
        """The end of the job's log; '' where it can't be read."""
        script = f'tail -c {LOG_BYTES} "$HOME/.gml/jobs/{job_name(job)}/log" 2>/dev/null || :'
        try:
            done = self.fleet.ssh.run(self._known(queue), script)
        except GmlError:
            return ""
        return done.stdout.decode(errors="replace")

    def end_job(self, queue: Queue, job: Job) -> None:
        """Ends the running job; with its machine nothing of it is left."""
        node = self._known(queue)
        for index in range(len(node.hosts)):
            jobs.terminate(self.fleet.ssh, node, job_name(job), index=index)

    def forget(self, queue: Queue) -> None:
        """Nothing: what its jobs have left went with its machines."""


def is_own(queue: Queue, node: Node) -> bool:
    """Tells whether a machine is the queue's: by its label, never by its name alone.

    `gml run -n 3 --name QUEUE` makes machines that are called as the queue's are. Those of an older
    gml have no label: of them only the one that the document records is the queue's, told by the
    time of its creation. Whatever else such a version has left ends at its own deadline.
    """
    if node.owner != queue.owner:
        return False
    machine = queue.machine
    if node.queue or machine is None or machine.id == queue.labelled:
        return node.queue == queue.name
    if machine.id != node.id:
        return False
    known = machine.node
    return node.created == known.created if known else node.created >= machine.since


def job_name(job: Job) -> str:
    """Name of a job on its machine: of each attempt another one."""
    return job.name if job.attempt == 0 else f"{job.name}-r{job.attempt}"


def write_ssh_key(home: Path) -> Path | None:
    """The key in GML_SSH_KEY as a 0600 file, as ssh wants it; None where there is none.

    It is taken out of the environment: ask once.
    """
    text = os.environ.pop("GML_SSH_KEY", "")
    if not text:
        return None
    path = home / "supervisor_key"
    write_private(path, text.rstrip("\n") + "\n")
    return path
