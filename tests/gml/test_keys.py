"""Keys and ssh are the user's: odd keys are told before anything is paid, ~/.ssh/config is read."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from gml.errors import UsageError
from gml.remote.keys import check_key, find_key
from tests.fakes import sshd
from tests.fakes.gml_kit import CONFIG, make_fleet

CREATE = ("node", "create", "-t", "v6e-8", "-p", "google", "--timeout", "1h", "--name", "k",
          "--strategy", "gce", "--zone", "us-east5-b")  # fmt: skip


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)]
    subprocess.run(words, check=True)
    return path


def configure(home: Path, key: Path, more: str = "") -> None:
    (home / "config.toml").write_text(CONFIG.format(key=key) + more)


@pytest.fixture
def agent(monkeypatch):
    """A real ssh-agent; yields a function that adds a key with its passphrase."""
    folder = Path(tempfile.mkdtemp(prefix="agent", dir="/tmp"))
    socket = folder / "s"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    while not socket.exists():
        assert process.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))

    def add(key: Path, passphrase: str) -> None:
        (folder / "ask").write_text(f"#!/bin/sh\necho '{passphrase}'\n")
        (folder / "ask").chmod(0o700)
        env = {**os.environ, "SSH_ASKPASS": str(folder / "ask"), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=env, stdin=subprocess.DEVNULL)

    yield add
    process.terminate()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "trouble,says,fix",
    [("passphrase", "has a passphrase", "ssh-add"), ("0644", "readable by others", "chmod 600")],
)
def test_a_key_that_ssh_would_not_take_is_told_before_anything_is_made(
    server, gml, home, trouble, says, fix, monkeypatch
):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = make_key(home / "my key", "secret" if trouble == "passphrase" else "")
    key.chmod(0o644 if trouble == "0644" else 0o600)
    configure(home, key)
    done = gml(*CREATE)
    assert (done.returncode, says in done.stderr, fix in done.stderr) == (2, True, True), (
        done.stderr
    )
    assert server.cloud.mutations() == []
    checks = {c["check"]: c for c in json.loads(gml("doctor", "-p", "google", "--json").stdout)[
        "checks"]}  # fmt: skip
    assert not checks["ssh key"]["ok"] and fix in checks["ssh key"]["fix"]


def test_the_agent_makes_a_key_with_a_passphrase_usable(home, agent):
    key = make_key(home / "locked", "secret")
    configure(home, key)
    with pytest.raises(UsageError, match="no agent holds it"):
        check_key(make_fleet().config)
    agent(key, "secret")
    assert check_key(make_fleet().config).identity == key


def test_other_keys_than_the_default_are_found(home, agent, monkeypatch):
    (home / "config.toml").write_text('owner = "tester"\n')
    folder = Path(os.environ["HOME"]) / ".ssh"
    with pytest.raises(UsageError, match="ssh-keygen -t ed25519"):
        find_key(make_fleet().config)
    only_in_agent = make_key(home / "elsewhere", "secret")
    agent(only_in_agent, "secret")
    key = find_key(make_fleet().config)
    assert key.public.split()[1] == (home / "elsewhere.pub").read_text().split()[1]
    fleet = make_fleet()
    fleet.ssh.write_config()
    assert (home / "agent_key.pub").read_text().strip() == key.public
    rsa = make_key(folder / "id_rsa", kind="rsa")
    rsa.with_name("id_rsa.pub").unlink()
    assert find_key(make_fleet().config).identity == rsa
    assert find_key(make_fleet().config).public.startswith("ssh-rsa ")


def test_paths_with_spaces_and_a_long_home_reach_a_real_sshd(server, sshd_farm, gml, monkeypatch):
    """A key in `my keys/`, and a GML_HOME of 90 characters, too long for ssh's sockets."""
    folder, servers = sshd_farm
    long = Path(tempfile.mkdtemp(prefix="gml home ", dir="/tmp")) / ("x" * 70)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("GML_HOME", str(long))
    key = long / "my keys" / "key"
    key.parent.mkdir()
    shutil.copy(folder / "key", key)
    shutil.copy(folder / "key.pub", f"{key}.pub")
    configure(long, key, f'[google]\nssh_user = "{getpass.getuser()}"\n')
    server.cloud.addresses = [("127.0.0.1", servers[0].port)]
    done = gml(*CREATE)
    assert done.returncode == 0, done.stderr
    assert gml("exec", "k", "--", "echo", "in").stdout == "in\n"
    fleet = make_fleet()
    assert len(str(fleet.ssh.control)) < 46
    repo = long / "my project"
    repo.mkdir()
    subprocess.run(["git", "init", "-q", str(repo)], check=True)
    (repo / "a.txt").write_text("x")
    done = gml("sync", "k", "--folder", str(repo), "--dest", "w")
    assert done.returncode == 0, done.stderr
    gml("node", "delete", "k")
    shutil.rmtree(long.parent)
    shutil.rmtree(fleet.ssh.control, ignore_errors=True)


def test_own_hosts_follow_the_users_ssh_config(sshd_farm, gml, home):
    """An alias with HostName, Port, User, IdentityFile and an Include; no key of gml's at all."""
    folder, servers = sshd_farm
    user = Path(os.environ["HOME"]) / ".ssh"
    (user / "more").write_text(
        f"Host mybox\n  HostName 127.0.0.1\n  Port {servers[1].port}\n"
        f"  User {getpass.getuser()}\n  IdentityFile {folder}/key\n"
    )
    (user / "config").write_text(f"Include {user}/more\n")
    configure(home, home / "none", '\n[local.hosts]\nbox = ["mybox"]\n')
    done = gml("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h", "--name", "a")
    assert done.returncode == 0, done.stderr
    assert gml("exec", "a", "--", "echo $HOME").stdout.strip() == str(servers[1].home)
    assert gml("node", "delete", "a").returncode == 0
    configure(home, home / "none", 'ssh_config = "none"\n[local.hosts]\nbox = ["mybox"]\n')
    done = gml("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h", "--name", "a")
    assert done.returncode == 8, done.stderr


def test_a_linked_ssh_config_stays_a_link(hosts, fleet, gml, home):
    assert gml("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h", "--name",
               "c").returncode == 0  # fmt: skip
    dotfiles = home / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "config").write_text("Host other\n  Port 99\n")
    link = Path(os.environ["HOME"]) / ".ssh" / "config"
    link.symlink_to(dotfiles / "config")
    assert gml("connect", "c").returncode == 0
    assert link.is_symlink() and "Include" in (dotfiles / "config").read_text()
    gml("node", "delete", "c")


def test_a_reused_name_forgets_the_old_host_key(server, sshd_farm, gml, home, tmp_path):
    """The machine was ended by its watchdog; the next of that name has another host key."""
    folder, servers = sshd_farm
    configure(home, folder / "key", f'[google]\nssh_user = "{getpass.getuser()}"\n')
    server.cloud.addresses = [("127.0.0.1", servers[0].port)]
    assert gml(*CREATE).returncode == 0
    server.cloud.resources.clear()
    # Both creates may fall into one second here, and would be one request by their id then.
    server.cloud.seen_request_ids.clear()
    other = sshd.start(tmp_path / "other", (folder / "key.pub").read_text())
    try:
        server.cloud.addresses = [("127.0.0.1", other.port)]
        done = gml(*CREATE)
        assert done.returncode == 0, done.stderr
        assert gml("exec", "k", "--", "echo $HOME").stdout.strip() == str(other.home)
        gml("node", "delete", "k")
    finally:
        other.stop()
