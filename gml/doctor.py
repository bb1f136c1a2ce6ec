"""`gml doctor`: what is missing here, each with the command that mends it; verifies `gce` types."""

from __future__ import annotations

import shutil
from pathlib import Path

from gml.durations import format_duration
from gml.errors import UsageError
from gml.fleet import Fleet
from gml.heartbeat import heartbeat_age
from gml.progress import Progress
from gml.providers.base import Check, check
from gml.remote.environment import metrics_token
from gml.remote.keys import check_key
from gml.remote.ssh import include_line
from gml.remote.sync import git_credential
from gml.store import write_private


def run_checks(fleet: Fleet, provider: str, instance_type: str, progress: Progress) -> list[Check]:
    """Local checks, then those of each configured provider."""
    checks = local_checks(fleet)
    names = [provider] if provider else [p.name for p in fleet.configured()]
    if not names:
        fix = "run `gml init google --project ID` or `gml init lambda`"
        checks.append(check("providers", False, "none is configured", fix))
    for name in names:
        progress(f"asking {name}")
        checks += fleet.provider(name).doctor(instance_type)
    return checks


def _home_checks(fleet: Fleet) -> list[Check]:
    """Room for state, the tool of the chosen tunnel, and the logins that are configured."""
    config, checks = fleet.config, []
    try:
        probe = config.home / ".doctor"
        write_private(probe, "")
        probe.unlink()
        checks.append(check("state can be written", True, str(config.home)))
    except OSError as error:
        fix = "free the disk, or set GML_HOME to a folder that can be written"
        detail = f"{config.home}: {error.strerror}"
        checks.append(check("state can be written", False, detail, fix))
    if config.google.tunnel == "iap":
        program = shutil.which("gcloud")
        fix = 'install the Google Cloud CLI: google.tunnel = "iap" goes through it'
        checks.append(check("gcloud (IAP)", bool(program), program or "not found", fix))
    if config.connect.git_credentials == "yes":
        try:
            git_credential(Path("."))
            checks.append(check("git credentials", True, "github.com"))
        except UsageError as error:
            checks.append(check("git credentials", False, error.problem, error.remedy))
    data = config.connect.data
    if data and not data.startswith("gs://"):
        there = Path(data).expanduser().is_dir()
        fix = "set connect.data in config.toml to a folder or gs://…"
        checks.append(check("connect.data", there, data if there else f"{data} is absent", fix))
    if config.metrics.endpoint:
        try:
            token = metrics_token(config)
            fix = "set metrics.token_file in config.toml"
            checks.append(check("metrics token", bool(token), "set" if token else "none", fix))
        except UsageError as error:
            checks.append(check("metrics token", False, error.problem, error.remedy))
    return checks


def local_checks(fleet: Fleet) -> list[Check]:
    """Tools, ssh key, the Include line, file modes, the reaper's heartbeat."""
    config, checks = fleet.config, []
    for tool, package in (("ssh", "openssh-client"), ("rsync", "rsync"), ("git", "git")):
        program = shutil.which(tool)
        checks.append(check(tool, bool(program), program or "not found", f"install {package}"))
    try:
        checks.append(check("ssh key", True, str(check_key(config).identity)))
    except UsageError as error:
        checks.append(check("ssh key", False, error.problem, error.remedy.removeprefix("run: ")))
    checks += _home_checks(fleet)
    path = Path.home() / ".ssh" / "config"
    included = path.exists() and include_line(config) in path.read_text("utf-8").splitlines()
    detail = "present" if included else "absent: `ssh <node>` needs -F; gml itself does not"
    checks.append(check("Include in ~/.ssh/config", True, detail))
    loose = [
        str(p) for p in config.home.rglob("*") if p.is_file() and p.stat().st_mode & 0o077
    ]  # fmt: skip
    fix = f"chmod -R go-rwx {config.home}"
    detail = f"{len(loose)} readable by others: {', '.join(loose[:3])}" if loose else "yes"
    checks.append(check("state is private", not loose, detail, fix))
    for name in [p.name for p in fleet.configured()]:
        age = heartbeat_age(config, name, fleet.now())
        detail = "never seen" if age is None else f"last pass {format_duration(age)} ago"
        if age is None or age > 900:
            detail += " (`gml reaper install` makes it run by itself)"
        checks.append(check(f"reaper of {name}", True, detail))
    damaged = fleet.store.damaged()
    checks.append(
        check(
            "state files",
            not damaged,
            ", ".join(damaged) or "readable",
            "run `gml ls --refresh`: it rebuilds them from the cloud's labels; `gml reap` forgets "
            "those that exist nowhere",
        )
    )
    return checks
