"""`gml init` and `gml reaper install`: what is shown, what is run, what the image holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.fakes.gml_kit import make_fleet

ROOT = Path(__file__).parents[2]


def test_setup_commands_are_shown_and_only_run_with_apply(gml, home, tmp_path, monkeypatch):
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "gcloud").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n'
        'case "$*" in *firewall*) echo "already exists" >&2; exit 1;; esac\n'
        f'case "$*" in "auth list"*) cat {tmp_path}/account 2>/dev/null;; esac; exit 0\n'
    )
    (fake / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    words = ("init", "google", "--project", "my-proj-1", "--billing-account", "AB-CD")
    shown = gml(*words)
    assert shown.returncode == 0 and not (tmp_path / "ran").exists()
    wanted = ["services enable", "service-accounts create", "roles create", "firewall-rules create",
              "buckets create", "quotas info", "billing budgets create"]  # fmt: skip
    for text in wanted:
        assert text in shown.stderr
    for command in ((*words, "--apply", "--yes"), ("reaper", "install", "--gcp", "--yes")):
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-proj-1")
        done = gml(*command)
        assert done.returncode == 3 and "nobody is signed in to gcloud" in done.stderr, done.stderr
    assert "create" not in (tmp_path / "ran").read_text() and not list(home.glob("*.bak"))
    (tmp_path / "account").write_text("ada@example.org\n")
    done = gml(*words, "--apply", "--yes")
    assert done.returncode == 0, done.stderr
    ran = (tmp_path / "ran").read_text()
    assert all(text in ran for text in wanted)
    config = (home / "config.toml").read_text()
    assert 'project = "my-proj-1"' in config and 'owner = "tester"' in config
    assert make_fleet().config.google.bucket == "my-proj-1-gml-us-east5"


def test_reaper_install_shows_every_form(gml, home, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-proj-1")
    assert "OnUnitActiveSec=5min" in gml("reaper", "install", "--dry-run").stderr
    assert gml("reaper", "install", "--cron").stdout.startswith("*/5 * * * *")
    assert "kind: CronJob" in gml("reaper", "install", "--k8s").stdout
    assert "gml reap" in gml("reaper", "install", "--github").stdout
    gcp = gml("reaper", "install", "--gcp", "--dry-run").stderr
    assert "run jobs deploy gml-reaper" in gcp and "scheduler jobs create http" in gcp
    assert "secrets" not in gcp
    key = home / "lambda_key"
    key.write_text("very-secret\n")
    key.chmod(0o600)
    with (home / "config.toml").open("a") as file:
        file.write(f'[google]\nbucket = "my-bucket"\n[lambda]\napi_key_file = "{key}"\n')
    gcp = gml("reaper", "install", "--gcp", "--dry-run", "--json")
    commands = [" ".join(c) for c in json.loads(gcp.stdout)["commands"]]
    assert any("secrets versions add gml-lambda-key" in c for c in commands)
    assert any("--set-secrets LAMBDA_API_KEY=gml-lambda-key:latest" in c for c in commands)
    assert any("gs://my-bucket" in c for c in commands)
    assert "very-secret" not in gcp.stdout + gcp.stderr


def test_reaper_install_for_queues_has_the_key_and_the_time(gml, home, monkeypatch, tmp_path):
    import yaml

    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-proj-1")
    install = ("reaper", "install", "--supervise")
    assert gml(*install, "--cron").stdout.rstrip().endswith("gml supervise")
    manifest = yaml.safe_load(gml(*install, "--k8s").stdout)
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert pod["command"] == ["gml", "supervise"]
    assert pod["envFrom"] == [{"secretRef": {"name": "gml-supervisor"}}]
    plain = yaml.safe_load(gml("reaper", "install", "--k8s").stdout)
    assert "envFrom" not in str(plain) and plain["spec"]["concurrencyPolicy"] == "Forbid"
    steps = yaml.safe_load(gml(*install, "--github").stdout)["jobs"]["reap"]["steps"]
    assert steps[-1]["run"] == "gml supervise" and "GML_SSH_KEY" in steps[-1]["env"]
    gcp = json.loads(gml(*install, "--gcp", "--dry-run", "--json").stdout)["commands"]
    commands = [" ".join(c) for c in gcp]
    key = str(home.parent / "key")
    assert any(f"secrets versions add gml-ssh-key --data-file {key}" in c for c in commands)
    (job,) = [c for c in commands if "run jobs deploy" in c]
    assert "--args supervise" in job and "--task-timeout 3600s" in job
    assert "--set-secrets GML_SSH_KEY=gml-ssh-key:latest" in job


def test_the_supervisors_key_from_the_environment_becomes_a_private_file(home, monkeypatch):
    from gml.supervisor.machine import write_ssh_key

    assert write_ssh_key(home) is None
    monkeypatch.setenv("GML_SSH_KEY", "-----BEGIN-----\nabc\n-----END-----")
    path = write_ssh_key(home)
    assert path.read_text().endswith("-----END-----\n") and path.stat().st_mode & 0o077 == 0
    assert "GML_SSH_KEY" not in os.environ  # no child of ours gets it


@pytest.mark.slow
def test_a_read_only_home_is_one_line_and_hides_no_machine(server, gml, home, monkeypatch):
    folder = home.parent / "ro"
    with small_disk(folder, "1m") as disk:
        (disk / "config.toml").write_text((home / "config.toml").read_text())
        (disk / "config.toml").chmod(0o600)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        env = {**os.environ, "GML_HOME": str(disk), "PYTHONPATH": str(ROOT)}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "gml", *words], capture_output=True, text=True, env=env,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

        listed = run("ls", "--refresh", "--json")
        assert (listed.returncode, json.loads(listed.stdout)["nodes"]) == (0, []), listed.stderr
        assert "Traceback" not in listed.stderr
        made = run("node", "create", "-t", "v6e-8", "-p", "google", "--strategy", "gce",
                   "--timeout", "1h", "--no-ssh")  # fmt: skip
        assert made.returncode == 2, made.stderr
        assert made.stderr.count("\n") == 1 and "Read-only file system" in made.stderr
        assert server.cloud.mutations() == []
        checks = json.loads(run("doctor", "--json").stdout)["checks"]
        (room,) = [c for c in checks if c["check"] == "state can be written"]
        assert not room["ok"] and "GML_HOME" in room["fix"]


EVERY_MODULE = """
import importlib, json, pkgutil, sys
import gml
for found in pkgutil.walk_packages(gml.__path__, "gml."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
names = [n for n in sys.modules if n.split(".")[0] in ("gml", "gaia")]
print(json.dumps({n: sys.modules[n].__file__ for n in names}))
"""


def test_the_reapers_image_context_can_reap(home, tmp_path):
    from gml.reaper_setup import write_image_context

    folder = write_image_context(make_fleet().config)
    assert 'owner = "tester"' in (folder / "config.toml").read_text()
    # -S: without the site's finder of this clone, which the image does not have either.
    path = os.pathsep.join([str(folder), sysconfig.get_path("purelib")])
    env = {**os.environ, "PYTHONPATH": path, "GML_HOME": str(tmp_path)}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-S", *words], capture_output=True, text=True,
                              env=env, cwd=folder)  # fmt: skip

    done = python("-m", "gml", "reap")
    assert (done.returncode, "no provider is configured" in done.stderr) == (2, True), done.stderr
    done = python("-c", EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    assert {"gml.supervisor.loop", "gaia.extras"} <= modules.keys()
    assert [m for m, file in modules.items() if not Path(file).is_relative_to(folder)] == []
    assert (folder / "gaia" / "hardware.toml").exists()
    assert not (folder / "gaia" / "checkpoint.py").exists()  # nothing that nobody imports


def test_a_supervisor_in_the_image_makes_machines_as_we_do(home, monkeypatch):
    from gml.config import load
    from gml.reaper_setup import gcp_commands, write_image_context

    with (home / "config.toml").open("a") as file:
        file.write('\n[google]\nproject = "proj-123"\nservice_account = "jobs@x"\n'
                   'subnetwork = "inner"\ninternal_ip = "yes"\ntunnel = "iap"\n')  # fmt: skip
    ours = load()
    there = load(write_image_context(ours))
    assert there.google == ours.google
    assert (there.owner, there.idle) == (ours.owner, ours.idle)
    role = "roles/iam.serviceAccountUser"
    key = type("Key", (), {"identity": home / "key"})
    monkeypatch.setattr("gml.reaper_setup.find_key", lambda config: key)
    assert any(role in c for c in gcp_commands(ours, "us-east5", "supervise"))
    assert not any(role in c for c in gcp_commands(ours, "us-east5"))


def test_a_typo_is_one_line_and_json_where_that_was_asked_for(gml):
    done = gml("node", "craete", "--json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("gml: No such command 'craete'. Did you mean 'create'?; see `gml")
    assert json.loads(done.stdout)["code"] == 2
    assert "gml: No such option: --jsn" in gml("ls", "--jsn").stderr
