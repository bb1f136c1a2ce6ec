"""The nodes that exist: local records and the clouds' labels, merged and told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gaia import hardware
from gml.clock import service_clock
from gml.config import Config
from gml.errors import GmlError, Incomplete, NotFound
from gml.model import Node, check_id
from gml.places import region_of
from gml.providers import registry
from gml.providers.base import Provider
from gml.remote.ssh import Ssh
from gml.store import Store
from gml.threads import in_parallel


@dataclass
class Listing:
    """All nodes of ours that could be seen, and what could not be looked at."""

    nodes: list[Node] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Fleet:
    """Configuration, records and clouds of one owner. `now` is the services' time."""

    def __init__(
        self, config: Config, store: Store, now: Callable[[], float] = service_clock.now
    ) -> None:
        self.config = config
        self.store = store
        self.now = now
        self.ssh = Ssh(config, store)
        self._providers: dict[str, Provider] = {}

    def provider(self, name: str) -> Provider:
        """The provider of that name, made once."""
        if name not in self._providers:
            self._providers[name] = registry.get(name, self.config, self.store)
        return self._providers[name]

    def configured(self) -> list[Provider]:
        """Every provider with credentials or hosts here."""
        return [p for p in (self.provider(n) for n in registry.NAMES) if p.ready()]

    def list_live(self) -> Listing:
        """Nodes of this owner in all configured clouds, merged with the local records.

        `note` flags `orphan` (our label, no record here) and `lost` (a record, nothing there).
        """
        listing = Listing()
        seen: dict[str, Node] = {}
        foreign: dict[tuple[str, str], Node] = {}
        complete: set[str] = set()
        configured = self.configured()
        listing.problems += self.out_of_sight(configured)
        for provider, nodes, problem in _look_at(configured):
            if problem:
                listing.problems.append(f"{provider.name}: {problem}")
            else:
                complete.add(provider.name)
            for node in nodes:
                if node.owner == self.config.owner:
                    seen[node.id] = node
                else:
                    foreign[node.id, node.owner] = node
        for record in self.store.all():
            live = seen.pop(record.id, None) or foreign.get((record.id, record.owner))
            settled = live is not None and record.phase == "up"
            busy = not settled and self.store.locked(record.id)
            sure = record.provider in complete and not busy
            if live is None and sure:
                live, problem = self._by_name(record)
                listing.problems += [problem] if problem else []
                sure = not problem
            if live:
                node = merge(record, live).replace(seen=round(self.now()))
            elif record.phase != "intent" and sure:
                node = record.replace(note="lost")
            else:
                node = record.replace(note="half-made" if record.phase == "intent" else "")
            listing.nodes.append(node.replace(note="busy") if busy else node)
        for node in seen.values():
            node = priced(node).replace(seen=round(self.now()))
            listing.nodes.append(node.replace(note="orphan"))
            if node.id in self.store.damaged():
                self.store.put(node.replace(phase="up"))
                self.store.clear_damaged(node.id)
        return listing

    def _by_name(self, record: Node) -> tuple[Node | None, str]:
        """A machine that no list shows, such as one in another project; and why nobody can tell."""
        if record.phase == "intent":
            return None, ""  # what a create has left is told from its record
        try:
            return self.provider(record.provider).find(record), ""
        except GmlError as error:
            return None, f"{record.id}: {error}"

    def out_of_sight(self, configured: list[Provider]) -> list[str]:
        """Clouds where we have nodes by our records, and that are not configured here any more."""
        ready = {p.name for p in configured}
        away: dict[str, list[str]] = {}
        for record in self.store.all():
            if record.provider not in ready:
                away.setdefault(record.provider, []).append(record.id)
        return [
            f"{name}: not configured here (`gml doctor`), but we have {', '.join(ids)} there"
            for name, ids in away.items()
        ]

    def resolve(self, node_id: str) -> Node:
        """The node of that id, from the record or, without one, from the clouds; or NotFound."""
        record = self.store.get(check_id(node_id))
        if record:
            return record
        listing = self.list_live()
        for node in listing.nodes:
            if node.id == node_id:
                # A rebuilt record: the file was lost or damaged, or another machine made the node.
                node = self.store.put(node.replace(phase="up", note=""))
                self.store.clear_damaged(node.id)
                self.ssh.write_config()
                return node
        known = ", ".join(n.id for n in listing.nodes[:5]) or "none"
        problems = f" ({'; '.join(listing.problems)})" if listing.problems else ""
        raise NotFound(
            f"no node {node_id!r} of owner {self.config.owner}{problems}", f"known: {known}"
        )


def priced(node: Node) -> Node:
    """A node told by its labels alone, with the type's proper name and its list price."""
    sku = next((s for n, s in hardware.skus().items() if n.lower() == node.sku.lower()), None)
    if sku is None:
        return node
    price = node.price
    if price is None:
        place = region_of(node.zone)
        price = sku.price_per_hour(spot=node.spot, region=place, provider=node.provider)
    return node.replace(sku=sku.name, price=price)


def merge(record: Node, live: Node) -> Node:
    """The node as the cloud sees it now, with the record's type, price and phase."""
    return live.replace(
        sku=record.sku,
        phase="up" if record.phase == "intent" and live.state == "ready" else record.phase,
        price=record.price if live.price is None else live.price,
        timeout_s=record.timeout_s,
        tried=record.tried,
        run=record.run,
        up=live.up or record.up,
        zone=live.zone or record.zone,
        strategy=live.strategy or record.strategy,
        hosts=live.hosts or record.hosts,
        limit=live.limit or record.limit,
        note="half-made" if record.phase == "intent" else "",
    )


def _look_at(providers: list[Provider]) -> list[tuple[Provider, list[Node], str]]:
    results: dict[str, tuple[list[Node], str]] = {}

    def look(provider: Provider) -> None:
        try:
            results[provider.name] = (provider.list_nodes(), "")
        except Incomplete as error:
            results[provider.name] = (error.seen, error.problem)
        except GmlError as error:
            results[provider.name] = ([], str(error))
        except Exception as error:  # in a thread it would be told as a traceback
            results[provider.name] = ([], f"{type(error).__name__}: {error}")

    in_parallel([lambda p=p: look(p) for p in providers])
    missing = ([], "failed unexpectedly")
    return [(p, *results.get(p.name, missing)) for p in providers]
