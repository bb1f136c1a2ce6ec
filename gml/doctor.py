"""`gml doctor`: what is missing here, each with the command that mends it; verifies `gce` types."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gml.durations import format_duration
from gml.errors import GmlError
from gml.nodes import Manager
from gml.planning import parse_sku
from gml.providers.base import Tick
from gml.providers.google_api import LOGIN
from gml.providers.google_bodies import region
from gml.reaper import heartbeat_age
from gml.ssh import include_line

if TYPE_CHECKING:
    from gml.providers.google import GoogleProvider

Check = dict[str, Any]


def check(name: str, ok: bool, detail: str, fix: str = "") -> Check:
    """One line of the report; `fix` only matters when it is not ok."""
    return {"check": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def run_checks(manager: Manager, provider: str, instance_type: str, tick: Tick) -> list[Check]:
    """Local checks, then those of each configured provider."""
    checks = local_checks(manager)
    names = [provider] if provider else [p.name for p in manager.configured()]
    if not names:
        fix = "run `gml init google --project ID` or `gml init lambda`"
        checks.append(check("providers", False, "none is configured", fix))
    for name in names:
        tick(f"asking {name}")
        checks += manager.provider(name).doctor()
        if name == "google" and instance_type:
            tick(f"verifying {instance_type} on Compute Engine")
            checks += verify_gce(manager, instance_type)
    return checks


def local_checks(manager: Manager) -> list[Check]:
    """Tools, ssh key, the Include line, file modes, the reaper's heartbeat."""
    config, checks = manager.config, []
    for tool, package in (("ssh", "openssh-client"), ("rsync", "rsync"), ("git", "git")):
        found = shutil.which(tool)
        checks.append(check(tool, bool(found), found or "not found", f"install {package}"))
    key = Path(config.ssh_key).expanduser()
    have = key.exists() and key.with_suffix(".pub").exists()
    made = f"ssh-keygen -t ed25519 -f {key}"
    checks.append(check("ssh key", have, str(key) if have else f"{key} is missing", made))
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
    for name in [p.name for p in manager.configured()]:
        age = heartbeat_age(config, name, manager.now())
        detail = "never seen" if age is None else f"last pass {format_duration(age)} ago"
        if age is None or age > 900:
            detail += " (`gml reaper install` makes it run by itself)"
        checks.append(check(f"reaper of {name}", True, detail))
    damaged = manager.store.damaged()
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


def google_checks(provider: GoogleProvider) -> list[Check]:
    """Credentials, project, the two APIs, the network, the firewall, quota hints."""
    config, checks = provider.config, []
    try:
        project = config.project
        checks.append(check("google project", True, project))
    except GmlError as error:
        return [check("google project", False, error.problem, error.remedy)]
    try:
        provider.api.token()
        checks.append(check("google credentials", True, "accepted"))
    except GmlError as error:
        return [*checks, check("google credentials", False, error.problem, error.remedy or LOGIN)]
    root = f"compute/v1/projects/{project}"
    for name, service, path in (
        ("TPU API", "tpu", f"v2/projects/{project}/locations/-/nodes"),
        ("Compute API", "compute", root),
    ):
        try:
            found = provider.api.get(service, path)
            fix = "gcloud projects list  (the id, not the name)"
            checks.append(check(name, found is not None, "answers" if found else "unknown", fix))
        except GmlError as error:
            checks.append(check(name, False, error.problem, error.remedy))
    try:
        checks.append(_firewall(provider, root))
    except GmlError as error:
        checks.append(check("ssh firewall", False, error.problem, error.remedy))
    return checks


def _firewall(provider: GoogleProvider, root: str) -> Check:
    network = provider.config.google.network
    rules = [
        r
        for p in provider.api.pages("compute", f"{root}/global/firewalls")
        for r in p.get("items", [])
    ]
    opens = [
        r["name"]
        for r in rules
        if str(r.get("network", "")).rsplit("/", 1)[-1] == network
        and r.get("direction", "INGRESS") == "INGRESS"
        and any(
            a.get("IPProtocol") in ("tcp", "all") and _covers_22(a.get("ports"))
            for a in r.get("allowed", [])
        )
    ]
    return check(
        "ssh firewall",
        bool(opens),
        ", ".join(opens) or f"no rule of network {network} lets tcp:22 in",
        f"gcloud compute firewall-rules create gml-ssh --network {network} --allow tcp:22 "
        f"--project {provider.config.project}",
    )


def _covers_22(ports: list[str] | None) -> bool:
    if not ports:
        return True
    for text in ports:
        low, _, high = text.partition("-")
        if int(low) <= 22 <= int(high or low):
            return True
    return False


def verify_gce(manager: Manager, instance_type: str) -> list[Check]:
    """Machine type and image per zone; what passes is remembered, and `auto` then takes `gce`."""
    from gml.providers.google import VERIFIED, GoogleProvider

    provider = manager.provider("google")
    assert isinstance(provider, GoogleProvider)
    sku = parse_sku(instance_type, "google")
    if sku is None or not sku.gce_machine_type:
        return [check(f"gce {instance_type}", False, "Google does not sell it", "gml offers")]
    google = manager.config.google
    tpu = sku.chip.kind == "tpu"
    image = (
        (google.image_project, google.image_family)
        if tpu
        else (google.gpu_image_project, google.gpu_image_family)
    )
    checks, verified = [], manager.store.read_json(VERIFIED)
    try:
        path = f"compute/v1/projects/{image[0]}/global/images/family/{image[1]}"
        found = provider.api.get("compute", path)
    except GmlError as error:
        return [check(f"gce image {image[1]}", False, error.problem, error.remedy)]
    fix = "set google.image_project and google.image_family in config.toml"
    checks.append(check(f"gce image {image[1]}", bool(found), "exists" if found else "absent", fix))
    for zone in sku.zones if found else ():
        root = f"compute/v1/projects/{manager.config.project}/zones/{zone}"
        machine = provider.api.get("compute", f"{root}/machineTypes/{sku.gce_machine_type}")
        if machine:
            verified[f"{sku.name}@{zone}"] = time.strftime("%Y-%m-%d")
        else:
            verified.pop(f"{sku.name}@{zone}", None)
        detail = f"{sku.gce_machine_type} is offered" if machine else "not offered"
        checks.append(check(f"gce {sku.name} in {zone}", True, detail))
    manager.store.write_json(VERIFIED, verified)
    quota = (
        f"Compute quota is not the TPU API's: see TPUS-PER-TPU-FAMILY-per-project-region in "
        f"{region(sku.zones[0])} and others (spot: PREEMPTIBLE-TPU-…-per-project-zone)"
    )
    checks.append(check("gce quota", True, quota))
    return checks


def run_shown(commands: list[list[str]], apply: bool, say) -> list[str]:
    """Shows every command, then runs it with `apply`; "already exists" counts as done.

    Returns:
        One line for each command that failed.
    """
    from gml.ssh import quote

    failed = []
    for argv in commands:
        say(f"$ {quote(argv)}")
        if not apply:
            continue
        try:
            done = subprocess.run(argv, capture_output=True, text=True, env=dict(os.environ))
        except FileNotFoundError:
            failed.append(f"{argv[0]} is not installed")
            say(f"  {argv[0]} is not installed here")
            break
        text = (done.stderr or done.stdout).strip().splitlines()
        if done.returncode == 0:
            say("  done")
        elif "already exists" in done.stderr or "ALREADY_EXISTS" in done.stderr:
            say("  exists already")
        else:
            failed.append(f"{quote(argv[:4])} …: {text[-1] if text else done.returncode}")
            say(f"  failed: {text[-1] if text else done.returncode}")
    return failed
