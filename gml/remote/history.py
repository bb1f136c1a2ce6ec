"""The git history of a work tree, on the machine: branch and commits as here, no configuration.

`git push` brings it, so later syncs send new objects only. Neither hooks nor the local
configuration (remotes may hold tokens) travel; `origin` is set without its login. The files are
`sync.push`'s business: with the index reset to HEAD, `git status` there shows the same changes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from gml.errors import Unavailable
from gml.model import Node
from gml.remote.secrets import pathspecs
from gml.remote.ssh import Ssh, host_alias, quote

# A history above this many bytes is sent as its last commit alone.
SHALLOW_ABOVE = 100_000_000


@dataclass(frozen=True)
class Head:
    """The commit that is checked out; `branch` is '' where none is."""

    commit: str
    branch: str

    @property
    def key(self) -> str:
        """Text that changes when either does."""
        return f"{self.commit} {self.branch}"


def head_of(root: Path) -> Head | None:
    """The commit that is checked out here, or None before the first."""
    commit = _git(root, "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        return None
    return Head(commit, _git(root, "symbolic-ref", "--short", "-q", "HEAD"))


def holds_secret(root: Path, *, last_only: bool = False) -> str:
    """Names the newest commit (or, with `last_only`, a file) that holds a secret's file, or ''."""
    if last_only:
        names = _git(root, "ls-files", "--with-tree=HEAD", "--", *pathspecs()).splitlines()
        return names[0] if names else ""
    return _git(root, "log", "-1", "--format=%h", "HEAD", "--", *pathspecs())


def push_history(ssh: Ssh, node: Node, root: Path, dest: str, head: Head, index: int) -> str:
    """Brings the history to `~/dest/.git` on one host.

    Returns:
        A line to say: why it was sent in part, or not at all; '' where all is there.

    Raises:
        Unavailable: ssh or git failed.
    """
    touched = holds_secret(root)
    if touched:
        return (
            f"the git history was not sent: commit {touched} holds a file that looks like a secret"
        )
    begun = ssh.run(
        node,
        f"command -v git >/dev/null || {{ echo none; exit 0; }}\n"
        f"cd; git init -q {quote([dest])}; cd {quote([dest])}\n"
        "git config receive.denyCurrentBranch ignore; git config receive.shallowUpdate true\n",
        index=index,
    )
    if begun.stdout.strip() == b"none":
        return f"git is not installed on {node.id}: the code is there without its history"
    size = 1024 * int(_counts(root).get("size-pack", 0))
    target = f"{host_alias(node, index)}:{dest}"
    note = ""
    if size > SHALLOW_ABOVE:
        note = f"the git history ({size / 1e9:.1f} GB) was sent as its last commit alone"
        with tempfile.TemporaryDirectory() as folder:
            _check(_run(root, "clone", "-q", "--bare", "--depth", "1", root.as_uri(), folder))
            _push(ssh, Path(folder), target)
    else:
        _push(ssh, root, target)
    branch = f"refs/heads/{head.branch}" if head.branch else ""
    point = f"git symbolic-ref HEAD {quote([branch])}; " if branch else ""
    update = f"git update-ref {quote([branch])} {head.commit}; " if branch else (
        f"git update-ref --no-deref HEAD {head.commit}; "
    )  # fmt: skip
    origin = _without_login(_git(root, "remote", "get-url", "origin"))
    remote = f"git remote remove origin 2>/dev/null; git remote add origin {quote([origin])}; "
    script = f"cd; cd {quote([dest])}; {point}{update}git reset -q; {remote if origin else ''}:"
    ssh.run(node, script, index=index, timeout_s=300)
    return note


def _push(ssh: Ssh, source: Path, target: str) -> None:
    env = {**os.environ, "GIT_SSH_COMMAND": f"ssh -F '{ssh.file}'"}
    words = ("push", "-q", "--force", "--no-verify", target, "HEAD:refs/gml/head")
    _check(_run(source, *words, env=env))


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        text = done.stderr.strip().splitlines()
        raise Unavailable(
            f"git push: {text[-1] if text else done.returncode}", "or leave it out with --no-git"
        )


def _counts(root: Path) -> dict[str, str]:
    lines = _git(root, "count-objects", "-v").splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc or parts.scheme == "ssh":
        return url
    return parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]).geturl()


def _git(root: Path, *words: str) -> str:
    done = _run(root, *words)
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(
    root: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, env=env,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
