"""The protocol behind which every provider stands. Adding a provider is one file (see README.md).

Rules that the teardown proof rests on:
- `create` returns a usable node or raises; before it raises it need not clean up (the caller calls
  `delete` with the same id, in every zone that was tried).
- Names are derived from the node id, so that `delete` finds halves of a create that was killed.
- Only resources that the node holds (`Node.holds`: id and owner) are deleted; `create` takes over
  only what the very same create made (`check_free`).
- Every resource carries `CreateSpec.labels()` (or what the provider has instead), so that
  `list_nodes` finds and judges it without any local state.
- `delete` is idempotent, waits until the provider no longer knows the resources, and raises only
  when it could not make sure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from gaia.hardware import Sku
from gml.errors import UsageError
from gml.model import ApiRequest, CreateSpec, Node, Offer
from gml.progress import Progress, silent

Check = dict[str, Any]


def check(name: str, ok: bool, detail: str, fix: str = "") -> Check:
    """One line of `gml doctor`; `fix` only matters when it is not ok."""
    return {"check": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def check_free(existing: Iterable[Node], spec: CreateSpec) -> None:
    """Raises UsageError where the name is taken, by anything but this very create.

    What this create made stays usable: its answer got lost, or it was killed and is taken over.
    """
    for node in existing:
        if node.owner != spec.owner:
            raise UsageError(f"{spec.id} exists and is another owner's", "take another --name")
        if not spec.made(node):
            remedy = f"see `gml node show {spec.id}`, or take another --name"
            raise UsageError(f"{spec.id} exists already", remedy)


class Provider(Protocol):
    """A cloud as gml sees it."""

    name: str
    # Whom the machines let in; '' for whatever ssh takes by itself.
    ssh_user: str

    def ready(self) -> bool:
        """Tells whether it is configured here. Makes no calls."""
        ...

    def sign_in(self) -> None:
        """Finds credentials, or raises AuthError with the command that mends it.

        `create` asks before it begins anything, so that nothing has to be undone without them.
        """
        ...

    def ask_time(self) -> None:
        """Learns the service's time, by which a create sets its deadline. Never raises."""
        ...

    def offers(
        self, sku: Sku, *, spot: bool, zone: str = "", live: bool = False, strategy: str = ""
    ) -> list[Offer]:
        """Places for `sku`, cheapest first; `live` asks the API instead of the dated table.

        `strategy` matters only to providers that know several ways to a machine.
        """
        ...

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The exact mutating calls that `create` makes, in order; no network."""
        ...

    def create(self, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
        """Makes the node and waits until it has addresses.

        Raises:
            StockOut, QuotaError, Denied, AuthError, Unavailable: told apart, so that the caller
            tries the next zone, stops, or says which command mends it.
        """
        ...

    def list_nodes(self) -> list[Node]:
        """Everything that carries our label, in all zones and in every half-made form.

        Raises:
            Incomplete: some zone or API could not be looked at; `seen` holds the rest.
        """
        ...

    def find(self, node: Node) -> Node | None:
        """The node as the cloud sees it now, or None when nothing of it exists in its zones."""
        ...

    def ended_at(self, node: Node) -> int | None:
        """Unix seconds at which a node that is gone was deleted, where the service remembers."""
        ...

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """The exact calls that `delete` makes for the node's known resources; no network."""
        ...

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Deletes all of it, and returns when the provider no longer knows it."""
        ...

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Moves the deadline label (None removes it).

        Raises:
            Unsafe: the provider's own limit ends earlier and cannot be moved.
        """
        ...

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """The exact calls of `set_deadline`; no network where the provider allows it."""
        ...

    def base_url(self, service: str) -> str:
        """For `--dry-run`: where a request of this service goes."""
        ...

    def doctor(self, instance_type: str = "") -> list[Check]:
        """Checks what is configured; with a type, also whether it is sold (where that is known)."""
        ...
