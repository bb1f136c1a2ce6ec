"""The life of a node: intent, create, adopt, extend, delete. The order of steps is the safety.

A node's id and an intent record exist, fsynced, before any provider is asked. Whatever interrupts
a create (an exception, Ctrl-C, SIGTERM) deletes by that id; what can't run (kill -9, power) leaves
labels in the cloud and the intent here, and `gml reap` and the next create of the same name act on
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from gml.durations import format_duration
from gml.errors import Denied, GmlError, StockOut, Unavailable, Unsafe, UsageError
from gml.fleet import clock
from gml.model import ApiRequest, CreateSpec, Node, Offer
from gml.planning import QUEUES, Planner, Wish, spec_for
from gml.providers.base import Provider, Tick, silent
from gml.ssh import address_of
from gml.threads import on_hosts


class Manager(Planner):
    """Everything that changes nodes."""

    def create(self, wish: Wish, tick: Tick = silent) -> Node:
        """Makes a node and returns it once its shell is usable.

        Raises:
            UsageError: the name is taken. StockOut, QuotaError, Denied, AuthError, Unavailable:
                from the provider, when no place was left. Unsafe: nothing would end the machine.
        """
        spec = self.spec(wish)
        provider = self.provider(wish.provider or self._provider_for(wish))
        self.check_safe(provider, wish)
        provider.sign_in()
        with self.store.lock(spec.id), terminate_is_interrupt():
            spec, prior = self._prior(spec, provider, tick)
            intent = prior or Node(
                id=spec.id,
                provider=provider.name,
                owner=spec.owner,
                sku=spec.sku_name,
                phase="intent",
                deadline=spec.deadline,
                created=spec.created,
                timeout_s=wish.timeout_s,
                spot=spec.spot,
                hosts=spec.hosts,
            )
            self.store.put(intent)
            try:
                node = self._try_offers(spec, wish, provider, intent, tick)
                spec = dataclasses.replace(spec, deadline=node.deadline or spec.deadline)
                return self._finish(node, spec, wish, provider, tick)
            except BaseException as error:
                self.undo(spec.id, provider, error, tick)
                raise

    def check_safe(self, provider: Provider, wish: Wish) -> None:
        """Lambda ends nothing by itself: something else must stand ready, or the user insists."""
        if provider.name != "lambda" or wish.unsafe or wish.self_terminate:
            return
        from gml.reaper import heartbeat_age

        age = heartbeat_age(self.config, provider.name, self.now())
        if age is None or age > 900:
            seen = "none was ever seen" if age is None else f"last {format_duration(age)} ago"
            raise Unsafe(
                f"Lambda bills until someone terminates, and no reaper looks at it ({seen})",
                "run `gml reaper install`, or add --self-terminate (puts a key on the machine), "
                "or --unsafe",
            )

    def _prior(
        self, spec: CreateSpec, provider: Provider, tick: Tick
    ) -> tuple[CreateSpec, Node | None]:
        """What an earlier, killed create of this name left: taken over, or cleared away."""
        record = self.store.get(spec.id)
        if record and record.provider != provider.name:
            raise UsageError(f"{spec.id} exists at {record.provider}", "take another --name")
        if record is None:
            return spec, None
        tick(f"looking for what an earlier create of {spec.id} left")
        found = provider.find(record)
        if found and found.owner != spec.owner:
            raise Denied(f"{spec.id} belongs to {found.owner}", "take another --name")
        if found and not found.dead() and not found.expired(self.now()):
            if record.phase == "up":
                raise UsageError(f"{spec.id} exists already", f"use `gml connect {spec.id}`")
            deadline = found.deadline or spec.deadline
            created = found.created or spec.created
            spec = dataclasses.replace(spec, created=created, deadline=deadline)
            return spec, record.replace(phase="intent", zone=found.zone, strategy=found.strategy)
        if record.tried or found:
            provider.delete(found or record, tick)
        self.store.remove(record)
        return spec, None

    def _try_offers(
        self, spec: CreateSpec, wish: Wish, provider: Provider, intent: Node, tick: Tick
    ) -> Node:
        begun = round(self.now())
        while True:
            problems: list[GmlError] = []
            try:
                offers = self.offers(spec, wish)
            except StockOut as error:
                offers = []
                problems.append(error)
            if intent.zone:
                # Taken over from a killed create: where it is, not where it would be cheapest.
                there = (intent.zone, intent.strategy)
                offers = sorted(offers, key=lambda o: (o.zone, o.strategy) != there)
            for offer in offers:
                waited = round(self.now()) - begun
                before = intent.tried
                now_spec = spec_for(spec, offer, waited)
                intent = intent.replace(
                    zone=offer.zone,
                    strategy=offer.strategy,
                    price=offer.price,
                    deadline=now_spec.deadline,
                    tried=tuple(dict.fromkeys((*before, f"{offer.strategy}:{offer.zone}"))),
                )
                self.store.put(intent)
                tick(_asking(spec, offer))
                try:
                    node = provider.create(now_spec, offer, tick)
                    if offer.strategy in QUEUES:
                        deadline = round(self.now()) + wish.timeout_s
                        node = provider.set_deadline(node, deadline)
                    return node.replace(
                        sku=spec.sku_name,
                        price=offer.price,
                        timeout_s=wish.timeout_s,
                        tried=intent.tried,
                    )
                except GmlError as error:
                    if error.nothing_made:
                        # What an earlier, killed create tried still counts.
                        intent = self.store.put(intent.replace(tried=before))
                    if error.code not in (5, 6):
                        raise
                    error.zone = offer.zone
                    problems.append(error)
                    tick(f"{offer.zone}: {error.problem}")
                    if intent.tried:
                        provider.delete(intent, tick)
            if not (wish.retry_until_up and any(isinstance(p, StockOut) for p in problems)):
                raise _summary(spec, problems)
            tick(f"no capacity anywhere: next round in {wish.retry_pause_s:.0f} s")
            time.sleep(wish.retry_pause_s)

    def _finish(
        self, node: Node, spec: CreateSpec, wish: Wish, provider: Provider, tick: Tick
    ) -> Node:
        """Records the node, waits for its shell, and makes sure that the watchdog is armed."""
        node = self.store.put(node.replace(phase="up"))
        self.on_up(node)
        self.ssh.write_config()
        if not wish.wait_ssh:
            return node
        self.ssh.wait(node, 300, tick)
        if wish.self_terminate:
            self._send_key(node, spec, provider)
        if node.limit is None and not wish.unsafe:
            self._check_armed(node, tick)
        return node

    def _check_armed(self, node: Node, tick: Tick) -> None:
        folder = '"$HOME/.gml/node"' if node.provider == "local" else "/var/lib/gml"
        tick("waiting for the watchdog's first beat")

        def check(index: int) -> None:
            done = self.ssh.run(
                node,
                f"for i in $(seq 240); do [ -s {folder}/beat ] && exit 0; sleep 0.25; done; exit 9",
                index=index,
                check=False,
                timeout_s=90,
            )
            if done.returncode != 0:
                raise Unsafe(
                    f"the watchdog on {node.id} host {index} does not run, and {node.provider} "
                    "has no time limit of its own here",
                    "use another --strategy; or add --unsafe to keep it, and read "
                    "`journalctl -u gml-watchdog` there",
                )

        on_hosts(len(node.hosts), check)

    def _send_key(self, node: Node, spec: CreateSpec, provider: Provider) -> None:
        script = getattr(provider, "self_terminate_script", None)
        if script is None:
            raise UsageError(f"--self-terminate is not for {provider.name}", "leave it out")
        # Over stdin of ssh into a root-only file: never in user data, argv or logs.
        self.ssh.run(node, script(node, spec))

    def undo(self, node_id: str, provider: Provider, error: BaseException, tick: Tick) -> None:
        """Deletes whatever a failed create has made; a second Ctrl-C does not stop this."""
        record = self.store.get(node_id)
        if record is None:
            return
        with _uninterrupted():
            try:
                if record.tried:
                    tick("removing what the create had begun")
                    provider.delete(record, tick)
                self.store.remove(record)
                self.ssh.forget(record)
                if isinstance(error, KeyboardInterrupt):
                    error.add_note(f"stopped; nothing of {node_id} is left")
            except Exception as second:
                text = getattr(second, "problem", str(second))
                error.add_note(
                    f"{node_id} may still exist ({text}); its deadline stands, and "
                    f"`gml reap` or `gml node delete {node_id}` removes it"
                )

    # ---- change

    def extend(self, node: Node, deadline: int | None) -> Node:
        """Moves the deadline in the label, in the record and on the machine itself.

        Raises:
            Unsafe: the provider's own limit ends earlier; it says until when.
        """
        provider = self.provider(node.provider)
        with self.store.lock(node.id):
            self._check_limit(node, deadline)
            moved = self.store.put(provider.set_deadline(node, deadline))
            if node.provider != "local":
                self._tell_watchdogs(moved, node.deadline)
            return moved

    def _check_limit(self, node: Node, deadline: int | None) -> None:
        if node.limit is None:
            return
        if deadline is None:
            raise Unsafe(
                f"{node.provider} itself deletes {node.id} at {clock(node.limit)}",
                "that limit can't be removed; make another node with a longer --timeout",
            )
        if deadline > node.limit:
            raise Unsafe(
                f"{node.provider} itself deletes {node.id} at {clock(node.limit)} "
                f"(in {format_duration(node.limit - self.now())})",
                "that limit can't move; extend up to it, or create with a larger --limit",
            )

    def _tell_watchdogs(self, moved: Node, before: int | None) -> None:
        value = "none" if moved.deadline is None else str(moved.deadline)
        script = f"printf %s {value} | sudo -n tee /var/lib/gml/deadline >/dev/null"

        def tell(index: int) -> None:
            try:
                self.ssh.run(moved, script, index=index)
            except Unavailable as error:
                raise Unavailable(
                    f"the labels of {moved.id} have the new end, but its watchdog may still end it "
                    f"at {'no time' if before is None else clock(before)}: {error.problem}",
                    "run it again once ssh works",
                ) from None

        on_hosts(len(moved.hosts), tell)

    def delete(self, node: Node, tick: Tick = silent) -> None:
        """Deletes the node and its record.

        Raises:
            Denied: its labels name another owner. Unavailable, Incomplete: it may still exist.
        """
        provider = self.provider(node.provider)
        with self.store.lock(node.id):
            live = provider.find(node)
            owner = live.owner if live else node.owner
            if owner != self.config.owner:
                raise Denied(
                    f"{node.id} belongs to {owner}, you are {self.config.owner}",
                    "set GML_OWNER if both are you",
                )
            if self.store.get(node.id):
                self.store.put(node.replace(phase="deleting"))
            provider.delete(_union(node, live), tick)
            self.store.remove(node, deleted=round(self.now()))
            self.ssh.forget(node)

    def delete_plan(self, node: Node) -> list[dict]:
        """What `delete --dry-run` prints."""
        return self._describe(node, self.provider(node.provider).delete_requests(node))

    def extend_plan(self, node: Node, deadline: int | None) -> list[dict]:
        """What `extend --dry-run` prints; refused where `extend` would be."""
        self._check_limit(node, deadline)
        return self._describe(node, self.provider(node.provider).deadline_requests(node, deadline))

    def _describe(self, node: Node, requests: list[ApiRequest]) -> list[dict]:
        provider = self.provider(node.provider)
        return [r.describe(provider.base_url(r.service)) for r in requests]


def _union(node: Node, live: Node | None) -> Node:
    if live is None:
        return node
    return node.replace(
        resources=tuple(dict.fromkeys((*node.resources, *live.resources))),
        zone=node.zone or live.zone,
        strategy=node.strategy or live.strategy,
    )


def _asking(spec: CreateSpec, offer: Offer) -> str:
    """What is asked for, where, and at which price."""
    place = offer.zone or ", ".join(address_of(h) for h in spec.hosts)
    price = "price unknown" if offer.price is None else f"${offer.price:.2f}/h"
    return f"asking for {offer.sku} in {place} ({offer.strategy}), {price}"


def _summary(spec: CreateSpec, problems: list[GmlError]) -> GmlError:
    """One error for all zones: quota only when nowhere capacity alone was the reason."""
    kinds = [p for p in problems if isinstance(p, StockOut)] or problems
    first = kinds[0]
    if len(problems) == 1:
        return first
    texts = []
    for what, places in (
        ("capacity", [p.zone for p in problems if isinstance(p, StockOut)]),
        ("quota", [p.zone for p in problems if not isinstance(p, StockOut)]),
    ):
        if places:
            texts.append(f"no {what} in {', '.join(places)}")
    found = f"none of {len(problems)} places has {spec.sku_name} now"
    return type(first)(f"{found}: {'; '.join(texts)}", first.remedy)


@contextlib.contextmanager
def _signals(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Another handler for these signals inside of it; only the main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, handler) for s in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def terminate_is_interrupt() -> contextlib.AbstractContextManager[None]:
    """SIGTERM and SIGHUP (a closed terminal) unwind like Ctrl-C, so that `undo` runs."""

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return _signals(raise_interrupt, signal.SIGTERM, signal.SIGHUP)


def _uninterrupted() -> contextlib.AbstractContextManager[None]:
    return _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
