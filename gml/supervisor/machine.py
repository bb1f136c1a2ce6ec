"""A queue's machine: a node like any other, made and deleted as `gml run` would."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from pathlib import Path

from gml.documents import Documents
from gml.errors import GmlError, Incomplete, Unavailable, UsageError
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
        ours = re.compile(rf"{re.escape(queue.name)}-\d+")
        machine = queue.machine
        try:
            listed = provider.list_nodes()
        except Incomplete as error:
            if machine is None or machine.node is None:
                raise  # only the list could tell whether there is one
            listed = error.seen
        live = {n.id: n for n in listed if ours.fullmatch(n.id) and n.owner == queue.owner}
        record = machine and (machine.node or self.fleet.store.get(machine.id))
        if machine is not None and record and machine.id not in live:
            # By name: a list lags, and this one may be incomplete.
            named = provider.find(record)
            if named is not None and named.owner == queue.owner:
                live[machine.id] = named
        dead = {i: n.state for i, n in live.items() if n.dead()}
        state = "none"
        if machine is not None and machine.phase == "up" and machine.id in {*live} - {*dead}:
            state = self._job_state(self._known(queue), queue.job) if queue.job else "none"
        return Seen(live, dead, state)

    def _known(self, queue: Queue) -> Node:
        """The current machine, also in the records of a home that has never seen it."""
        machine = queue.machine
        assert machine is not None and machine.node is not None
        if self.fleet.store.get(machine.id) is None:
            self.fleet.store.put(machine.node)
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
        wanted = dataclasses.replace(queue.request, name=machine_id)
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

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Deletes it, and waits until the cloud no longer knows it."""
        delete(self.fleet, node, progress)

    def delete_half(self, machine_id: str, progress: Progress = silent) -> None:
        """Deletes what an interrupted create of this home has left, list or no list."""
        record = self.fleet.store.get(machine_id)
        if record is not None:
            delete(self.fleet, record, progress)

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
