"""Data about machines: their specification, themselves, offers, and calls to a provider."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from gaia import hardware
from gaia.hardware import Sku
from gml.errors import UsageError

ID = re.compile(r"[a-z](?:[a-z0-9-]{0,28}[a-z0-9])?")
_OWNER = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,38}[a-z0-9])?")

# States in which a node no longer works but may still cost money or hold quota.
DEAD = ("preempted", "failed", "suspended", "terminated")
# What has been asked for and is not there yet costs nothing: a queued resource of Google's.
WAITING = "waiting"
# What Lambda says of a machine that misses a look: often only for a moment.
DOUBTFUL = "unhealthy"


def check_id(text: str) -> str:
    """A node id that is safe as a cloud name, a label, a file name and an ssh host.

    Raises:
        UsageError: anything else (shell characters, paths, newlines, capitals, too long).
    """
    if not ID.fullmatch(text):
        raise UsageError(
            f"node name {text[:60]!r} is not usable",
            "use 1-30 of a-z, 0-9 and -, beginning with a letter",
        )
    return text


def check_owner(text: str) -> str:
    """An owner that is a legal label value; raises UsageError."""
    if not _OWNER.fullmatch(text):
        raise UsageError(f"owner {text[:60]!r} is not usable", "use 1-40 of a-z, 0-9, - and _")
    return text


def parse_sku(text: str) -> Sku:
    """The instance type of that name; raises UsageError with the nearest names."""
    try:
        return hardware.sku(text)
    except hardware.ConfigError as error:
        raise UsageError(error.problem, error.remedy) from None


def new_id(sku_name: str) -> str:
    """`v6e-8-k3x9q`: the type, then five random characters without look-alikes."""
    stem = re.sub(r"[^a-z0-9]+", "-", sku_name.lower()).strip("-")
    stem = stem if stem[:1].isalpha() else f"g{stem}"
    tail = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(5))
    return f"{stem[:20]}-{tail}"


@dataclass(frozen=True)
class Host:
    """One machine of a node: where ssh reaches it, and its address inside the slice."""

    address: str
    internal: str = ""
    port: int = 22
    user: str = ""


@dataclass(frozen=True)
class ApiRequest:
    """One call to a provider, exactly as `--dry-run` prints it; credentials are never in it."""

    service: str
    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None

    def describe(self, base: str) -> dict[str, Any]:
        """JSON for `--dry-run`."""
        query = "&".join(f"{k}={v}" for k, v in self.params.items())
        url = f"{base}/{self.path}" + (f"?{query}" if query else "")
        return {"method": self.method, "url": url, "body": self.body}


@dataclass(frozen=True)
class Offer:
    """A place where a node could be made. `price` is US dollars per hour for the whole of it."""

    provider: str
    sku: str
    zone: str
    spot: bool
    price: float | None
    capacity: str
    strategy: str
    limit: str
    source: str


@dataclass(frozen=True)
class CreateSpec:
    """Everything a provider needs to make a node. Times are unix seconds, durations seconds.

    `sku` is None only for local machines. `run_s` is how long the machine may live once it is up
    (0: until `deadline`); `deadline` also allows for the time in a queue. `limit_s` asks the
    provider's own deletion for more than `run_s`, so that `extend` has room; 0 means `run_s` and a
    minute. `queue` is the queue whose machine it becomes; '' for a user's own.
    """

    id: str
    owner: str
    sku: Sku | None
    created: int
    deadline: int
    sku_name: str = "local"
    spot: bool = False
    public_key: str = ""
    user: str = "gml"
    idle_s: int = 1800
    grace_s: int = 120
    disk_gb: int = 100
    reservation: str = ""
    wait_s: int = 3600
    strategy: str = "auto"
    hosts: tuple[Host, ...] = ()
    run_s: int = 0
    limit_s: int = 0
    internal_ip: bool = False
    runtime: str = ""
    queue: str = ""

    @property
    def timeout_s(self) -> int:
        """Lifetime from creation to the deadline."""
        return self.deadline - self.created

    def made(self, part: Node) -> bool:
        """Tells whether this very create made the part, not another one of the same name."""
        return (part.id, part.owner, part.created) == (self.id, self.owner, self.created)

    def labels(self) -> dict[str, str]:
        """The labels by which `gml reap` finds and judges the node, from any machine."""
        # Names are anybody's to choose: only this one tells a queue's machine from the user's own.
        queue = {"gml-queue": self.queue} if self.queue else {}
        return {
            "gml": "1",
            **queue,
            "gml-id": self.id,
            "gml-owner": self.owner,
            "gml-deadline": str(self.deadline),
            "gml-created": str(self.created),
            "gml-type": self.sku_name.lower(),
            "gml-spot": "1" if self.spot else "0",
        }


@dataclass(frozen=True)
class Node:
    """A node as stored locally or as found in a cloud.

    Attributes:
        phase: "intent" until the provider confirmed it, then "up"; "deleting" once asked to go.
        state: provider's state in lower case (creating, ready, preempted, failed, …).
        deadline: unix seconds; None when the user removed it; 0 when the label is unreadable,
            which counts as expired.
        limit: unix seconds of the provider's own deletion, None where there is none.
        resources: full names of what must be deleted, e.g. `tpu:projects/…/nodes/gml-x`.
        seen: unix seconds of the last look at which the cloud still had it; 0 for a record alone.
        tried: zones in which a create was begun, so that a crash leaves a place to look.
        queue: name of the queue that made it, by its label; '' for a user's own.
        up: unix seconds at which it came out of a queue, by its label; 0 without a queue.
        run: job of the `gml run` that made it and did not mean to keep it; in the record only.
    """

    id: str
    provider: str
    owner: str
    sku: str
    zone: str = ""
    strategy: str = ""
    phase: str = "up"
    state: str = ""
    deadline: int | None = 0
    created: int = 0
    timeout_s: int = 0
    limit: int | None = None
    spot: bool = False
    price: float | None = None
    hosts: tuple[Host, ...] = ()
    resources: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    deleted: int | None = None
    note: str = ""
    seen: int = 0
    queue: str = ""
    up: int = 0
    run: str = ""

    def holds(self, part: Node) -> bool:
        """Tells whether a part that a cloud shows belongs to this node.

        Names are not unique: another owner's part never does. While a create is under way, nor
        does what was there before it, made by the same owner from another machine. A queue's node
        holds the queue's parts only: the same owner may use the name in another zone.
        """
        newer = self.phase != "intent" or part.created >= self.created
        queued = not self.queue or part.queue == self.queue
        return (part.id, part.owner) == (self.id, self.owner) and newer and queued

    def expired(self, now: float) -> bool:
        """Past its deadline; a node without a readable deadline is (fail closed)."""
        return self.deadline is not None and now >= self.deadline

    def dead(self) -> bool:
        """Preempted, failed or suspended: useless, and still billed or holding quota."""
        return self.state in DEAD

    def doubtful(self) -> bool:
        """Its cloud says that it does not work, which is believed after minutes only."""
        return self.state == DOUBTFUL

    def cost(self, now: float) -> float | None:
        """US dollars so far at the list price; None without a price, or before it was seen.

        Time in a queue costs nothing. Time after the deadline counts only as far as the node was
        seen in it.
        """
        unseen = self.phase == "intent" and not self.state
        if self.price is None or not self.created or unseen:
            return None
        return self.price * max(0.0, self.ended(now) - self.begun(now)) / 3600

    def begun(self, now: float) -> float:
        """Unix seconds from which it costs: since it is up, and not at all while it waits."""
        return now if self.state == WAITING and not self.up else self.up or self.created

    def ended(self, now: float) -> float:
        """Unix seconds until which it costs: its end, or now, or the deadline where that is past.

        Whoever was seen alive after the deadline costs on until then.
        """
        if self.deleted:
            return self.deleted
        if not self.deadline:
            return now
        return min(now, max(self.deadline, self.seen))

    def replace(self, **changes: Any) -> Node:
        """A copy with the changes."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> Node:
        """The inverse of `to_json`, ignoring fields of newer versions; raises on nonsense."""
        known = {f.name for f in dataclasses.fields(Node)}
        values = {k: v for k, v in raw.items() if k in known}
        values["hosts"] = tuple(Host(**h) for h in values.get("hosts", ()))
        values["resources"] = tuple(values.get("resources", ()))
        values["tried"] = tuple(values.get("tried", ()))
        node = Node(**values)
        check_id(node.id)
        return node


def node_from_labels(
    labels: dict[str, str], *, provider: str, zone: str, state: str, **more: Any
) -> Node | None:
    """A node as its cloud labels tell it; None where they are not ours or have no usable id."""
    if labels.get("gml") != "1" or not ID.fullmatch(labels.get("gml-id", "")):
        return None
    text = labels.get("gml-deadline", "")
    deadline = None if text == "none" else int(text) if text.isdigit() else 0
    created, up = (
        int(text) if (text := labels.get(key, "")).isdigit() else 0
        for key in ("gml-created", "gml-up")
    )
    return Node(
        id=labels["gml-id"],
        provider=provider,
        owner=labels.get("gml-owner", ""),
        sku=labels.get("gml-type", ""),
        zone=zone,
        state=state,
        deadline=deadline,
        created=created,
        up=up,
        spot=labels.get("gml-spot") == "1",
        queue=labels.get("gml-queue", ""),
        **more,
    )
