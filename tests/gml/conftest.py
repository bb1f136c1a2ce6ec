"""Fixtures of gml's tests: an own GML_HOME, the fake cloud, sshd, killable processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from gml.clock import service_clock
from tests.fakes import sshd
from tests.fakes.cloud import LAMBDA_KEY, Cloud, Server
from tests.fakes.gml_kit import CONFIG, PUBLIC, Zygote, git, make_fleet


@pytest.fixture
def home(monkeypatch):
    """A fresh GML_HOME with a short path (unix sockets have 108 characters) and a clean env."""
    folder = Path(tempfile.mkdtemp(prefix="gml", dir="/tmp"))
    for name in list(os.environ):
        if name.startswith(("GML_", "GOOGLE_", "LAMBDA_", "GAIA_")):
            monkeypatch.delenv(name)
    key = folder / "key"
    key.write_text("not a real private key\n")
    key.chmod(0o600)
    key.with_suffix(".pub").write_text(PUBLIC + "\n")
    (folder / "gml").mkdir(mode=0o700)
    (folder / "gml" / "config.toml").write_text(CONFIG.format(key=key))
    (folder / "gml" / "config.toml").chmod(0o600)
    monkeypatch.setenv("GML_HOME", str(folder / "gml"))
    monkeypatch.setenv("HOME", str(folder / "user"))
    (folder / "user" / ".ssh").mkdir(parents=True)
    yield folder / "gml"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _server():
    server = Server(Cloud())
    yield server
    server.close()


@pytest.fixture
def server(_server, home, monkeypatch):
    """The fake cloud's server, with the environment pointing at it."""
    _server.reset(Cloud())
    service_clock.forget()
    for key, value in _server.environment().items():
        monkeypatch.setenv(key, value)
    return _server


@pytest.fixture
def cloud(server):
    return server.cloud


@pytest.fixture
def fleet(home):
    return make_fleet()


@pytest.fixture
def fast_lambda(monkeypatch):
    """Lambda's gaps and lags in milliseconds."""
    from gml.providers import lambda_cloud

    monkeypatch.setenv("LAMBDA_API_KEY", LAMBDA_KEY)
    monkeypatch.setattr(lambda_cloud, "REQUEST_GAP_S", 0.0)
    monkeypatch.setattr(lambda_cloud, "LAUNCH_GAP_S", 0.02)
    monkeypatch.setattr(lambda_cloud, "LIST_LAG_S", 0.15)


@pytest.fixture(scope="session")
def zygote():
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def gml(zygote, home):
    """Runs a gml command in a process of its own."""
    return zygote.call


@pytest.fixture(scope="session")
def sshd_farm():
    """Four sshd on loopback, each with a home of its own; skips where there is no sshd."""
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    folder = Path(tempfile.mkdtemp(prefix="sshd", dir="/tmp"))
    sshd.make_key(folder / "key")
    public = (folder / "key.pub").read_text()
    servers = [sshd.start(folder / f"h{i}", public) for i in range(4)]
    yield folder, servers
    for server in servers:
        server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hosts(sshd_farm, home):
    """The farm, configured as the local machines `box` (one) and `slice` (four)."""
    folder, servers = sshd_farm
    for server in servers:
        shutil.rmtree(server.home, ignore_errors=True)
        server.home.mkdir()
    listed = ", ".join(f'"{s.address}"' for s in servers)
    text = CONFIG.format(key=folder / "key")
    text += f'\n[local.hosts]\nbox = ["{servers[0].address}"]\nslice = [{listed}]\n'
    (home / "config.toml").write_text(text)
    yield servers
    for server in servers:
        for pid in (server.home / ".gml").rglob("pid"):
            subprocess.run(["kill", "-9", pid.read_text().strip()], capture_output=True)


@pytest.fixture
def repo(tmp_path):
    """A small git repository."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    (folder / "main.py").write_text("print('hello')\n")
    (folder / ".gitignore").write_text("ignored.txt\nruns/\n")
    git(folder, "add", "-A")
    return folder
