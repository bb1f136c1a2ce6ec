"""The clone that a rented machine gets: there every name means what it means here.

One commit is sent, whose tree is the working tree as it is and whose parents are all that is
compared. On the machine HEAD and the branches and tags that are named become what they are here, so
that the tree's changes are uncommitted ones again: `HEAD~1`, `my-idea~2`, `.` and `+idea` need no
other names there, and reports show those that were typed.
"""

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaia.errors import ConfigError
from gchat.research import worktrees
from gchat.research.worktrees import WORKING_TREE, TreeError

HOME = "results"
"""Folder of the clone, there and here, that comes home."""
FACTS = "comparison.json"
RESULTS = ("results.jsonl", "curves.png", "report.html", FACTS)
_THERE = "runs/compare-here"
_LARGEST = 100_000_000
"""Bytes of history above which gml sends the last commit alone."""
_HERE_ALONE = "@{"
"""Asks for what only this clone has: its reflog, and the upstream of a branch."""


@dataclass(frozen=True)
class Sent:
    """Facts by which the machine makes its clone like this one.

    Attributes:
        head: full hash of this clone's HEAD.
        branch: full name of the branch that is checked out here; empty where none is.
        refs: full hashes of the branches and tags that names begin with, by full name.
        commits: full hashes of all parts of names, as they were typed.
    """

    head: str
    branch: str
    refs: dict[str, str]
    commits: dict[str, str]


def send_clone(root: Path, names: Sequence[str], place: Path) -> Sent:
    """Makes the clone to send.

    Args:
        root: the clone here.
        names: what is compared, as given.
        place: folder of the clone to send; a clone that is there already is replaced.

    Raises:
        ConfigError: a name is one that only this clone can resolve.
        TreeError: a name is unknown, the history is too large, or the disk is full.
    """
    head = worktrees.head(root)
    commits = commits_of(root, names)
    try:
        if place.exists():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        git(root, "clone", "--quiet", "--no-checkout", str(root), str(place))
        _check_size(place)
        sent = _set_names(root, place, head, commits)
        parents = dict.fromkeys((head, *commits.values(), *sent.refs.values()))
        _working_tree(root, place, head, list(parents))
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise TreeError(
            f"the clone to send cannot be made in {place} ({error.strerror})",
            "make room, or give another --out",
        ) from None
    except BaseException:  # Ctrl-C too
        shutil.rmtree(place, ignore_errors=True)
        raise
    return sent


def commits_of(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Full hashes of the parts of names that are branches or commits.

    Raises:
        ConfigError: a name is one that only this clone can resolve.
        TreeError: a part is neither a branch, nor a commit, nor an idea.
    """
    commits: dict[str, str] = {}
    for name in names:
        worktrees.check_name(root, name)
        for part in _parts(name):
            try:
                commits[part] = worktrees.commit_of(root, part)
            except TreeError:
                continue  # an idea, which is applied there
            if _HERE_ALONE in part:
                raise ConfigError(
                    f"{part} says something in this clone alone, and --on compares in another",
                    f"write {commits[part][:10]}",
                )
    return commits


def _parts(name: str) -> Iterator[str]:
    if name != WORKING_TREE:
        yield from filter(None, name.split("+"))


def _check_size(place: Path) -> None:
    """Refuses a history that gml would cut off: no branch but the last commit would arrive."""
    lines = git(place, "count-objects", "-v").splitlines()
    counts = dict(line.split(": ", 1) for line in lines if ": " in line)
    size = 1024 * (int(counts.get("size-pack", 0)) + int(counts.get("size", 0)))
    if size > _LARGEST:
        raise TreeError(
            f"this clone's history is {size / 1e6:.0f} MB, and gml sends {_LARGEST / 1e6:.0f} MB",
            "run `git gc --prune=now`, or compare in a clone with fewer branches",
        )


def _set_names(root: Path, place: Path, head: str, commits: dict[str, str]) -> Sent:
    """Gives the clone the names that the machine will have, and no others; proves their meaning.

    Raises:
        ConfigError: a name means something else there.
    """
    refs: dict[str, str] = {}
    try:
        branch = git(root, "symbolic-ref", "--quiet", "HEAD")
        refs[branch] = head
    except TreeError:
        branch = ""  # HEAD is detached
    for part in commits:
        base = re.match(r"[^~^]+", part)
        if base is None:
            continue
        full = git(root, "rev-parse", "--symbolic-full-name", base[0])
        if full.startswith("refs/"):
            refs[full] = worktrees.commit_of(root, base[0])
    git(place, "update-ref", "--no-deref", "HEAD", head)
    for full in git(place, "for-each-ref", "--format", "%(refname)").split():
        git(place, "update-ref", "--no-deref", "-d", full)
    sent = Sent(head, branch, refs, commits)
    for words in _naming(sent):
        git(place, *words)
    for part, commit in commits.items():
        if worktrees.commit_of(place, part) != commit:
            raise ConfigError(f"{part} means another commit on a machine", f"write {commit[:10]}")
    return sent


def _naming(sent: Sent) -> list[list[str]]:
    """Words of the git commands that make a clone's names those of this one."""
    lines = [["update-ref", full, commit] for full, commit in sent.refs.items()]
    detached = ["update-ref", "--no-deref", "HEAD", sent.head]
    return [*lines, ["symbolic-ref", "HEAD", sent.branch] if sent.branch else detached]


def _working_tree(root: Path, place: Path, head: str, parents: Sequence[str]) -> None:
    """Lays the working tree out in the clone, and commits it there on all parents.

    No branch is checked out then: gml would make one of its name there.
    """
    git(place, "checkout", "--quiet", "--detach", head)
    worktrees.copy_changes(root, place)
    git(place, "add", "--all")
    tree = git(place, "write-tree")  # no `git commit`, which may sign, or run hooks
    on = [word for parent in parents for word in ("-p", parent)]
    commit = git(place, "commit-tree", tree, *on, "-m", "gchat compare")
    git(place, "update-ref", "--no-deref", "HEAD", commit)


def remote_line(names: Sequence[str], sent: Sent, words: Sequence[str], *, with_data: bool) -> str:
    """The bash line that the machine runs.

    Args:
        names: what is compared, as given.
        sent: what `send_clone` made.
        words: options of `gchat compare`, without those of data and folders.
        with_data: a data set was sent along.
    """
    wanted = shlex.join(["compare", *names, *words, "--out", _THERE])
    kept = " ".join(f"{_THERE}/{name}" for name in RESULTS)
    made = " ".join(f"{_THERE}/{name}" for name in RESULTS if name != "results.jsonl")
    needed = " ".join(dict.fromkeys((sent.head, *sent.commits.values(), *sent.refs.values())))
    return "\n".join([
        "set -e",
        f"for commit in {needed}; do git cat-file -e $commit 2>/dev/null || {{",
        "  echo 'gchat: the git history did not come along (see what gml said above);'"
        " 'nothing can be compared without it' >&2; exit 1; }; done",
        *(f"git {shlex.join(line)}" for line in _naming(sent)),
        ". requirements/venv.sh",
        'gaia_venv "$(gaia_platform)"',
        # A machine that is not new may hold those of an earlier comparison.
        f"rm -rf {HOME} {made}",
        f"mkdir -p {HOME}",
        f"trap 'cp {kept} {HOME}/ 2>/dev/null || :' EXIT",
        f".venv/bin/python -m gchat {wanted}" + ' --data "$GAIA_DATA"' * with_data,
    ])  # fmt: skip


def git(place: Path, *words: str) -> str:
    """Output of a git command.

    Raises:
        TreeError: it failed.
    """
    return worktrees.run_git(place, *words).strip()
