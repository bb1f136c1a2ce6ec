"""The golden path with the real speedrun: `gml run … bash gchat/speedrun.sh` over a real sshd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gml.remote.sync import files_to_send
from tests.fakes.gml_kit import git

ROOT = Path(__file__).parents[2]
# Stands in for the machine's installed .venv: the lock is the trainer's business, tested there.
SETUP = """set -e
mkdir -p .venv/bin
printf '#!/bin/sh\\nexec {python} "$@"\\n' > .venv/bin/python
chmod +x .venv/bin/python
cat requirements/cpu.txt pyproject.toml | cksum > .venv/gaia-cpu.stamp
"""
TINY = (
    "--allow-cpu", "--depth", "1", "--model.seq-len", "64", "--model.head-dim", "32",
    "--data.vocab-size", "512", "--batch-size", "2", "--training.steps", "4", "--warmup", "1",
    "--eval.tokens", "256", "--eval.sample-tokens", "4", "--run.name", "tiny",
)  # fmt: skip


def copy_of_this_repository(folder: Path) -> Path:
    """The files that git would send, as a repository of its own: results come home into it."""
    folder.mkdir()
    listed, _ = files_to_send(ROOT)
    subprocess.run(
        ["rsync", "-a", "--from0", "--files-from=-", f"{ROOT}/", f"{folder}/"],
        input=b"".join(os.fsencode(f) + b"\0" for f in listed),
        check=True,
    )
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    return folder


@pytest.mark.slow
def test_run_syncs_trains_streams_fetches_the_report_and_deletes(hosts, home, tmp_path):
    pytest.importorskip("jax")
    repo = copy_of_this_repository(tmp_path / "gaia")
    words = ["run", "-p", "local", "--zone", "box", "--timeout", "2h", "--name", "gold"]
    words += ["--setup", SETUP.format(python=sys.executable), "--env", "JAX_PLATFORMS=cpu"]
    words += ["--env", f"GAIA_HOME={tmp_path}/gaia-home", "--json", "--"]

    def gml(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gml", *more], cwd=repo, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    done = gml(*words, "bash", "gchat/speedrun.sh", "--stages", "base", *TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout)
    assert (outcome["exit_code"], outcome["fetched"], outcome["deleted"]) == (0, ["runs"], True)
    assert "plan: " in done.stderr and "this machine's deadline" in done.stderr
    report = (repo / "runs" / "tiny" / "report.md").read_text()
    summary = json.loads((repo / "runs" / "tiny" / "summary.json").read_text())
    assert "tiny" in report and summary["steps"] == 4
    assert json.loads(gml("ls", "--refresh", "--json").stdout)["nodes"] == []
    assert not (hosts[0].home / ".gml" / "node").exists()
