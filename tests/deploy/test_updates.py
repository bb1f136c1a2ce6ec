"""up.sh, smoke.sh and install.sh on a stack that runs: what was chosen stays, changes arrive."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture
def stack(tmp_path):
    """A copy of deploy/, and a way to run its scripts with stand-ins for docker and kubectl."""
    target = tmp_path / "deploy"
    shutil.copytree(DEPLOY, target, ignore=shutil.ignore_patterns("secrets", ".env"))
    (tmp_path / "bin").mkdir()
    docker, kubectl = tmp_path / "bin/docker", tmp_path / "bin/kubectl"
    docker.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n')
    kubectl.write_text(
        f'#!/bin/bash\nif [ "$1" = kustomize ]; then cat {target}/k8s/*.yaml; fi\n'
        'if [ "${!#}" = - ]; then cat; fi\n'
    )
    docker.chmod(0o755), kubectl.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": sys.executable}

    def start(script, *words, code=0):
        (tmp_path / "calls").write_text("")
        command = ["bash", target / script, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    start.folder, start.calls = target, lambda: (tmp_path / "calls").read_text().splitlines()
    return start


def settings(file):
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_a_dry_run_stops_nothing(stack):
    for words in (("--dry-run", "--down"), ("--down", "--dry-run")):
        assert "docker compose down" in stack("up.sh", *words) and not stack.calls()
    stack("up.sh", "--down", "--nonsense", code=2)
    assert not stack.calls()
    stack("up.sh", "--down")
    assert stack.calls()[-1] == "compose down"


def test_an_update_keeps_what_was_chosen(stack):
    env = stack.folder / ".env"
    stack("up.sh", "--domain", "m.example.org", "--public", "--keep-days", "400")
    chosen = settings(env)
    stack("up.sh")
    assert settings(env) == chosen
    assert chosen["GAIA_PUBLIC"] == "true" and chosen["GAIA_EXPLORE"] == "false"
    assert chosen["GAIA_KEEP_DAYS"] == "400" and chosen["GAIA_DOMAIN"] == "m.example.org"
    stack("up.sh", "--no-public", "--keep-days", "0")
    changed = settings(env)
    assert changed["GAIA_PUBLIC"] == "false" and changed["GAIA_EXPLORE"] == "true"
    assert changed["GAIA_KEEP_DAYS"] == "0" and changed["GAIA_DOMAIN"] == "m.example.org"


def test_a_try_takes_no_public_stack_off_the_net(stack):
    stack("up.sh", "--domain", "m.example.org")
    before = settings(stack.folder / ".env")
    for words in ((), ("--dry-run",)):
        assert "serves m.example.org" in stack("smoke.sh", *words, code=2)
        assert not stack.calls() and settings(stack.folder / ".env") == before


def test_changed_files_have_their_containers_made_anew(stack):
    """The labels of those services alone change, and only with their files."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    stack("up.sh")
    last = settings(stack.folder / ".env")
    for file, service in (
        ("clickhouse/users.d/gaia.xml", "clickhouse"),
        ("clickhouse/config.d/gaia.xml", "clickhouse"),
        ("collector/config.yaml", "collector"),
        ("grafana/provisioning/alerting/rules.yaml", "grafana"),
        ("caddy/Caddyfile", "caddy"),
    ):
        variable = f"GAIA_{service.upper()}_FILES"
        assert services[service]["labels"] == {"gaia.files": f"${{{variable}:-}}"}
        with (stack.folder / file).open("a") as changed:
            changed.write("\n# another line\n")
        stack("up.sh")
        now = settings(stack.folder / ".env")
        assert {name for name in now if now[name] != last[name]} == {variable}
        assert now[variable].startswith("sha256-")
        last = now


def test_an_update_on_kubernetes_keeps_choices_and_starts_changed_pods(stack):
    def annotations(printed):
        return set(re.findall(r"gaia-secrets: (sha256-\w+)", printed))

    first = ("--domain", "m.example.org", "--email", "a@example.org", "--public")
    before = annotations(stack("k8s/install.sh", *first, "--keep-days", "400"))
    env = stack.folder / "k8s/.env"
    chosen = settings(env)
    shown = stack("k8s/install.sh", "--dry-run")
    assert annotations(shown) == before and len(before) == 3
    assert 'value: "400"' in shown and "host: otlp.m.example.org" in shown
    assert '{name: GF_AUTH_ANONYMOUS_ENABLED, value: "true"}' in shown
    with (stack.folder / "clickhouse/users.d/gaia.xml").open("a") as grants:
        grants.write("<!-- one more -->\n")
    after = annotations(stack("k8s/install.sh"))
    assert settings(env) == chosen and len(after & before) == 2 and len(after) == 3
    stack("k8s/install.sh", "--no-public")
    assert settings(env) == chosen | {"GAIA_PUBLIC": "false"}
