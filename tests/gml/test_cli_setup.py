"""`gml init` and `gml reaper install`: what is shown, what is run, what the image holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.fakes.gml_kit import make_fleet


def test_setup_commands_are_shown_and_only_run_with_apply(gml, home, tmp_path, monkeypatch):
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "gcloud").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n'
        'case "$*" in *firewall*) echo "already exists" >&2; exit 1;; esac\n'
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


def test_the_reapers_image_context_can_reap(home, tmp_path):
    from gml.reaper_setup import write_image_context

    folder = write_image_context(make_fleet().config)
    assert 'owner = "tester"' in (folder / "config.toml").read_text()
    env = {**os.environ, "PYTHONPATH": str(folder), "GML_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "gml", "reap"], capture_output=True, text=True, env=env, cwd=folder
    )
    assert (done.returncode, "no provider is configured" in done.stderr) == (2, True), done.stderr


def test_a_typo_is_one_line_and_json_where_that_was_asked_for(gml):
    done = gml("node", "craete", "--json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("gml: No such command 'craete'. Did you mean 'create'?; see `gml")
    assert json.loads(done.stdout)["code"] == 2
    assert "gml: No such option: --jsn" in gml("ls", "--jsn").stderr
