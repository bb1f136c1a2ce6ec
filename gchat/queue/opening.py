"""Queues by their address."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from gaia.errors import ConfigError
from gchat.queue.broker_queue import BrokerQueue
from gchat.queue.postgres_queue import PostgresQueue
from gchat.queue.protocol import Queue
from gchat.queue.pubsub import PubSub
from gchat.queue.redis_queue import RedisQueue
from gchat.queue.sqlite_queue import SqliteQueue
from gchat.queue.sqs import Sqs
from gchat.queue.store import open_store
from gchat.queue.stored import StoredResults

ADDRESSES = "a file, redis://…, postgresql://…, sqs://… or pubsub://…"


def open_queue(
    url: str | Path,
    *,
    create: bool = False,
    attempts: int | None = None,
    age_s: float | None = None,
    results: str | None = None,
) -> Queue:
    """Opens the queue at an address.

    Args:
        url: a file (also as `sqlite:FILE`), `redis://HOST/DB?name=NAME`, `postgresql://…`,
            `sqs://NAME?results=…` or `pubsub://PROJECT/NAME?results=…`.
        create: make it where there is none.
        attempts: of one item, before it is given up; kept in the queue. 5 in a new one.
        age_s: seconds of waiting that weigh as much as a step of priority; kept in the queue.
            600 in a new one.
        results: folder or address (gs://, s3://) that holds the results instead of the queue;
            kept in the queue.

    Raises:
        ConfigError: there is no such queue, or it is of another version.
        QueueError: it cannot be reached.
    """
    text = str(url)
    settings = _settings(attempts, age_s, results)
    scheme = re.match(r"([a-z0-9+]+):", text)
    kind = scheme[1] if scheme and scheme[1] != "file" else "sqlite"
    if kind == "sqlite":
        place, _, query = text.removeprefix("sqlite:").partition("?sync=")
        sync = query or "full"
        if sync not in ("full", "normal"):
            raise ConfigError(f"sync is {sync!r} in {text!r}", "use full or normal")
        path = Path(place).expanduser()
        return _stored(SqliteQueue(path, create=create, settings=settings, sync=sync))
    if kind in ("redis", "rediss"):
        return _stored(RedisQueue(text, create=create, settings=settings))
    if kind in ("postgresql", "postgres"):
        return _stored(PostgresQueue(text, create=create, settings=settings))
    if kind in ("sqs", "pubsub"):
        return _broker(kind, text, create, settings)
    # The rest of it may hold a password.
    raise ConfigError(f"queue '{kind}:…' is no address of a queue", f"give {ADDRESSES}")


def _stored(queue: SqliteQueue | RedisQueue | PostgresQueue) -> Queue:
    """The queue, with its results in a store where its settings name one."""
    place = queue.settings.get("results")
    return StoredResults(queue, open_store(place)) if place else queue


def _broker(kind: str, text: str, create: bool, settings: Mapping[str, str]) -> Queue:
    """A queue over SQS or Pub/Sub, and the store beside it."""
    parts = urlsplit(text)
    query = dict(parse_qsl(parts.query))
    place = settings.get("results") or query.pop("results", "")
    query.pop("results", None)
    if not place or query:
        shown = f"{kind}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        problem = f"queue {shown!r} says not where its results go"
        if query:
            problem = f"queue {shown!r} has an unknown part {next(iter(query))!r}"
        raise ConfigError(problem, f"as {kind}://NAME?results=s3://BUCKET/PREFIX")
    name = parts.netloc + parts.path
    broker = Sqs(name) if kind == "sqs" else PubSub(name)
    return BrokerQueue(broker, open_store(place), create=create, settings=settings)


def _settings(attempts: int | None, age_s: float | None, results: str | None) -> Mapping[str, str]:
    """Values to keep in the queue; those left out stay as they are."""
    if attempts is not None and attempts < 1:
        raise ConfigError(f"attempts is {attempts}", "use at least 1")
    if age_s is not None and not 0 < age_s < float("inf"):
        raise ConfigError(f"age_s is {age_s}", "use seconds above 0")
    given = {"attempts": attempts, "age_s": age_s, "results": results}
    return {name: str(value) for name, value in given.items() if value is not None}
