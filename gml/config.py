"""`~/.gml/config.toml` and the environment, read into frozen dataclasses; errors name the field.

`GML_HOME` moves the folder, `GML_OWNER` names the owner, `GML_ENDPOINT_<SERVICE>` points a service
(tpu, compute, storage, container, lambda, …) at another address, which the tests and proxies use.
"""

from __future__ import annotations

import getpass
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gml.errors import UsageError
from gml.model import Host, check_owner

DEFAULT_KEY = "~/.ssh/id_ed25519"
# Whose connections follow ~/.ssh/config: those to own machines, all, or none.
SSH_CONFIG = ("own", "all", "none")
ENDPOINTS = {
    "tpu": "https://tpu.googleapis.com",
    "compute": "https://compute.googleapis.com",
    "storage": "https://storage.googleapis.com",
    "container": "https://container.googleapis.com",
    "serviceusage": "https://serviceusage.googleapis.com",
    "run": "https://run.googleapis.com",
    "cloudscheduler": "https://cloudscheduler.googleapis.com",
    "metadata": "http://metadata.google.internal",
    "lambda": "https://cloud.lambda.ai",
    "aws": "https://ec2.amazonaws.com",
}


@dataclass(frozen=True)
class Google:
    """The `[google]` table."""

    project: str = ""
    network: str = "default"
    subnetwork: str = ""
    service_account: str = "default"
    bucket: str = ""
    strategy: str = "auto"
    image_project: str = "ubuntu-os-accelerator-images"
    image_family: str = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
    gpu_image_project: str = "ubuntu-os-accelerator-images"
    gpu_image_family: str = "ubuntu-accelerator-2204-amd64-with-nvidia-580"
    ssh_user: str = "gml"
    # "yes": machines without external addresses; "iap" or user@bastion:port: the way to them.
    internal_ip: str = "no"
    tunnel: str = ""


@dataclass(frozen=True)
class Lambda:
    """The `[lambda]` table. The key comes from LAMBDA_API_KEY or from the 0600 `api_key_file`."""

    api_key_file: str = "~/.gml/lambda_key"
    ssh_key_name: str = "gml"


@dataclass(frozen=True)
class Aws:
    """The `[aws]` table. `regions` in order of preference, separated by spaces."""

    regions: str = ""
    image: str = ""
    security_group: str = "gml-ssh"


@dataclass(frozen=True)
class Metrics:
    """The `[metrics]` table: where jobs send their metrics. The token is read from a 0600 file."""

    endpoint: str = ""
    token_file: str = ""


@dataclass(frozen=True)
class Supervisor:
    """The `[supervisor]` table: place of queues and budgets, as gs://BUCKET/PATH or a folder."""

    state: str = ""


@dataclass(frozen=True)
class Connect:
    """The `[connect]` table: data and logins that `gml connect` brings along beside the code.

    `data` is a folder or gs://…, and becomes $GAIA_DATA; `git_credentials` is "yes" or "no".
    """

    data: str = ""
    git_credentials: str = "no"


@dataclass(frozen=True)
class Config:
    """Everything gml is configured with."""

    home: Path
    owner: str
    default_timeout: str = ""
    idle: str = "30m"
    ssh_key: str = DEFAULT_KEY
    ssh_config: str = "own"
    backoff_s: float = 0.5
    google: Google = field(default_factory=Google)
    lambda_: Lambda = field(default_factory=Lambda)
    aws: Aws = field(default_factory=Aws)
    metrics: Metrics = field(default_factory=Metrics)
    supervisor: Supervisor = field(default_factory=Supervisor)
    connect: Connect = field(default_factory=Connect)
    local_hosts: dict[str, tuple[Host, ...]] = field(default_factory=dict)

    def endpoint(self, service: str) -> str:
        """Base address of a service, without a trailing slash."""
        chosen = os.environ.get(f"GML_ENDPOINT_{service.upper()}") or ENDPOINTS[service]
        return chosen.rstrip("/")

    @property
    def project(self) -> str:
        """The Google project, or UsageError naming where to set it."""
        project = self.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        if not project:
            raise UsageError(
                "no Google project is set",
                "run `gml init google --project ID` or set GOOGLE_CLOUD_PROJECT",
            )
        if not re.fullmatch(r"[a-z][a-z0-9:.-]{3,60}[a-z0-9]", project):
            raise UsageError(
                f"google.project {project[:60]!r} is not a project id",
                "take the id from `gcloud projects list`, not the name or number",
            )
        return project


def home_folder() -> Path:
    """`$GML_HOME` or `~/.gml`."""
    return Path(os.environ.get("GML_HOME") or Path.home() / ".gml").expanduser()


def default_owner() -> str:
    """The login name as a legal label value."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "nobody"
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40] or "nobody"


def load(home: Path | None = None) -> Config:
    """Reads the configuration; a missing file means defaults.

    Raises:
        UsageError: invalid TOML, an unknown field, or a value of the wrong type.
    """
    home = home or home_folder()
    path = home / "config.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raw = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "mend or remove it") from None
    owner = os.environ.get("GML_OWNER") or raw.pop("owner", "") or default_owner()
    raw.pop("owner", None)
    hosts = {}
    local = raw.pop("local", {})
    for name, addresses in (local.get("hosts", {}) if isinstance(local, dict) else {}).items():
        entries = [addresses] if isinstance(addresses, str) else addresses
        hosts[name] = tuple(parse_host(a, f"local.hosts.{name}") for a in entries)
    tables: dict[str, Any] = {}
    for key, field_name, kind in (
        ("google", "google", Google),
        ("lambda", "lambda_", Lambda),
        ("aws", "aws", Aws),
        ("metrics", "metrics", Metrics),
        ("supervisor", "supervisor", Supervisor),
        ("connect", "connect", Connect),
    ):
        tables[field_name] = _fill(kind, raw.pop(key, {}), f"{path}: {key}.")
    scalars = ("default_timeout", "idle", "ssh_key", "ssh_config", "backoff_s")
    unknown = [k for k in raw if k not in scalars]
    if unknown:
        known = "owner, google, lambda, aws, metrics, supervisor, connect, local, "
        known += ", ".join(scalars)
        raise UsageError(f"{path}: unknown field {unknown[0]!r}", f"known: {known}")
    for key, value in raw.items():
        if not isinstance(value, (int, float) if key == "backoff_s" else str):
            raise UsageError(f"{path}: {key} = {value!r} has the wrong type")
    if raw.get("ssh_config", "own") not in SSH_CONFIG:
        raise UsageError(
            f"{path}: ssh_config = {raw['ssh_config']!r} is unknown", "own, all or none"
        )
    google = tables["google"]
    if google.internal_ip not in ("yes", "no"):
        raise UsageError(
            f"{path}: google.internal_ip = {google.internal_ip!r} is unknown", "yes or no"
        )
    if google.tunnel not in ("", "iap"):
        parse_host(google.tunnel, f"{path}: google.tunnel")
    if tables["connect"].git_credentials not in ("yes", "no"):
        value = tables["connect"].git_credentials
        raise UsageError(f"{path}: connect.git_credentials = {value!r} is unknown", "yes or no")
    return Config(home=home, owner=check_owner(str(owner)), local_hosts=hosts, **raw, **tables)


def _fill(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise UsageError(f"{where[:-1]} must be a table", f"write [{where[:-1].split()[-1]}]")
    known = list(kind.__dataclass_fields__)
    for key, value in raw.items():
        if key not in known:
            raise UsageError(f"{where}{key} is unknown", f"known: {', '.join(known)}")
        if not isinstance(value, str):
            raise UsageError(f"{where}{key} = {value!r} must be a string")
    return kind(**raw)


def parse_host(text: Any, where: str = "--host") -> Host:
    """`[user@]address[:port]` into a Host; raises UsageError."""
    match = re.fullmatch(
        r"(?:([a-z_][a-z0-9_-]{0,31})@)?([A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}))(?::(\d{1,5}))?",
        text if isinstance(text, str) else "",
    )
    if not match:
        raise UsageError(f"{where} {text!r} is not a host", "write user@address:port")
    return Host(address=match[2], user=match[1] or "", port=int(match[3] or 22), internal=match[2])
