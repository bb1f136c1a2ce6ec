"""`gml reaper install`: the timers, manifests and commands that run `gml reap`, as data."""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gml.config import Config
from gml.remote.keys import find_key
from gml.setup import render_toml

# A supervisor waits for machines and sends code: longer than any pass of the reaper.
SUPERVISE_S = 3600


def reaper_command(verb: str = "reap") -> str:
    """Command line that calls this gml from a timer; `verb` is reap or supervise."""
    program = shutil.which("gml")
    return f"{program} {verb}" if program else f"{sys.executable} -m gml {verb}"


def reaper_environment(config: Config) -> dict[str, str]:
    """Variables of this shell that a timer needs too: settings, never secrets."""
    env = {"GML_HOME": str(config.home), "GML_OWNER": config.owner}
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS"):
        if os.environ.get(name):
            env[name] = os.environ[name]
    return env


def left_behind(config: Config) -> list[str]:
    """Warnings: secrets that this shell has and the reaper will not have."""
    warnings = []
    key_file = Path(config.lambda_.api_key_file).expanduser()
    if os.environ.get("LAMBDA_API_KEY") and not key_file.exists():
        warnings.append(
            "LAMBDA_API_KEY is only in this shell, so the reaper will not look at Lambda: "
            "run `gml init lambda --apply` first"
        )
    if os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        warnings.append(
            "GOOGLE_OAUTH_ACCESS_TOKEN is only in this shell: the reaper here needs "
            "`gcloud auth application-default login`"
        )
    return warnings


def _project(config: Config) -> str:
    return config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")


def systemd_files(config: Config, verb: str = "reap") -> dict[Path, str]:
    """A user timer: every five minutes, also after sleep."""
    folder = Path.home() / ".config" / "systemd" / "user"
    settings = " ".join(f'"{k}={v}"' for k, v in reaper_environment(config).items())
    return {
        folder / "gml-reap.service": (
            "[Unit]\nDescription=gml reap: deletes machines past their deadline\n\n"
            "[Service]\nType=oneshot\n"
            f"Environment={settings}\n"
            f"ExecStart={reaper_command(verb)}\n"
        ),
        folder / "gml-reap.timer": (
            "[Unit]\nDescription=gml reap every five minutes\n\n"
            "[Timer]\nOnBootSec=1min\nOnUnitActiveSec=5min\nPersistent=true\n\n"
            "[Install]\nWantedBy=timers.target\n"
        ),
    }


SYSTEMD_COMMANDS = [
    ["systemctl", "--user", "daemon-reload"],
    ["systemctl", "--user", "enable", "--now", "gml-reap.timer"],
    # Without lingering the timer would stop when the user logs out.
    ["loginctl", "enable-linger"],
]


def cron_line(config: Config, verb: str = "reap") -> str:
    """For `crontab -e`."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in reaper_environment(config).items())
    return f"*/5 * * * * {settings} {reaper_command(verb)}"


def cronjob_manifest(config: Config, image: str, verb: str = "reap") -> str:
    """A Kubernetes CronJob; credentials come from workload identity.

    For queues it gets the ssh key of a Secret `gml-supervisor`, whose other entries become the
    secrets that jobs may ask for, and time to wait for a machine.
    """
    supervise = verb == "supervise"
    lines = [
        "apiVersion: batch/v1",
        "kind: CronJob",
        "metadata: {name: gml-reap}",
        "spec:",
        '  schedule: "*/5 * * * *"',
        "  concurrencyPolicy: Forbid",
        "  jobTemplate:",
        "    spec:",
        f"      activeDeadlineSeconds: {SUPERVISE_S if supervise else 900}",
        "      template:",
        "        spec:",
        "          serviceAccountName: gml-reaper",
        "          restartPolicy: Never",
        "          containers:",
        "          - name: reap",
        f"            image: {image}",
        f"            command: [gml, {verb}]",
        *(
            ["            envFrom:", "            - secretRef: {name: gml-supervisor}"]
            if supervise
            else []
        ),
        "            env:",
        f"            - {{name: GML_OWNER, value: {config.owner}}}",
        f"            - {{name: GOOGLE_CLOUD_PROJECT, value: {_project(config) or 'PROJECT'}}}",
    ]
    return "\n".join(lines) + "\n"


def github_workflow(config: Config, verb: str = "reap") -> str:
    """A GitHub Actions schedule. GitHub may delay it by many minutes: a second line of defence."""
    key = "        GML_SSH_KEY: ${{ secrets.GML_SSH_KEY }}\n" if verb == "supervise" else ""
    minutes = SUPERVISE_S // 60 if verb == "supervise" else 15
    return f"""name: gml reap
on:
  schedule: [{{cron: "*/10 * * * *"}}]
  workflow_dispatch:
permissions: {{contents: read, id-token: write}}
concurrency: {{group: gml-reap}}
jobs:
  reap:
    runs-on: ubuntu-latest
    timeout-minutes: {minutes}
    steps:
    - uses: actions/checkout@v4
    - uses: google-github-actions/auth@v2
      with:
        workload_identity_provider: ${{{{ vars.GML_WIF }}}}
        service_account: ${{{{ vars.GML_SA }}}}
    - run: pip install '.[google]'
    - run: gml {verb}
      env:
        GML_OWNER: {config.owner}
        GOOGLE_CLOUD_PROJECT: {_project(config) or "PROJECT"}
        LAMBDA_API_KEY: ${{{{ secrets.LAMBDA_API_KEY }}}}
{key}"""


def gcp_commands(config: Config, region: str, verb: str = "reap") -> list[list[str]]:
    """A Cloud Run job that reaps, and a Cloud Scheduler entry that runs it every five minutes."""
    project, bucket = config.project, config.google.bucket
    account = f"gml-reaper@{project}.iam.gserviceaccount.com"
    at = ["--project", project]
    context = str(config.home / "reaper-image")
    secret, secrets = _secrets(config, account, at, verb == "supervise")
    limit = f"{SUPERVISE_S}s" if verb == "supervise" else "10m"
    job = f"{config.endpoint('run')}/v2/projects/{project}/locations/{region}/jobs/gml-reaper:run"
    roles = ["roles/tpu.admin", "roles/compute.instanceAdmin.v1", "roles/container.clusterAdmin",
             "roles/run.invoker"]  # fmt: skip
    if verb == "supervise":  # it makes machines, which run as a service account
        roles.append("roles/iam.serviceAccountUser")
    bindings = [
        ["gcloud", "projects", "add-iam-policy-binding", project, "--condition", "None",
         "--member", f"serviceAccount:{account}", "--role", role]
        for role in roles
    ]  # fmt: skip
    if bucket:  # where its heartbeat is seen from elsewhere
        bindings.append(
            ["gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}",
             "--member", f"serviceAccount:{account}", "--role", "roles/storage.objectUser"]
        )  # fmt: skip
    return [
        ["gcloud", "iam", "service-accounts", "create", "gml-reaper",
         "--display-name", "gml reap", *at],
        *bindings,
        *secret,
        ["gcloud", "run", "jobs", "deploy", "gml-reaper", "--source", context, "--region", region,
         "--service-account", account, *secrets, "--command", "gml",
         "--args", verb, "--max-retries", "1", "--task-timeout", limit, *at],
        ["gcloud", "scheduler", "jobs", "create", "http", "gml-reaper", "--location", region,
         "--schedule", "*/5 * * * *", "--uri", job, "--http-method", "POST",
         "--oauth-service-account-email", account, *at],
    ]  # fmt: skip


def _secrets(
    config: Config, account: str, at: list[str], supervise: bool
) -> tuple[list[list[str]], list[str]]:
    """Lambda's key, and for queues the ssh key, in Secret Manager.

    From their 0600 files: never in an argument or the image.
    """
    files = {}
    path = Path(config.lambda_.api_key_file).expanduser()
    if path.exists():
        files["gml-lambda-key"] = ("LAMBDA_API_KEY", path)
    if supervise:
        files["gml-ssh-key"] = ("GML_SSH_KEY", find_key(config).identity)
    commands, mounts = [], []
    for name, (variable, file) in files.items():
        commands += [
            ["gcloud", "secrets", "create", name, "--replication-policy", "automatic", *at],
            ["gcloud", "secrets", "versions", "add", name, "--data-file", str(file), *at],
            ["gcloud", "secrets", "add-iam-policy-binding", name,
             "--member", f"serviceAccount:{account}",
             "--role", "roles/secretmanager.secretAccessor", *at],
        ]  # fmt: skip
        mounts.append(f"{variable}={name}:latest")
    return commands, ["--set-secrets", ",".join(mounts)] if mounts else []


def _imported(package: Path, sources: Sequence[Path]) -> list[Path]:
    """Files of a package that these sources import, and that those import in turn.

    Data files beside a module, named like it, are part of it.
    """
    files: dict[Path, None] = {}
    waiting = [path for path in sources if path.suffix == ".py"]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                first, *rest = name.split(".")
                if first != package.name:
                    continue
                paths = [package.joinpath(*rest[:i], "__init__.py") for i in range(len(rest) + 1)]
                if rest:
                    paths += package.joinpath(*rest[:-1]).glob(f"{rest[-1]}.*")
                new = [path for path in paths if path.is_file() and path not in files]
                files.update(dict.fromkeys(new))
                waiting += [path for path in new if path.suffix == ".py"]
    return list(files)


def _image_settings(config: Config) -> dict[str, Any]:
    """Settings by which a supervisor makes the same machines as we do here.

    None of them is a secret. What names a file or a host of this computer stays here.
    """
    return {
        "owner": config.owner,
        "default_timeout": config.default_timeout,
        "idle": config.idle,
        "google": {**dataclasses.asdict(config.google), "project": _project(config)},
        "lambda": {"ssh_key_name": config.lambda_.ssh_key_name},
        "supervisor": {"state": config.supervisor.state},
    }


def write_image_context(config: Config) -> Path:
    """The build context of the Cloud Run job: our two packages, settings and a Dockerfile."""
    folder = config.home / "reaper-image"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    gml, gaia = (Path(str(importlib.resources.files(name))) for name in ("gml", "gaia"))
    sources = [*gml.rglob("*.py"), *gml.glob("*.txt")]
    for path in [*sources, *_imported(gaia, sources)]:
        source = gml if path.is_relative_to(gml) else gaia
        target = folder / source.name / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "config.toml").write_text(render_toml(_image_settings(config)), encoding="utf-8")
    (folder / "Dockerfile").write_text(
        "FROM python:3.12-slim\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends "
        "openssh-client rsync git && rm -rf /var/lib/apt/lists/*\n"
        "RUN pip install --no-cache-dir typer httpx2 google-auth\n"
        "COPY gaia /app/gaia\nCOPY gml /app/gml\nCOPY config.toml /app/home/config.toml\n"
        "RUN printf '#!/bin/sh\\nexec python -m gml \"$@\"\\n' > /usr/local/bin/gml && "
        "chmod +x /usr/local/bin/gml\n"
        "ENV PYTHONPATH=/app GML_HOME=/app/home\nWORKDIR /app\n"
        'ENTRYPOINT ["gml"]\nCMD ["reap"]\n',
        encoding="utf-8",
    )
    return folder
