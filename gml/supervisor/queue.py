"""A queue as its document holds it: jobs in order, the one machine they share, what it has cost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gml.documents import NEW, Conflict, Documents
from gml.errors import Busy, NotFound, UsageError
from gml.model import Host, Node
from gml.request import NodeRequest

FOLDER = "queues"
OPEN = ("waiting", "running")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?")


def check_queue(name: str) -> str:
    """A queue's name, from which its machines are called `NAME-1`, …; raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"queue name {name[:60]!r} is not usable",
            "use 1-20 of a-z, 0-9 and -, beginning with a letter",
        )
    return name


@dataclass(frozen=True)
class Job:
    """One job. `secrets` are names: their values are the supervisor's, and never stored.

    Attributes:
        command: a bash line.
        code: document with the work tree; '' for none.
        state: waiting, running, done or failed.
        attempt: how often its machine was taken away.
        image: container of a JobSet.
    """

    name: str
    command: str
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    code: str = ""
    dest: str = "work"
    data: str = ""
    setup: str = ""
    resume_flag: str = "--resume"
    image: str = ""
    slices: int = 1
    state: str = "waiting"
    exit_code: int | None = None
    attempt: int = 0
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """The machine of a queue. `phase`: creating, up or deleting; `node` is known once it is up."""

    id: str
    phase: str
    since: int
    node: Node | None = None


@dataclass(frozen=True)
class Queue:
    """Jobs of one machine after the other.

    Attributes:
        cluster: cluster on which the jobs run as JobSets; '' for a machine made from `request`.
        deadline: unix seconds after which nothing of it runs.
        budget: US dollars for all its machines together; None without a limit.
        made: number of machines made so far; the next one is `NAME-{made + 1}`.
        labelled: id of the last machine that was asked for with the queue's label; one that is not
            was made by an older gml, and only this document can tell that it is the queue's.
        bills: US dollars by machine, for those that are gone.
        lease: holder and end (unix seconds) of the supervisor that works on it.
        silent_since: unix seconds since when the machine does not answer; 0 while it does.
        retry_at: unix seconds before which no machine is asked for again.
    """

    name: str
    owner: str
    request: NodeRequest
    deadline: int
    cluster: str = ""
    budget: float | None = None
    max_restarts: int = 20
    jobs: tuple[Job, ...] = ()
    machine: Machine | None = None
    made: int = 0
    labelled: str = ""
    restarts: int = 0
    bills: dict[str, float] = field(default_factory=dict)
    lease: tuple[str, int] = ("", 0)
    removing: bool = False
    silent_since: int = 0
    retry_at: int = 0
    note: str = ""

    @property
    def job(self) -> Job | None:
        """The job that runs or is next."""
        return next((j for j in self.jobs if j.state in OPEN), None)

    @property
    def spent(self) -> float:
        """US dollars of the machines that are gone."""
        return sum(self.bills.values())

    def replace(self, **changes: Any) -> Queue:
        """A copy with the changes."""
        return dataclasses.replace(self, **changes)

    def with_job(self, job: Job) -> Queue:
        """A copy with this job in the place of its namesake."""
        return self.replace(jobs=tuple(job if j.name == job.name else j for j in self.jobs))


def to_document(queue: Queue) -> dict[str, Any]:
    """The queue as JSON; of the request only what differs from the defaults."""
    value = dataclasses.asdict(queue)
    plain = dataclasses.asdict(NodeRequest())
    value["request"] = {k: v for k, v in value["request"].items() if v != plain[k]}
    return value


def from_document(value: dict[str, Any]) -> Queue:
    """The inverse of `to_document`; fields of newer versions are ignored."""
    raw = {k: v for k, v in value.items() if k in _fields(Queue)}
    request = {k: v for k, v in raw["request"].items() if k in _fields(NodeRequest)}
    if "hosts" in request:
        request["hosts"] = tuple(Host(**h) for h in request["hosts"])
    raw["request"] = NodeRequest(**request)
    jobs = [{k: v for k, v in j.items() if k in _fields(Job)} for j in raw.get("jobs", ())]
    raw["jobs"] = tuple(Job(**{**j, "secrets": tuple(j.get("secrets", ()))}) for j in jobs)
    if machine := raw.get("machine"):
        machine = {k: v for k, v in machine.items() if k in _fields(Machine)}
        node = machine.get("node")
        raw["machine"] = Machine(**{**machine, "node": Node.from_dict(node) if node else None})
    raw["lease"] = tuple(raw.get("lease", ("", 0)))
    return Queue(**raw)


def _fields(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def load(documents: Documents, name: str) -> tuple[Queue, int]:
    """A queue and its generation; raises NotFound."""
    there = documents.read(f"{FOLDER}/{check_queue(name)}")
    if there is None:
        known = ", ".join(queue_names(documents)) or "none"
        raise NotFound(f"no queue {name!r} in {documents.where}", f"known: {known}")
    return from_document(there[0]), there[1]


def queue_names(documents: Documents) -> list[str]:
    """Names of all queues."""
    return [n.removeprefix(f"{FOLDER}/") for n in documents.names(FOLDER)]


def update(documents: Documents, name: str, change: Callable[[Queue], Queue]) -> Queue:
    """Changes a queue; where somebody else was faster, the change is made on theirs.

    Raises:
        NotFound: there is none. Busy: others kept changing it.
    """
    for _ in range(20):
        queue, generation = load(documents, name)
        changed = change(queue)
        try:
            documents.write(f"{FOLDER}/{name}", to_document(changed), generation)
            return changed
        except Conflict:
            continue
    raise Busy(f"the queue {name} is being changed by others all the time", "run it again")


def begin(documents: Documents, queue: Queue) -> None:
    """Writes a new queue; raises Conflict where the name is taken."""
    documents.write(f"{FOLDER}/{check_queue(queue.name)}", to_document(queue), NEW)
