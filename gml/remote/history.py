"""The git history of a work tree, on the machine: branch and commits as here, no configuration.

One pack travels over one ssh connection, of later commits only what is new since the last sync.
Neither hooks nor the local configuration (remotes may hold tokens) travel; `origin` is set without
its login. The files are `sync.push`'s business: with the index reset to HEAD, `git status` there
shows the same changes.
"""

from __future__ import annotations

import contextlib
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from gml.errors import Unavailable
from gml.model import Node
from gml.remote.git import git_argv, git_says
from gml.remote.secrets import SETTINGS, holds_login, is_secret, pathspecs, settings_pathspecs
from gml.remote.ssh import Ssh, quote

# A history above this many bytes is sent as its last commit alone.
SHALLOW_ABOVE = 100_000_000
PUSH_LIMIT_S = 1800

_RECEIVE = """command -v git >/dev/null || {{ echo none; exit 0; }}
cd && git init -q {dest} && cd {dest} || exit 1
if [ -n "{old}" ] && ! git cat-file -e "{old}^{{commit}}" 2>/dev/null; then echo again; exit 0; fi
git index-pack --stdin --fix-thin >/dev/null || exit 1
{shallow}
{refs}
git reset -q
{remote}
echo done"""


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
    commit = git_says(root, "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        return None
    return Head(commit, git_says(root, "symbolic-ref", "--short", "-q", "HEAD"))


def holds_secret(root: Path, since: str = "", *, last_only: bool = False) -> str:
    """Names the newest commit (or, with `last_only`, a file) that holds a secret's file, or ''.

    Commits before `since` are not looked at.
    """
    if last_only:
        return next(iter(_secrets_at(root, "HEAD")), "")
    # Git leaves out side branches that a merge took nothing from: their commits are sent as well.
    every = ("log", "--full-history", "--format=%h", f"{since}..HEAD" if since else "HEAD", "--")
    commits = git_says(root, *every, *pathspecs()).split()
    if commits:
        return commits[0]
    settings = git_says(root, *every, *settings_pathspecs()).split()
    return next((commit for commit in settings if _secrets_at(root, commit)), "")


def _secrets_at(root: Path, commit: str) -> list[str]:
    """Files of a commit that hold secrets."""
    names = git_says(root, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")
    return [n for n in names if is_secret(n) and not _is_harmless(root, commit, n)]


def _is_harmless(root: Path, commit: str, name: str) -> bool:
    """Tells whether a file is one of settings, and logs nobody in."""
    if name.rsplit("/", 1)[-1] not in SETTINGS:
        return False
    command = git_argv(root, "cat-file", "blob", f"{commit}:{name}")
    read = subprocess.run(command, capture_output=True)
    return read.returncode == 0 and not holds_login(read.stdout.decode(errors="replace"))


def push_history(
    ssh: Ssh, node: Node, root: Path, dest: str, head: Head, index: int, sent: str = ""
) -> str:
    """Brings the history to `~/dest/.git` on one host.

    Args:
        ssh: how it is reached.
        node: the machine.
        root: the work tree here.
        dest: folder there.
        head: commit and branch that are checked out here.
        index: host of the node.
        sent: commit that an earlier sync has brought there, or ''.

    Returns:
        A line to say: why it was sent in part, or not at all; '' where all is there.

    Raises:
        Unavailable: ssh or git failed.
    """
    if sent and not git_says(root, "rev-parse", "--verify", "-q", f"{sent}^{{commit}}"):
        sent = ""  # rewritten and pruned here since
    size = 0 if sent else _size(root)
    shallow = size > SHALLOW_ABOVE
    touched = holds_secret(root, sent, last_only=shallow)
    if touched:
        what = f"{touched} looks" if shallow else f"commit {touched} holds a file that looks"
        return f"the git history was not sent: {what} like a secret"
    answer = _send(ssh, node, root, dest, head, index, sent, shallow)
    if answer == "again":  # the machine is another one than last time
        return push_history(ssh, node, root, dest, head, index)
    if answer == "none":
        return f"git is not installed on {node.id}: the code is there without its history"
    return f"the git history ({size / 1e9:.1f} GB) was sent as its last commit alone" * shallow


def _size(root: Path) -> int:
    lines = git_says(root, "count-objects", "-v").splitlines()
    counts = dict(line.split(": ", 1) for line in lines if ": " in line)
    return 1024 * (int(counts.get("size-pack", 0)) + int(counts.get("size", 0)))


def _send(
    ssh: Ssh, node: Node, root: Path, dest: str, head: Head, index: int, sent: str, shallow: bool
) -> str:
    """Pipes the pack into git there; the last word of its answer."""
    script = _RECEIVE.format(
        dest=quote([dest]),
        old=sent,
        shallow=shallow_lines(root, head, shallow, bool(sent)),
        refs=ref_lines(head),
        remote=_origin_lines(root),
    )
    with packing(root, head, sent, shallow) as pack:
        try:
            done = subprocess.run(
                [*ssh.argv(node, index, "-T"), f"bash -c {quote([script])}"],
                stdin=pack,
                capture_output=True,
                timeout=PUSH_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"the git history did not arrive within {PUSH_LIMIT_S} s",
                "or leave it out with --no-git",
            ) from None
    words = done.stdout.decode(errors="replace").split()
    if done.returncode != 0 or not words:
        text = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(
            f"git history: {text[-1] if text else done.returncode}",
            "or leave it out with --no-git",
        )
    return words[-1]


@contextlib.contextmanager
def packing(root: Path, head: Head, sent: str = "", shallow: bool = False):
    """A pipe with the pack: all of the history, what is new since `sent`, or one commit alone."""
    if shallow:
        wanted = git_says(root, "rev-list", "--objects", "--no-walk", head.commit)
        text = "".join(f"{line.split(' ', 1)[0]}\n" for line in wanted.splitlines())
        words = ("pack-objects", "-q", "--stdout")
    else:
        text = f"{head.commit}\n" + (f"^{sent}\n" if sent else "")
        words = (
            "pack-objects",
            "-q",
            "--stdout",
            "--revs",
            "--window=3",
            *(["--thin"] if sent else []),
        )
    process = subprocess.Popen(
        git_argv(root, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(text.encode())
        process.stdin.close()
        yield process.stdout
    finally:
        process.stdout.close()
        process.wait()


def shallow_lines(root: Path, head: Head, shallow: bool, later: bool) -> str:
    """Shell lines that tell git there where the history begins; `later`: as it was told before."""
    if later:
        return ":"
    starts = [head.commit] if shallow else []
    if not shallow:
        # A clone that is shallow itself ends there as it ends here.
        path = root / git_says(root, "rev-parse", "--git-path", "shallow")
        with contextlib.suppress(OSError):
            starts = path.read_text(encoding="ascii").split()
    if not starts:
        return "rm -f .git/shallow"
    return f"printf '%s\\n' {' '.join(starts)} > .git/shallow"


def ref_lines(head: Head) -> str:
    """Shell lines that check out the same branch, or the same commit, without touching files."""
    if not head.branch:
        return f"git update-ref --no-deref HEAD {head.commit}"
    branch = quote([f"refs/heads/{head.branch}"])
    return f"git symbolic-ref HEAD {branch}; git update-ref {branch} {head.commit}"


def _origin_lines(root: Path) -> str:
    origin = _without_login(git_says(root, "remote", "get-url", "origin"))
    if not origin:
        return ":"
    return f"git remote remove origin 2>/dev/null; git remote add origin {quote([origin])}"


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc or parts.scheme == "ssh":
        return url
    return parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]).geturl()
