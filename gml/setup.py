"""`gml init` and `gml reaper install`: the commands and files by which gml is set up, as data."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from gml.errors import AuthError, UsageError
from gml.remote.ssh import quote
from gml.store import write_private

ROLE = "gmlMachine"
# What a machine needs to end itself. Whether queued resources have a delete permission of their
# own is not documented; without it the watchdog falls back to deleting the node.
PERMISSIONS = (
    "tpu.nodes.get", "tpu.nodes.delete", "tpu.operations.get",
    "compute.instances.get", "compute.instances.delete", "compute.zoneOperations.get",
    "compute.instanceGroupManagers.get", "compute.instanceGroupManagers.delete",
)  # fmt: skip
APIS = (
    "tpu", "compute", "container", "storage", "iam", "cloudquotas", "billingbudgets",
    # `gml reaper install --gcp`: the job, its image, its schedule, Lambda's key.
    "run", "cloudbuild", "artifactregistry", "cloudscheduler", "secretmanager",
)  # fmt: skip


def google_commands(
    project: str, region: str, bucket: str, network: str, sources: str, billing: str, budget: int
) -> list[list[str]]:
    """APIs, service account, firewall, bucket, quota, budget: as gcloud commands, in order."""
    account = f"gml-machine@{project}.iam.gserviceaccount.com"
    at = ["--project", project]
    commands = [
        ["gcloud", "services", "enable", *(f"{a}.googleapis.com" for a in APIS), *at],
        ["gcloud", "iam", "service-accounts", "create", "gml-machine",
         "--display-name", "machines made by gml", *at],
        ["gcloud", "iam", "roles", "create", ROLE, "--title", "gml machine",
         "--permissions", ",".join(PERMISSIONS), *at],
        ["gcloud", "projects", "add-iam-policy-binding", project, "--condition", "None",
         "--member", f"serviceAccount:{account}", "--role", f"projects/{project}/roles/{ROLE}"],
        ["gcloud", "compute", "firewall-rules", "create", "gml-ssh", "--network", network,
         "--allow", "tcp:22", "--source-ranges", sources, *at],
        ["gcloud", "storage", "buckets", "create", f"gs://{bucket}", "--location", region,
         "--uniform-bucket-level-access", *at],
        ["gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}",
         "--member", f"serviceAccount:{account}", "--role", "roles/storage.objectAdmin"],
        ["gcloud", "beta", "quotas", "info", "list", "--service", "tpu.googleapis.com", *at],
    ]  # fmt: skip
    if billing:
        commands.append(
            ["gcloud", "billing", "budgets", "create", "--billing-account", billing,
             "--display-name", "gml", "--budget-amount", f"{budget}USD",
             "--filter-projects", f"projects/{project}", "--threshold-rule", "percent=0.5",
             "--threshold-rule", "percent=0.9", "--threshold-rule", "percent=1.0"]
        )  # fmt: skip
    return commands


def google_settings(project: str, bucket: str, network: str) -> dict[str, str]:
    """Values for the `[google]` table."""
    return {
        "project": project,
        "bucket": bucket,
        "network": network,
        "service_account": f"gml-machine@{project}.iam.gserviceaccount.com",
    }


def update_config(home: Path, table: str, values: dict[str, str]) -> Path:
    """Merges values into one table of config.toml; the old file stays beside it as .bak."""
    path = home / "config.toml"
    raw: dict[str, Any] = {}
    if path.exists():
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
        write_private(path.with_suffix(".toml.bak"), text)
    raw[table] = {**raw.get(table, {}), **values}
    write_private(path, render_toml(raw))
    return path


def render_toml(raw: dict[str, Any], prefix: str = "") -> str:
    """Just enough TOML for our own file: strings, numbers, booleans, lists of strings, tables."""
    import json

    scalars, tables = [], []
    for key, value in raw.items():
        if isinstance(value, dict):
            name = f"{prefix}{key}"
            body = render_toml(value, f"{name}.")
            tables.append(f"\n[{name}]\n{body}" if body.strip() else f"\n[{name}]\n")
        else:
            # JSON's strings, numbers, booleans and lists are valid TOML.
            scalars.append(f"{key} = {json.dumps(value)}\n")
    return "".join(scalars) + "".join(tables)


def run_shown(commands: list[list[str]], apply: bool, say) -> list[str]:
    """Shows every command, then runs it with `apply`; "already exists" counts as done.

    Returns:
        One line for each command that failed.
    """
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


def check_gcloud() -> None:
    """Raises UsageError or AuthError unless gcloud is there and somebody is signed in to it."""
    words = ["gcloud", "auth", "list", "--filter", "status:ACTIVE", "--format", "value(account)"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UsageError(
            "gcloud is not installed here, so nothing was run",
            "install it (https://cloud.google.com/sdk/docs/install), or run the commands elsewhere",
        ) from None
    if done.returncode != 0 or not done.stdout.strip():
        raise AuthError(
            "nobody is signed in to gcloud, so nothing was run", "run: gcloud auth login"
        )


def check_region(text: str) -> str:
    """A Google region; raises UsageError."""
    import re

    if not re.fullmatch(r"[a-z]+-[a-z]+\d+", text):
        raise UsageError(f"--region {text!r} is not a region", "for example us-east5")
    return text
