"""`gchat compare --on`: over a real sshd, as on a machine of a cloud."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from tests.fakes.gml_kit import git

ROOT = Path(__file__).parents[2]
INSTALLED = """set -e
mkdir -p .venv/bin
printf '#!/bin/sh\\nexec {python} "$@"\\n' > .venv/bin/python
chmod +x .venv/bin/python
cat requirements/cpu.txt pyproject.toml | cksum > .venv/gaia-cpu.stamp
"""


@pytest.mark.slow
def test_a_comparison_on_another_machine(hosts, home, tmp_path):
    """`gml run` over a real sshd: sent, compared, brought home, and the machine given back."""
    pytest.importorskip("jax")
    data_dir = runs.make_data(tmp_path / "data", vocab_size=300)
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    git(root, "checkout", "-q", "-B", "compare")
    setup = shlex.quote(INSTALLED.format(python=sys.executable))
    on = f"-p local --zone box --env JAX_PLATFORMS=cpu --setup {setup}"
    tiny = [
        "model.dim=32", "model.head_dim=16", "model.hidden=64", "model.depth=1", "model.seq_len=32",
        "optim.warmup_steps=2", "training.batch_size=4", "eval.every_steps=4", "eval.tokens=400",
        "eval.sample_tokens=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "gchat", "compare", "HEAD", "+relu2", "--on", on]
    command += ["--budget", "10USD", "--minutes", "5", "--tokens", "1024", "--seeds", "1", "2"]
    command += ["--axes", "tokens", "--data", str(data_dir), "--json", "--set", *tiny]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "at most 38 minutes at $15.78 an hour, together at most $10" in done.stderr
    (out,) = (root / "runs" / "compare" / "HEAD-vs-+relu2").glob("on-p-local-zone-box-*")
    facts = json.loads(done.stdout)  # gml's log is elsewhere
    assert facts == json.loads((out / "comparison.json").read_text())
    assert [row["branch"] for row in facts["rows"]] == ["HEAD", "+relu2"]
    head = (root / ".git" / "refs" / "heads" / "compare").read_text()
    assert {row["commit"][:10] for row in facts["rows"]} == {head[:10]}
    assert not (out / "sent").exists()
    assert all(row["status"] == ["done", "done"] for row in facts["rows"])
    assert (out / "report.html").exists() and (out / "curves.png").exists()
    listed = subprocess.run(
        [sys.executable, "-m", "gml", "ls", "--json"], capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert json.loads(listed.stdout)["nodes"] == []
