"""A queue in Redis, for many machines: each call is one Lua script, by the server's clock.

What outlives a crash of the server is the server's setting: with `appendonly yes` and
`appendfsync always` every call is on its disk before it is answered, with `everysec` the last
second may be gone (finished items are then done again), without `appendonly` everything may.
"""

import contextlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from gaia.errors import ConfigError
from gchat.queue import protocol
from gchat.queue import redis_scripts as lua
from gchat.queue.base import Closing, driver, to_json
from gchat.queue.protocol import Counts, Dead, Facts, Item, Lease, QueueError, Result

_TIMEOUT_S = 30.0
_AT_ONCE = 500


class RedisQueue(Closing):
    """A queue on a Redis server, 6.2 or newer.

    Args:
        url: `redis://HOST:6379/0?name=NAME`, or `rediss://` for TLS. The password may stand in the
            variable REDIS_PASSWORD instead.
        create: make the queue where there is none.
        settings: see `SqliteQueue`.

    Raises:
        ConfigError: no such queue, or one of another version; it stays as it is.
        QueueError: no answer.
    """

    def __init__(
        self, url: str, *, create: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        address, self._name, self.url = _split(url)
        redis = driver("redis", "redis")
        self._errors: tuple[type[Exception], ...] = (redis.RedisError,)
        with self._explained():
            self._redis: Any = redis.Redis.from_url(
                address, decode_responses=True, socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                **({"password": word} if (word := os.environ.get("REDIS_PASSWORD")) else {}),
            )  # fmt: skip
        self._prefix = f"gaia-queue:{{{self._name}}}:"
        self._scripts = {
            name: self._redis.register_script(lua.PRELUDE + getattr(lua, name))
            for name in ("ADD", "LEASE", "EXTEND", "COMPLETE", "FAIL", "RELEASE", "PRIORITY",
                         "REVIVE", "FACTS", "OPEN")
        }  # fmt: skip
        self._open(create, dict(settings or {}))

    def _open(self, create: bool, changed: dict[str, str]) -> None:
        pairs = [text for pair in changed.items() for text in pair]
        defaults = (protocol.ATTEMPTS, protocol.AGE_S)
        version = self._call("OPEN", int(create), protocol.VERSION, *defaults, *pairs)
        if not version:
            raise ConfigError(f"there is no queue at {self.url!r}", "check address and name")
        if version != str(protocol.VERSION):
            raise ConfigError(
                f"queue {self.url!r} has version {version}, and this program reads "
                f"{protocol.VERSION}",
                "finish it with the gaia that made it; it was not changed",
            )
        with self._explained():
            self.settings = self._redis.hgetall(f"{self._prefix}meta")

    def _call(self, script: str, *args: Any) -> Any:
        with self._explained():
            return self._scripts[script](keys=[self._prefix], args=list(args))

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────

    def add(self, items: Iterable[Item]) -> int:
        """Adds items whose ids are new; how many."""
        new, part = 0, list[Any]()
        for item in items:
            part += [item.id, to_json(item.payload), repr(float(item.priority))]
            if len(part) == 3 * _AT_ONCE:
                new, part = new + self._call("ADD", *part), []
        return new + (self._call("ADD", *part) if part else 0)

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Lends up to n items, the most urgent first."""
        rows = self._call("LEASE", n, seconds, worker, secrets.token_hex(12))
        return [
            Lease(
                Item(id, json.loads(payload), float(priority)), receipt, int(attempt), float(until)
            )
            for id, payload, priority, receipt, attempt, until in rows
        ]

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Prolongs a lease to so many seconds from now."""
        return self._call("EXTEND", lease.item.id, lease.receipt, seconds) == 1

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Keeps the result and ends the item, in one step."""
        cost = repr(protocol.cost_of(result))
        return self._call("COMPLETE", lease.item.id, lease.receipt, to_json(result), cost) == 1

    def fail(
        self,
        lease: Lease,
        reason: str,
        *,
        retry_in: float = 0.0,
        counts: bool = True,
        final: bool = False,
        cost: float = 0.0,
    ) -> bool:
        """Ends an attempt without a result; the last one makes the item dead."""
        change = 0 if counts or final else -1  # of the attempts
        facts = (reason, protocol.kind_of(reason), retry_in, change, int(final), repr(float(cost)))
        return self._call("FAIL", lease.item.id, lease.receipt, *facts) == 1

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched."""
        return self._call("RELEASE", lease.item.id, lease.receipt) == 1

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of open items whose payload has these values."""
        chosen: list[str] = []
        for name in ("ready", "leased", "delayed"):
            with self._explained():
                ids = self._redis.zrange(f"{self._prefix}{name}", 0, -1)
            for id, payload in self._fields(ids, "payload"):
                if protocol.matches(json.loads(payload), where):
                    chosen.append(id)
        chosen, changed = list(dict.fromkeys(chosen)), 0
        for start in range(0, len(chosen), _AT_ONCE):
            ids = chosen[start : start + _AT_ONCE]
            changed += self._call("PRIORITY", repr(float(value)), *ids)
        return changed

    def counts(self) -> Counts:
        """Items by state."""
        return Counts(*self._call("FACTS")[:4])

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts, rate, cost and failures."""
        *counts, now, cost, oldest, workers, failures = self._call("FACTS")
        recent, first = 0, float(now)
        for moment in self._finished(counts[2]):
            if moment <= float(now) - window_s:
                first = float(now) - window_s
                break
            recent, first = recent + 1, min(first, moment)
        pairs = zip(failures[::2], map(int, failures[1::2]), strict=True)
        return Facts(
            Counts(*counts), recent, float(now) - first, float(cost),
            float(now) - float(oldest) if oldest else 0.0,
            dict(sorted(pairs, key=lambda pair: -pair[1])), dict(Counter(sorted(workers))),
        )  # fmt: skip

    def _finished(self, count: int) -> Iterator[float]:
        """Moments at which items were finished, the newest first."""
        while count > 0:
            start = max(0, count - 1000)
            with self._explained():
                part = self._redis.lrange(f"{self._prefix}done", start, count - 1)
            yield from (float(one.partition(" ")[0]) for one in reversed(part))
            count = start

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results whose number is above `since`, in order of their numbers."""
        while True:
            with self._explained():
                part = self._redis.lrange(f"{self._prefix}done", since, since + _AT_ONCE - 1)
            ids = [one.partition(" ")[2] for one in part]
            for id, result in self._fields(ids, "result"):
                since += 1
                yield Result(since, id, json.loads(result))
            if not part:
                return

    def dead(self) -> Iterator[Dead]:
        """Items that were given up, in the order of their adding."""
        with self._explained():
            ids = self._redis.zrange(f"{self._prefix}dead", 0, -1)
        names = ("payload", "priority", "reason", "attempts")
        for id, payload, priority, reason, attempts in self._fields(ids, *names):
            yield Dead(Item(id, json.loads(payload), float(priority)), reason, int(attempts))

    def _fields(self, ids: list[str], *names: str) -> Iterator[tuple[str, ...]]:
        """(id, fields…) of items, many in one round trip."""
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            with self._explained():
                pipe = self._redis.pipeline(transaction=False)
                for id in part:
                    pipe.hmget(f"{self._prefix}item:{id}", names)
                rows = pipe.execute()
            for id, row in zip(part, rows, strict=True):
                yield (id, *row)

    def revive(self, reason: str | None = None) -> int:
        """Makes dead items wait again, with all their attempts."""
        ids = [
            one.item.id
            for one in self.dead()
            if reason is None or protocol.kind_of(one.reason) == reason
        ]
        parts = (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
        return sum(self._call("REVIVE", *part) for part in parts)

    def close(self) -> None:
        """Closes the connections."""
        with contextlib.suppress(Exception):
            self._redis.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            text = " ".join(str(error).split())[:300]
            raise QueueError(
                f"queue {self.url!r} does not answer as it should ({text})",
                "check that the server runs, its address and its memory",
            ) from None
        except ValueError as error:
            raise ConfigError(f"queue {self.url!r} is no address ({error})", "check it") from None


def _split(url: str) -> tuple[str, str, str]:
    """(address for the client, name of the queue, address to show: without a password)."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    name = query.pop("name", "gaia")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name):
        raise ConfigError(f"name {name!r} of the queue", "use letters, digits, _ . -")
    if not parts.hostname:
        raise ConfigError("the queue's address names no host", "as redis://HOST:6379/0?name=NAME")
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    shown = urlunsplit((parts.scheme, host, parts.path, f"name={name}", ""))
    return urlunsplit(parts._replace(query=urlencode(query))), name, shown
