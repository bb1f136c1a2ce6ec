"""Machines that their cloud calls unhealthy: believed after minutes, and after a look at the jobs.

One reading is no proof: Lambda says so of machines that miss a single look. Since when it has said
so is a document that all reapers of an owner share, as each of them may run only once.
"""

from __future__ import annotations

import contextlib

from gml.documents import NEW, Conflict, open_documents
from gml.durations import format_duration
from gml.errors import GmlError
from gml.fleet import Fleet
from gml.model import Node
from gml.remote import jobs

NAME = "unhealthy"
# Unhealthy for so long, and without a job that runs, a machine is ended.
BELIEVED_S = 600


class Doubts:
    """Everything that one pass of the reaper learns about unhealthy machines."""

    def __init__(self, fleet: Fleet, *, dry_run: bool) -> None:
        self.fleet = fleet
        self.dry_run = dry_run
        self.before: dict[str, float] | None = None
        self.now: dict[str, float] = {}
        self.problem = ""

    def reason(self, node: Node, record: Node | None) -> str:
        """Reason to end an unhealthy machine, or ''."""
        if node.provider != "lambda":
            return ""  # no other cloud says so
        known = self._known()  # also for healthy ones: what was noted of them is forgotten then
        if not node.doubtful():
            return ""
        now = self.fleet.now()
        since = self.now[node.id] = known.get(node.id, now)
        if now - since < BELIEVED_S or self._works(record or node):
            return ""
        return f"unhealthy for {format_duration(now - since)}, and no job runs on it"

    def keep(self) -> list[str]:
        """Remembers since when; lines on what could not be remembered."""
        if self.dry_run or self.before is None or self.before == self.now:
            return [self.problem] if self.problem else []
        try:
            documents = open_documents(self.fleet.config)
            there = documents.read(NAME)
            with contextlib.suppress(Conflict):  # another reaper has just seen the same
                documents.write(NAME, {"since": self.now}, there[1] if there else NEW)
        except (GmlError, OSError) as error:
            return [f"unhealthy machines can't be remembered: {error}"]
        return [self.problem] if self.problem else []

    def _known(self) -> dict[str, float]:
        if self.before is None:
            self.before = {}
            try:
                there = open_documents(self.fleet.config).read(NAME)
                self.before = dict((there[0] if there else {}).get("since") or {})
            except (GmlError, OSError) as error:
                self.problem = f"since when machines are unhealthy is not known: {error}"
        return self.before

    def _works(self, node: Node) -> bool:
        """Tells whether a job runs there; a machine that can't be looked at does not work."""
        if not node.hosts or self.fleet.store.get(node.id) is None:
            return False
        try:
            self.fleet.ssh.write_config()
            names = jobs.names(self.fleet.ssh, node)
            return any(jobs.status(self.fleet.ssh, node, n) == "running" for n in names)
        except (GmlError, OSError):
            return False
