"""Code on the machine as it is here: nested repositories, sizes, git history, identity, ports."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from gml.nodes.change import delete
from gml.nodes.create import create
from gml.remote import history
from gml.request import NodeRequest
from tests.fakes.gml_kit import git

CREATE = ("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h")


def make_local(fleet, zone: str, name: str):
    return create(fleet, NodeRequest("local", 3600, provider="local", zone=zone, name=name))


def test_nested_repositories_are_sent_and_links_out_of_the_tree_are_said(hosts, repo, gml, home):
    assert gml(*CREATE, "--name", "n").returncode == 0
    lib = repo / "lib"
    lib.mkdir()
    git(lib, "init", "-q")
    (lib / "inner.py").write_text("x\n")
    (repo / "data").symlink_to("/elsewhere/data")
    (repo / "inside").symlink_to("main.py")
    spaced = repo.with_name("my project")
    repo.rename(spaced)
    done = gml("sync", "n", "--folder", str(spaced))
    assert done.returncode == 0, done.stderr
    there = hosts[0].home / "my-project"
    assert (there / "lib" / "inner.py").read_text() == "x\n" and (there / "inside").exists()
    assert "data -> /elsewhere/data points out of the tree" in done.stderr
    assert "inside ->" not in done.stderr
    plan = json.loads(gml("sync", "n", "--folder", str(spaced), "--dry-run").stdout)
    assert "lib/inner.py" in plan["files"] and plan["links_out"] == ["data"]
    gml("node", "delete", "n")


def test_what_is_large_is_announced_once_before_it_is_sent(hosts, repo, gml, monkeypatch):
    assert gml(*CREATE, "--name", "l").returncode == 0
    with (repo / "checkpoint.bin").open("wb") as file:
        file.truncate(150_000_000)  # sparse: 150 MB of zeros
    done = gml("sync", "l", "--folder", str(repo))
    said = [x for x in done.stderr.splitlines() if "0.15 GB" in x]
    assert len(said) == 1 and "checkpoint.bin" in said[0] and ".gitignore" in said[0]
    assert done.stderr.index("0.15 GB") < done.stderr.index("files to l")
    assert "0.15 GB" not in gml("sync", "l", "--folder", str(repo)).stderr
    gml("node", "delete", "l")


def test_missing_git_credentials_are_told_before_a_machine_is_made(hosts, repo, gml, monkeypatch):
    words = ("run", "-p", "local", "--zone", "box", "--timeout", "1h", "--git-credentials")
    done = gml(*words, "--", "true", cwd=repo)
    assert (done.returncode, "no stored credential" in done.stderr) == (2, True), done.stderr
    assert not (hosts[0].home / ".gml").exists()


def test_connect_forwards_ports(hosts, gml):
    assert gml(*CREATE, "--name", "f").returncode == 0
    words = ("connect", "f", "--dry-run", "--forward", "8888", "--forward", "16006:6006")
    argv = json.loads(gml(*words).stdout)["argv"]
    pairs = [argv[i + 1] for i, word in enumerate(argv) if word == "-L"]
    assert pairs == ["8888:localhost:8888", "16006:localhost:6006"]
    assert "ExitOnForwardFailure=yes" in argv
    bad = gml("connect", "f", "--forward", "99999")
    assert (bad.returncode, "--forward '99999' is not a port" in bad.stderr) == (2, True)
    gml("node", "delete", "f")


def there(server, dest: str, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(server.home / dest), *words], capture_output=True, text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": str(server.home / ".gitconfig")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_connect_brings_code_with_its_git_history_and_identity(hosts, repo, gml, home):
    assert gml(*CREATE, "--name", "g").returncode == 0
    git(repo, "commit", "-qm", "first")
    git(repo, "checkout", "-qb", "idea/one")
    git(repo, "remote", "add", "origin", "https://ada:s3cret-token@example.org/x.git")
    (repo / "main.py").write_text("print('changed')\n")
    (repo / "new.py").write_text("new\n")
    done = gml("connect", "g", cwd=repo)
    assert done.returncode == 0, done.stderr
    server = hosts[0]
    here = subprocess.run(
        ["git", "-C", str(repo), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert there(server, "repo", "rev-parse", "HEAD") == here
    assert there(server, "repo", "branch", "--show-current") == "idea/one"
    assert there(server, "repo", "status", "--porcelain").split() == [
        "M",
        "main.py",
        "??",
        "new.py",
    ]
    assert there(server, "repo", "config", "user.email") == "ada@example.org"
    assert there(server, "repo", "remote", "get-url", "origin") == "https://example.org/x.git"
    assert "s3cret-token" not in (server.home / "repo" / ".git" / "config").read_text()
    # A later commit follows; a second connect without one sends no history again.
    git(repo, "commit", "-qam", "second")
    assert gml("sync", "g", "--folder", str(repo)).returncode == 0
    assert there(server, "repo", "log", "--format=%s").split() == ["second", "first"]
    assert there(server, "repo", "status", "--porcelain").split() == ["??", "new.py"]
    assert gml("connect", "g", "--no-sync", cwd=repo).returncode == 0
    gml("node", "delete", "g")


def test_a_large_history_is_sent_as_its_last_commit(hosts, repo, fleet, monkeypatch):
    from gml.remote import history, sync

    node = make_local(fleet, "box", "h")
    git(repo, "commit", "-qm", "first")
    git(repo, "commit", "-qm", "second", "--allow-empty")
    monkeypatch.setattr(history, "SHALLOW_ABOVE", -1)
    report = sync.push(fleet.ssh, node, repo, "w")
    assert "last commit alone" in report.note
    assert there(hosts[0], "w", "log", "--format=%s") == "second"
    assert there(hosts[0], "w", "status", "--porcelain") == ""
    delete(fleet, node)


@pytest.mark.parametrize("still_there", [True, False])
def test_a_history_with_a_secret_in_it_stays_here(hosts, repo, fleet, still_there):
    from gml.remote import sync

    node = make_local(fleet, "box", "hs")
    (repo / "keys").mkdir()
    (repo / "keys" / "deploy.pem").write_text("s3cret\n")
    (repo / ".env.example").write_text("TOKEN=\n")
    git(repo, "add", "-f", ".")
    git(repo, "commit", "-qm", "oops")
    if not still_there:
        git(repo, "rm", "-q", "keys/deploy.pem")
        git(repo, "commit", "-qm", "removed")
    report = sync.push(fleet.ssh, node, repo, "w")
    assert "looks like a secret" in report.note
    assert not (hosts[0].home / "w" / ".git").exists()
    assert (hosts[0].home / "w" / "main.py").exists()
    delete(fleet, node)


NAMES = {
    "deploy.pem": ("s3cret\n", True),
    "k\u00e4y.pem": ("s3cret\n", True),
    "web/.npmrc": ("//registry.npmjs.org/:_authToken=npm_x\n", True),
    "lib/.npmrc": ("fund=false\n", False),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["here", "on a side branch", "last commit alone"])
def test_what_in_a_history_is_a_secret(repo, name, way):
    """A side branch whose file is gone when it is merged is sent all the same."""
    text, secret = NAMES[name]
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "first")
    if way == "on a side branch":
        git(repo, "checkout", "-q", "-b", "side")
    (repo / name).parent.mkdir(exist_ok=True)
    (repo / name).write_text(text)
    git(repo, "add", "-f", name)
    git(repo, "commit", "-qm", "added")
    if way == "on a side branch":
        git(repo, "rm", "-q", name)
        git(repo, "commit", "-qm", "removed")
        git(repo, "checkout", "-q", "-")
        git(repo, "merge", "-q", "--no-ff", "-m", "merged", "side")
    assert bool(history.holds_secret(repo, last_only=way == "last commit alone")) is secret


def test_only_what_is_new_is_packed_and_a_new_machine_gets_all(hosts, repo, fleet, monkeypatch):
    from gml.remote import history, sync

    node = make_local(fleet, "box", "hp")
    (repo / "large.txt").write_text(os.urandom(300_000).hex())
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "first")
    sync.push(fleet.ssh, node, repo, "w")
    first = history.head_of(repo)
    (repo / "main.py").write_text("print(2)\n")
    git(repo, "commit", "-qam", "second")
    second = history.head_of(repo)
    with history.packing(repo, second, first.commit) as pack:
        assert len(pack.read()) < 2000  # the large file is there already
    sync.push(fleet.ssh, node, repo, "w")
    assert there(hosts[0], "w", "log", "--format=%s").split() == ["second", "first"]
    # The record here says that the machine has it, but it is another one by now.
    git(repo, "commit", "-qm", "third", "--allow-empty")
    subprocess.run(["rm", "-rf", str(hosts[0].home / "w")], check=True)
    sync.push(fleet.ssh, node, repo, "w")
    assert there(hosts[0], "w", "log", "--format=%s").split() == ["third", "second", "first"]
    # Amended here: the former commit is no ancestor any more.
    git(repo, "commit", "-q", "--amend", "-m", "other", "--allow-empty")
    sync.push(fleet.ssh, node, repo, "w")
    assert there(hosts[0], "w", "log", "--format=%s").split() == ["other", "second", "first"]
    assert there(hosts[0], "w", "fsck", "--connectivity-only") == ""
    delete(fleet, node)


@pytest.mark.slow
def test_a_shallow_clone_arrives_as_shallow_as_it_is(hosts, repo, fleet, tmp_path):
    from gml.remote import sync

    node = make_local(fleet, "box", "hc")
    for name in ("first", "second", "third"):
        git(repo, "commit", "-qm", name, "--allow-empty")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "2", repo.as_uri(), str(clone))
    sync.push(fleet.ssh, node, clone, "c")
    assert there(hosts[0], "c", "log", "--format=%s").split() == ["third", "second"]
    assert there(hosts[0], "c", "status", "--porcelain") == ""
    delete(fleet, node)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a tree to somebody else")
def test_a_tree_of_another_owner_is_sent_and_runs_nothing_of_its_own(hosts, repo, fleet, tmp_path):
    from gml.remote import sync

    node = make_local(fleet, "box", "ho")
    git(repo, "commit", "-qm", "first")
    trap = tmp_path / "trap"
    git(repo, "config", "core.fsmonitor", f"touch {trap}; false")
    subprocess.run(["chown", "-R", "65534:65534", str(repo)], check=True)
    refused = subprocess.run(["git", "-C", str(repo), "status"], capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr  # what git itself says of such a tree
    assert sync.repository_root(repo) == repo
    sync.push(fleet.ssh, node, repo, "w")
    assert there(hosts[0], "w", "log", "--format=%s") == "first"
    assert (hosts[0].home / "w" / "main.py").stat().st_uid == os.geteuid()
    assert not trap.exists()
    delete(fleet, node)


def test_connect_brings_data_and_logins_as_configured(hosts, repo, gml, home, tmp_path):
    data = tmp_path / "fineweb"
    data.mkdir()
    (data / "shard.bin").write_bytes(b"x" * 1000)
    store = tmp_path / "logins"
    store.write_text("https://ada:gh-token@github.com\n")
    git(repo, "config", "credential.helper", f"store --file {store}")
    git(repo, "commit", "-qm", "first")
    assert gml(*CREATE, "--name", "d").returncode == 0
    with (home / "config.toml").open("a") as file:
        file.write(f'\n[connect]\ndata = "{data}"\ngit_credentials = "yes"\n')
    done = gml("connect", "d", cwd=repo)
    assert done.returncode == 0, done.stderr
    assert (hosts[0].home / "data" / "fineweb" / "shard.bin").stat().st_size == 1000
    login = hosts[0].home / ".git-credentials"
    assert "gh-token" in login.read_text() and login.stat().st_mode & 0o077 == 0
    assert "gh-token" not in done.stdout + done.stderr
    argv = json.loads(gml("connect", "d", "--json").stdout)["argv"]
    assert argv[-1].startswith('export GAIA_DATA="$HOME/data/fineweb"; exec ')
    text = (home / "config.toml").read_text().replace(f'data = "{data}"', 'data = "gs://b/x"')
    (home / "config.toml").write_text(text)
    argv = json.loads(gml("connect", "d", "--json").stdout)["argv"]
    assert argv[-1].startswith("export GAIA_DATA=gs://b/x; exec ")
    gml("node", "delete", "d")
