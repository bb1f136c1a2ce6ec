"""The heartbeat of `gml reap`, by provider and owner: a local file, and with a bucket an object.

`gml node create` wants to see it before it rents a machine that nothing else would end. A reaper
without Lambda's key is none for Lambda's machines, nor is a colleague's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from gml.clock import service_clock
from gml.config import Config
from gml.errors import GmlError
from gml.providers.google.api import GoogleApi
from gml.providers.google.buckets import download, upload
from gml.store import Store

HEARTBEAT = "reaper.json"
# Owner in the heartbeat of a pass over everybody's machines; no owner can be called so.
EVERYBODY = "_all"


def beat(
    config: Config, store: Store, now: float, providers: Sequence[str], *, everybody: bool = False
) -> None:
    """Leaves the heartbeat of a pass over these providers."""
    owner = EVERYBODY if everybody else config.owner
    value = {"at": round(now), "host": socket.gethostname(), "owner": owner}
    store.write_json(HEARTBEAT, {**store.read_json(HEARTBEAT), **dict.fromkeys(providers, value)})
    if not config.google.bucket:
        return
    # The bucket's copy is for other machines; the pass itself was complete without it.
    with contextlib.suppress(GmlError):
        api = GoogleApi(config)
        for provider in providers:
            upload(api, config.google.bucket, _object(owner, provider), value)


def _object(owner: str, provider: str) -> str:
    return f"gml/reaper/{owner}/{provider}.json"


def heartbeat_age(config: Config, provider: str, now: float | None = None) -> float | None:
    """Seconds since the last pass over this provider for this owner that we can see, or None."""
    now = service_clock.now() if now is None else now
    owners = (config.owner, EVERYBODY)
    beats = [Store(config.home).read_json(HEARTBEAT).get(provider)]
    if config.google.bucket:
        with contextlib.suppress(GmlError):
            api = GoogleApi(config)
            beats += [download(api, config.google.bucket, _object(o, provider)) for o in owners]
    ours = [b for b in beats if isinstance(b, dict) and b.get("owner") in owners]
    times = [b.get("at") for b in ours]
    ages = [now - t for t in times if isinstance(t, (int, float)) and t <= now + 60]
    return max(0.0, min(ages)) if ages else None
