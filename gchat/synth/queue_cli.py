"""`gchat synth worker|status|priority|dead`: work on a queue, look at it, and steer it."""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError, GaiaError
from gchat.client import Budget, ClientError
from gchat.endpoint_client import KEY_VARIABLE, EndpointClient, read_key
from gchat.queue import Queue, Rules, Tally, in_threads, open_queue, run_worker
from gchat.queue.status import duration, lines, status
from gchat.synth import answering, making


class Stopped(GaiaError):
    """A worker that a signal ended; its exit status is a shell's."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}: stopped; what was not finished waits in the queue")
        self.exit_status = 128 + number


@dataclass(frozen=True, kw_only=True)
class _OnQueue:
    queue: tyro.conf.Positional[str]
    """Address: a file, redis://…, postgresql://…, sqs://… or pubsub://…"""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Status(_OnQueue):
    """Show a queue's backlog, rate, time left, cost and failures by reason; change nothing.

    gchat synth status runs/records/queue.db
    gchat synth status runs/records/queue.db --watch
    """

    watch: bool = False
    """Show it again and again until the queue is done, or Ctrl-C."""
    every_s: float = 2.0
    """Seconds between two looks of --watch."""
    window_s: float = 300.0
    """Seconds back from now over which the rate is taken."""

    def run(self) -> None:
        """Prints the state, once or until nothing is open."""
        if self.every_s <= 0 or self.window_s <= 0:
            raise ConfigError("--every-s and --window-s are seconds above 0", "give larger ones")
        with open_queue(self.queue) as queue:
            while True:
                state = status(queue, self.window_s)
                if self.json:
                    print(json.dumps(state), flush=True)
                else:
                    _show(lines(state), again=self.watch)
                if not self.watch or not state["waiting"] + state["leased"]:
                    return
                time.sleep(self.every_s)


@dataclass(frozen=True, kw_only=True)
class Worker(_OnQueue):
    """Work on a queue: lease items, ask an endpoint, keep the results; any number at once.

    Stopped by SIGTERM, SIGHUP or Ctrl-C it gives back what it has not finished. Killed, its items
    come back when their leases run out.

    gchat synth worker runs/records/queue.db --endpoint http://127.0.0.1:8000/v1
    gchat synth worker redis://10.0.0.2/0?name=ww2 --endpoint http://127.0.0.1:8000/v1 --wait
    """

    endpoint: str
    """Address of a server that speaks OpenAI's protocol."""
    model: str | None = None
    """Name of the endpoint's model; needed where it has several."""
    key_env: str | None = None
    """Variable with the endpoint's API key; GAIA_API_KEY when left out."""
    key_file: Path | None = None
    """File with the endpoint's API key."""
    concurrency: int = 64
    """Items in work at once."""
    lease_s: float = 120.0
    """Seconds after which the items of a dead worker come back; a living one renews its leases."""
    wait: bool = False
    """Stay when nothing is left to do, for items that will be added."""
    grace_s: float = 10.0
    """Seconds that running items get when the worker is stopped."""
    backoff_s: float = 2.0
    """Seconds before an item's second attempt; doubled with each further one."""
    patience_s: float = 600.0
    """Seconds with an endpoint that answers nobody, after which the worker ends."""
    timeout_s: float = 600.0
    """Seconds that an answer may take."""
    max_requests: int | None = None
    """Cap on requests to the endpoint."""
    max_total_tokens: int | None = None
    """Cap on the tokens of prompts and answers."""
    prompt_price: float = 0.0
    """US dollars for a million tokens of prompts."""
    completion_price: float = 0.0
    """US dollars for a million tokens of answers."""

    def run(self) -> None:
        """Works until nothing is open in the queue."""
        rules = Rules(
            concurrency=self.concurrency, lease_s=self.lease_s, wait=self.wait,
            grace_s=self.grace_s, backoff_s=self.backoff_s, patience_s=self.patience_s,
        )  # fmt: skip
        rules.check()
        with open_queue(self.queue) as queue:
            client = self._client()
            try:
                price = making.priced(self.prompt_price, self.completion_price)
                do = in_threads(answering.make_do(client, price), self.concurrency)
                tally, signal = run_worker(queue, do, rules, watch=_Watch(queue))
            finally:
                client.close()
            facts = {
                "done": tally.done, "failed": tally.failed, "lost": tally.lost,
                "released": tally.released, "cost": round(tally.cost, 6),
                "wall_s": round(tally.wall_s, 3), "busy_s": round(tally.busy_s, 3),
                "paused_s": round(tally.paused_s, 3), "failures": dict(tally.reasons),
            }  # fmt: skip
            print(json.dumps(facts) if self.json else _sentence(tally))
        if signal is not None:
            raise Stopped(signal.name, signal)

    def _client(self) -> EndpointClient:
        key = read_key(self.key_env or KEY_VARIABLE, self.key_file)
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"the variable {self.key_env} is not set", "check --key-env")
        until, pause = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                # The queue repeats what fails, so that a slot is never spent on waiting.
                return EndpointClient(
                    self.endpoint, model=self.model, key=key, tries=1, timeout_s=self.timeout_s,
                    budget=Budget(self.max_requests, self.max_total_tokens),
                )  # fmt: skip
            except ClientError as error:  # a server that still loads its model
                if error.after_s is None or time.monotonic() + pause > until:
                    raise
                if pause == 0.5:
                    print(f"gchat: waiting for the endpoint ({error.problem})", file=sys.stderr)
            time.sleep(pause)
            pause = min(10.0, pause * 2)


@dataclass(frozen=True, kw_only=True)
class Priority(_OnQueue):
    """Change the priority of items that have not ended; workers take the new order at once.

    gchat synth priority runs/records/queue.db --to 10 --where kind=contrast
    """

    to: float
    """New priority; larger is sooner. Waiting for ten minutes weighs as much as a step of 1."""
    where: tuple[str, ...] = ()
    """Fields of the payload, as NAME=VALUE; items that have all of them change."""
    all: bool = False
    """Change all items, without --where."""

    def run(self) -> None:
        """Changes them and prints how many they were."""
        if bool(self.where) == self.all:
            raise ConfigError("which items are to change is not said", "give --where, or --all")
        where = {}
        for text in self.where:
            name, equals, value = text.partition("=")
            if not name or not equals:
                raise ConfigError(f"--where has {text!r}", "write NAME=VALUE, as kind=qa")
            where[name] = value
        with open_queue(self.queue) as queue:
            changed = queue.priority(where, self.to)
        said = f"{changed:,} items have priority {self.to:g}"
        print(json.dumps({"changed": changed}) if self.json else said)


@dataclass(frozen=True, kw_only=True)
class DeadLetter(_OnQueue):
    """List the items that were given up, with their reasons; or try them again.

    gchat synth dead runs/records/queue.db
    gchat synth dead runs/records/queue.db --retry --reason time-out
    """

    retry: bool = False
    """Put them back into the queue, with all their attempts."""
    reason: str | None = None
    """Only those that failed for this reason, as `gchat synth status` names it."""

    def run(self) -> None:
        """Prints one line for each, or how many go back."""
        with open_queue(self.queue) as queue:
            if self.retry:
                count = queue.revive(self.reason)
                said = f"{count:,} items wait again"
                print(json.dumps({"retried": count}) if self.json else said)
                return
            for one in queue.dead():
                if self.reason is not None and one.reason.partition(":")[0] != self.reason:
                    continue
                facts: dict[str, Any] = {"id": one.item.id, "reason": one.reason}
                facts |= {"attempts": one.attempts, "payload": one.item.payload}
                times = "once" if one.attempts == 1 else f"{one.attempts} times"
                said = f"{one.item.id}  tried {times}  {one.reason}"
                print(json.dumps(facts, ensure_ascii=False) if self.json else said)


class _Watch:
    """A line on how a worker gets on: over and over on a terminal, each half minute in a log."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._tty = queue, sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._tty else 30.0)

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() < self._next:
            return
        rate, begun = tally.done / tally.wall_s if tally.wall_s else 0.0, time.monotonic()
        left = self._queue.counts().open
        took = time.monotonic() - begun  # of a broker with a million items, minutes
        self._next = time.monotonic() + max(1.0 if self._tty else 30.0, 10 * took)
        eta = f", {duration(left / rate)} left for this worker alone" if rate else ""
        text = f"{_sentence(tally)}; {tally.running} in work, {left:,} open{eta}"
        print(f"\r\x1b[K{text}" if self._tty else text, end="" if self._tty else "\n",
              file=sys.stderr, flush=True)  # fmt: skip


def _sentence(tally: Tally) -> str:
    rate = tally.done / tally.wall_s if tally.wall_s else 0.0
    parts = [f"{tally.done:,} done ({rate:,.1f} items/s)"]
    for count, name in ((tally.failed, "failed attempts"), (tally.released, "given back"),
                        (tally.lost, "came too late")):  # fmt: skip
        if count:
            parts.append(f"{count:,} {name}")
    if tally.paused_s >= 1:
        parts.append(f"waited {duration(tally.paused_s)} for the endpoint")
    if tally.cost:
        parts.append(f"${tally.cost:,.4f}")
    return ", ".join(parts)


def _show(text: list[str], *, again: bool) -> None:
    """Prints lines, in place of those before where a person watches."""
    if again and sys.stdout.isatty():
        print("\x1b[H\x1b[J" + "\n".join(text), flush=True)
    else:
        print("\n".join(text), flush=True)


VERBS = {"worker": Worker, "status": Status, "priority": Priority, "dead": DeadLetter}
