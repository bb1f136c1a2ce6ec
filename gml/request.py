"""The node that a user asks for; `gml node create` and `gml run` take their options from here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gml.config import Config, parse_host
from gml.durations import parse_duration, parse_timeout
from gml.model import Host
from gml.options import option

TEXT, TEXTS = str, list[str] | None


@dataclass(frozen=True)
class NodeRequest:
    """Everything that can be asked of a new node. Durations are seconds, prices US dollars."""

    instance_type: str = option(
        "",
        "--instance-type",
        "-t",
        help="Type, for example v6e-8, v6e-2x4, v5p-128, 8xH100 or gpu_1x_gh200.",
    )
    timeout_s: int = option(
        0,
        "--timeout",
        help="Lifetime of the node, for example 3hr, 90m or 1h30m. Required.",
        typed=TEXT,
        typed_default="",
        parse=lambda text: parse_timeout(text) if text else 0,
    )
    provider: str = option("", "--provider", "-p", help="Provider: google, lambda, aws or local.")
    name: str = option("", "--name", help="Node id to use instead of a generated one.")
    zone: str = option("", "--zone", help="Zone or region to use; default: cheapest first.")
    spot: bool = option(
        False, "--spot", help="Rent at the spot price; the provider may take the machine back."
    )
    max_price: float | None = option(
        None, "--max-price", help="Highest price of the whole node, in US dollars per hour."
    )
    retry_until_up: bool = option(
        False, "--retry-until-up", help="Retry all zones until one has capacity."
    )
    strategy: str = option(
        "", "--strategy", help="Google API to use: auto, gce, flex, queued or node."
    )
    reservation: str = option("", "--reservation", help="Reservation to draw from.")
    idle: str = option(
        "",
        "--idle",
        help='Idle time after which a node of one host deletes itself; "none": never.',
    )
    disk_gb: int = option(
        100,
        "--disk-gb",
        help="Size of the boot disk in GB (gce).",
        limits={"min": 20, "max": 64000},
    )
    limit_s: int = option(
        0,
        "--limit",
        help="Time limit enforced by Google, if longer than --timeout (gce, flex).",
        typed=TEXT,
        typed_default="",
        parse=lambda text: parse_duration(text, "--limit") if text else 0,
    )
    wait_s: int = option(
        3600,
        "--wait",
        help="Longest time to wait in a queue.",
        typed=TEXT,
        typed_default="1h",
        parse=lambda text: parse_duration(text, "--wait"),
    )
    internal_ip: bool = option(
        False,
        "--internal-ip",
        help="Give the machine no external address; google.tunnel says how to reach it (google).",
    )
    runtime: str = option(
        "",
        "--runtime-version",
        help="Software version of the TPU API instead of the type's own (google).",
    )
    unsafe: bool = option(False, "--unsafe", help="Create the node even if nothing would end it.")
    self_terminate: bool = option(
        False,
        "--self-terminate",
        help="Store a key on the machine so that it can end itself (lambda).",
    )
    hosts: tuple[Host, ...] = option(
        (),
        "--host",
        help="Machine to use, as user@address:port; repeatable (local).",
        typed=TEXTS,
        parse=lambda texts: tuple(parse_host(t) for t in texts or ()),
    )
    wait_ssh: bool = True
    retry_pause_s: float = 30.0
    queue: str = ""  # queue whose machine it becomes

    def completed(self, config: Config) -> NodeRequest:
        """The request with what the configuration says where an option was left out.

        Raises:
            UsageError: neither a timeout nor a default one.
        """
        local = self.hosts or self.provider == "local"
        return dataclasses.replace(
            self,
            instance_type=self.instance_type or ("local" if local else ""),
            timeout_s=self.timeout_s or parse_timeout("", config.default_timeout),
            strategy=self.strategy or config.google.strategy,
            internal_ip=self.internal_ip or (not local and config.google.internal_ip == "yes"),
        )
