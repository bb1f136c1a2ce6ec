"""deploy/health.sh and its units, with stand-ins for systemctl and curl."""

import os
import re
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = {
    DEPLOY / "chat/gchat-web-health.service": [("8000", "gchat-web")],
    DEPLOY / "serve/gchat-health@.service": [("8000", "gchat-serve"), ("8080", "llama-server")],
}


@pytest.fixture
def looked(tmp_path):
    """Runs a unit's command for a service in some state; what systemctl was asked to do."""
    for name, body in {
        "systemctl": f'case "$*" in *ActiveState*) echo "$STATE" ;; *Monotonic*) echo "$SINCE" ;; '
        f'*) echo "$@" >> {tmp_path}/calls ;; esac',
        "curl": f'echo "$@" >> {tmp_path}/curl; exit "$ANSWER"',
        "sleep": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def look(unit, port="8000", state="active", age=10_000, healthy=False):
        (tmp_path / "calls").write_text("")
        text = unit.read_text().replace("%i", port).replace("/opt/gaia/deploy", str(DEPLOY))
        up = float(Path("/proc/uptime").read_text().split()[0])
        env = os.environ | {
            "PATH": f"{tmp_path}:/usr/bin:/bin", "STATE": state, "ANSWER": "0" if healthy else "22",
            "SINCE": str(int((up - age) * 1e6)), "GRACE": re.search(r"GRACE=(\d+)", text)[1],
        }  # fmt: skip
        command = re.search(r"^ExecStart=(.*)", text, re.M)[1]
        subprocess.run(["/bin/sh", "-c", command], env=env, check=True, capture_output=True)
        return (tmp_path / "calls").read_text().split()

    return look


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_server_that_hangs_is_restarted_and_no_other(looked, unit, tmp_path):
    for port, service in UNITS[unit]:
        assert looked(unit, port) == ["try-restart", service]
        assert f"http://127.0.0.1:{port}/health" in (tmp_path / "curl").read_text()
    assert looked(unit, healthy=True) == []
    for state in ("inactive", "failed", "activating", "deactivating"):
        assert looked(unit, state=state) == []  # stopped by somebody, or given up by systemd
    assert looked(unit, age=600) == []  # a large run loads
    assert looked(unit, age=1000) == ["try-restart", UNITS[unit][0][1]]
