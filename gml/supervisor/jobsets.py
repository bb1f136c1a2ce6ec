"""A queue on a cluster: each job is a JobSet, whose pods the cluster makes and takes away."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from typing import Any

from gml import jobset
from gml.errors import Incomplete, NotFound, UsageError
from gml.fleet import Fleet
from gml.jobset import JobRequest
from gml.model import ID, Node
from gml.progress import Progress, silent
from gml.remote.environment import job_environment
from gml.supervisor.machine import job_name
from gml.supervisor.plan import Seen
from gml.supervisor.queue import Job, Queue


class ClusterDriver:
    """Carries out the loop's steps on a cluster, which stays: its pools scale to zero."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._api: Any = None

    def observe(self, queue: Queue) -> Seen:
        """The cluster, and the state of the current job's JobSet."""
        machine = queue.machine
        if machine is None or machine.phase != "up":
            return Seen()
        live = self._cluster(queue)
        if live is None:
            return Seen()
        state = "none"
        if queue.job is not None:
            state = jobset.state(self._client(queue), jobset_name(queue, queue.job))
        return Seen({machine.id: live}, {}, _STATES.get(state, state))

    def create(self, queue: Queue, machine_id: str, progress: Progress) -> Node:
        """Nothing to make: the cluster as it is; raises NotFound where it is gone."""
        live = self._cluster(queue)
        if live is None:
            raise NotFound(f"there is no cluster {queue.cluster}", "gml cluster create")
        return live.replace(price=None)

    def delete(self, queue: Queue, node: Node, progress: Progress = silent) -> None:
        """Nothing: the cluster ends at its own deadline. Running JobSets were ended before."""

    def delete_half(self, queue: Queue, progress: Progress = silent) -> None:
        """Nothing is ever half made."""

    def start(self, queue: Queue, job: Job, progress: Progress) -> None:
        """Submits the JobSet; one of its name that exists is this very job's."""
        api, now = self._client(queue), self.fleet.now()
        left = max(60, int(queue.deadline - now))
        env = job_environment(self.fleet.config, self._known(queue), job.env)
        env["GAIA_DEADLINE"] = str(queue.deadline)
        for name in job.secrets:
            if name not in os.environ:
                raise UsageError(
                    f"the supervisor's environment lacks the secret {name}",
                    "give it to the supervisor (see `gml reaper install --help`)",
                )
            env[name] = os.environ[name]
        resume = f" {job.resume_flag}" if job.attempt and job.resume_flag else ""
        request = JobRequest(
            instance_type=queue.request.instance_type,
            image=job.image,
            slices=job.slices,
            timeout_s=left,
            name=jobset_name(queue, job),
            command=(job.command + resume,),
            env=env,
            owner=queue.owner,
        )
        progress(f"submitting {request.name}")
        if jobset.state(api, request.name) == "none":
            jobset.submit(api, request)

    def log(self, queue: Queue, job: Job) -> str:
        """The command that shows its log: the cluster keeps it."""
        name = jobset_name(queue, job)
        return f"kubectl logs -l jobset.sigs.k8s.io/jobset-name={name} --prefix\n"

    def end_job(self, queue: Queue, job: Job) -> None:
        """Deletes the job's JobSet, and with it its pods."""
        jobset.remove(self._client(queue), jobset_name(queue, job))

    def forget(self, queue: Queue) -> None:
        """Deletes what its jobs have left: a later queue of that name would take it for its own."""
        cluster = self._cluster(queue)
        if cluster is None:
            return
        api = self._api or jobset.api_client(self.fleet, cluster)
        for job in queue.jobs:
            for attempt in range(job.attempt + 1):
                name = jobset_name(queue, dataclasses.replace(job, attempt=attempt))
                jobset.remove(api, name)

    def _known(self, queue: Queue) -> Node:
        assert queue.machine is not None and queue.machine.node is not None
        return queue.machine.node

    def _cluster(self, queue: Queue) -> Node | None:
        provider = self.fleet.provider("google")
        known = queue.machine.node if queue.machine else None
        record = known or self.fleet.store.get(queue.cluster)
        if record is not None:
            return provider.find(record)
        try:
            listed = provider.list_nodes()
        except Incomplete as error:
            listed = [n for n in error.seen if n.id == queue.cluster]
            if not listed:
                raise  # it may be where nobody could look
        return next((n for n in listed if n.id == queue.cluster), None)

    def _client(self, queue: Queue) -> Any:
        if self._api is None:
            self._api = jobset.api_client(self.fleet, self._known(queue))
        return self._api


# Suspended: Kueue has not admitted it yet.
_STATES = {"Completed": "0", "Failed": "1", "Suspended": "running"}


def jobset_name(queue: Queue, job: Job) -> str:
    """Name of a job's JobSet: of each job and attempt another one, as Kubernetes takes it.

    One that is taken for another's passes for done without having run. So a name ends in a hash
    where it is too long or has characters that can't stay, and where it could be read in two ways:
    `a-b-c` is job c of a-b and job b-c of a, and `a-b-r1` job b-r1 and job b's second attempt.
    """
    name = f"{queue.name}-{job_name(job)}"
    if "-" not in queue.name and job.attempt == 0 and ID.fullmatch(name):
        return name
    told = "/".join((queue.name, job.name, str(job.attempt)))  # none of them has a slash
    end = hashlib.sha256(told.encode()).hexdigest()[:8]
    return f"{re.sub('[^a-z0-9]+', '-', name)[:21].rstrip('-')}-{end}"
