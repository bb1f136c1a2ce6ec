"""Creates a node. The order of steps is the safety.

A node's id and an intent record exist, fsynced, before any provider is asked. Whatever interrupts
a create (an exception, Ctrl-C, SIGTERM) deletes by that id; what can't run (kill -9, power) leaves
labels in the cloud and the intent here, and `gml reap` and the next create of the same name act on
them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from gml import budget
from gml.durations import format_duration
from gml.errors import Denied, GmlError, QuotaError, StockOut, Unsafe, UsageError
from gml.fleet import Fleet
from gml.heartbeat import heartbeat_age
from gml.model import CreateSpec, Node, Offer
from gml.nodes.arming import check_armed, send_key
from gml.nodes.ending import ended_at
from gml.nodes.signals import terminate_is_interrupt
from gml.nodes.undo import undo
from gml.planning import QUEUES, find_offers, make_spec, provider_for, spec_for
from gml.progress import Progress, silent
from gml.providers.base import Provider
from gml.remote.keys import check_key
from gml.remote.ssh import address_of
from gml.request import NodeRequest

# A heartbeat older than this does not vouch for a machine that only a reaper would end.
HEARTBEAT_S = 900


@dataclass
class Creation:
    """One create under way: what was asked, where things stand, whom to tell."""

    fleet: Fleet
    request: NodeRequest
    provider: Provider
    spec: CreateSpec
    intent: Node
    progress: Progress
    # Zone and strategy of what a killed create left, which is taken over.
    there: tuple[str, str] | None = None

    def note(self, **changes: object) -> Node:
        """Changes the intent record, in memory only after the disk has it."""
        self.intent = self.fleet.store.put(self.intent.replace(**changes))
        return self.intent


def create(
    fleet: Fleet,
    request: NodeRequest,
    progress: Progress = silent,
    on_up: Callable[[Node], None] = lambda node: None,
) -> Node:
    """Makes a node and returns it once its shell is usable.

    Args:
        fleet: where to make it.
        request: what to make.
        progress: told of each step.
        on_up: told of the node once it is up, from which moment on it costs money.

    Raises:
        UsageError: the name is taken. StockOut, QuotaError, Denied, AuthError, Unavailable:
            from the provider, when no place was left. Unsafe: nothing would end the machine.
    """
    provider = fleet.provider(provider_for(fleet, request))
    make_spec(fleet, request)  # mistakes are told before anybody is asked
    provider.ask_time()
    spec = make_spec(fleet, request)
    check_safe(fleet, provider, request)
    if request.wait_ssh and provider.name != "local":
        check_key(fleet.config)  # before anything is paid for
    provider.sign_in()
    with fleet.store.lock(spec.id), terminate_is_interrupt():
        spec, prior = _prior(fleet, spec, provider, progress)
        intent = prior or _intent(spec, provider, request)
        there = (prior.zone, prior.strategy) if prior else None
        creation = Creation(fleet, request, provider, spec, intent, progress, there)
        creation.note()
        if prior is None:
            fleet.ssh.forget_keys(intent)
        try:
            node = _try_places(creation)
            return _finish(creation, node, on_up)
        except BaseException as error:
            undo(fleet, creation.intent, provider, error, progress)
            raise


def check_safe(fleet: Fleet, provider: Provider, request: NodeRequest) -> None:
    """Raises Unsafe for Lambda, which ends nothing by itself, unless something else would."""
    if provider.name != "lambda" or request.unsafe or request.self_terminate:
        return
    age = heartbeat_age(fleet.config, provider.name, fleet.now())
    if age is None or age > HEARTBEAT_S:
        last = "none was ever seen" if age is None else f"last {format_duration(age)} ago"
        raise Unsafe(
            f"Lambda bills until someone terminates, and no reaper looks at it ({last})",
            "run `gml reaper install`, or add --self-terminate (puts a key on the machine), "
            "or --unsafe",
        )


def _intent(spec: CreateSpec, provider: Provider, request: NodeRequest) -> Node:
    return Node(
        id=spec.id,
        provider=provider.name,
        owner=spec.owner,
        sku=spec.sku_name,
        phase="intent",
        deadline=spec.deadline,
        created=spec.created,
        timeout_s=request.timeout_s,
        spot=spec.spot,
        hosts=spec.hosts,
        queue=spec.queue,
    )


def _prior(
    fleet: Fleet, spec: CreateSpec, provider: Provider, progress: Progress
) -> tuple[CreateSpec, Node | None]:
    """Takes over, or clears away, what an earlier, killed create of this name left."""
    record = fleet.store.get(spec.id)
    if record and record.provider != provider.name:
        raise UsageError(f"{spec.id} exists at {record.provider}", "take another --name")
    if record is None:
        return spec, None
    progress(f"looking for what an earlier create of {spec.id} left")
    live = provider.find(record)
    if live and live.owner != spec.owner:
        raise Denied(f"{spec.id} belongs to {live.owner}", "take another --name")
    if live and not live.dead() and not live.expired(fleet.now()):
        if record.phase == "up" or record.queue != spec.queue:
            raise UsageError(f"{spec.id} exists already", f"use `gml connect {spec.id}`")
        deadline = live.deadline or spec.deadline
        spec = dataclasses.replace(spec, created=live.created or spec.created, deadline=deadline)
        place = {"zone": live.zone, "strategy": live.strategy}
        return spec, record.replace(phase="intent", created=spec.created, **place)
    if record.tried or live:
        provider.delete(live or record, progress)
    fleet.store.remove(record, deleted=None if live else ended_at(fleet, record))
    return spec, None


def _try_places(creation: Creation) -> Node:
    """Tries one place after the other, all of them again with `retry_until_up`."""
    fleet, request = creation.fleet, creation.request
    begun = round(fleet.now())
    while True:
        problems: list[GmlError] = []
        try:
            offers = _ordered_offers(creation)
        except StockOut as error:
            offers = []
            problems.append(error)
        for offer in offers:
            try:
                # What is taken over keeps the times in its labels.
                over = (offer.zone, offer.strategy) == creation.there
                return _try_place(creation, offer, 0 if over else round(fleet.now()) - begun)
            except GmlError as error:
                creation.there = None
                if error.code not in (5, 6):
                    raise
                error.zone = offer.zone
                problems.append(error)
                creation.progress(f"{offer.zone}: {error.problem}")
                if creation.intent.tried:
                    creation.provider.delete(creation.intent, creation.progress)
        if not (request.retry_until_up and any(isinstance(p, StockOut) for p in problems)):
            raise _summary(creation.spec, problems)
        creation.progress(f"no capacity anywhere: next round in {request.retry_pause_s:.0f} s")
        time.sleep(request.retry_pause_s)


def _ordered_offers(creation: Creation) -> list[Offer]:
    offers = find_offers(creation.fleet, creation.spec, creation.request)
    if creation.there is None:
        return offers
    # Taken over from a killed create: where it is, not where it would be cheapest.
    return sorted(offers, key=lambda o: (o.zone, o.strategy) != creation.there)


def _try_place(creation: Creation, offer: Offer, waited_s: int) -> Node:
    fleet, request = creation.fleet, creation.request
    before = creation.intent.tried
    spec = spec_for(creation.spec, offer, waited_s)
    what = f"{offer.sku} in {offer.zone}"
    with budget.reserving(fleet):  # two creates at once must not both take the same last dollars
        budget.check(fleet, what, offer.price, request.timeout_s, creation.spec.id)
        creation.note(
            zone=offer.zone,
            strategy=offer.strategy,
            price=offer.price,
            deadline=spec.deadline,
            tried=tuple(dict.fromkeys((*before, f"{offer.strategy}:{offer.zone}"))),
        )
    creation.progress(_asking(creation.spec, offer))
    try:
        node = creation.provider.create(spec, offer, creation.progress)
        if offer.strategy in QUEUES:
            # What it costs and how long it lives count from here, not from when it was asked for.
            up = round(fleet.now())
            node = creation.provider.set_deadline(node.replace(up=up), up + request.timeout_s)
    except GmlError as error:
        if error.nothing_made:
            # What an earlier, killed create tried still counts.
            creation.note(tried=before)
        raise
    return node.replace(
        sku=creation.spec.sku_name,
        price=offer.price,
        timeout_s=request.timeout_s,
        tried=creation.intent.tried,
        queue=spec.queue,
    )


def _finish(creation: Creation, node: Node, on_up: Callable[[Node], None]) -> Node:
    """Records the node, waits for its shell, and makes sure that the watchdog is armed."""
    fleet, request = creation.fleet, creation.request
    node = creation.intent = fleet.store.put(node.replace(phase="up"))
    on_up(node)
    fleet.ssh.write_config()
    if not request.wait_ssh:
        return node
    fleet.ssh.wait(node, 300, creation.progress)
    if request.self_terminate:
        spec = dataclasses.replace(creation.spec, deadline=node.deadline or creation.spec.deadline)
        send_key(fleet, node, spec, creation.provider)
    if node.limit is None and not request.unsafe:
        check_armed(fleet, node, creation.progress)
    return node


def _asking(spec: CreateSpec, offer: Offer) -> str:
    """Names the type, the place and the price of the next attempt."""
    place = offer.zone or ", ".join(address_of(h) for h in spec.hosts)
    price = "price unknown" if offer.price is None else f"${offer.price:.2f}/h"
    return f"asking for {offer.sku} in {place} ({offer.strategy}), {price}"


def _summary(spec: CreateSpec, problems: list[GmlError]) -> GmlError:
    """One error for all zones; capacity is the reason where it was the reason anywhere."""
    kinds = [p for p in problems if isinstance(p, StockOut)] or problems
    first = kinds[0]
    if len(problems) == 1:
        return first
    lacks = {StockOut: "no capacity in", QuotaError: "no quota in"}
    texts: dict[str, list[str]] = {lack: [] for lack in lacks.values()}
    for error in problems:
        lack = lacks.get(type(error), "not offered to this project in")
        texts.setdefault(lack, []).append(error.zone)
    listed = "; ".join(f"{lack} {', '.join(zones)}" for lack, zones in texts.items() if zones)
    problem = f"none of {len(problems)} places has {spec.sku_name} now"
    return type(first)(f"{problem}: {listed}", first.remedy)
