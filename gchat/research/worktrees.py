"""Source trees of branches and ideas side by side: one git worktree each, one judge for all.

What judges a run (`JUDGES`) is taken from the first branch in every tree, so that a branch cannot
grade itself; where a branch changes it, that is said.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.research import ideas
from gchat.research.folder_name import folder_name
from gchat.research.ideas import Idea
from gchat.research.source_tree import DIFF, Code, code_at


def _paths(*names: str) -> tuple[str, ...]:
    """Modules or packages of these names: a package would hide the module beside it."""
    return tuple(path for name in names for path in (name, f"{name}.py"))


JUDGES = _paths(
    "gchat/evals", "gchat/run/scorer", "gchat/run/names", "gchat/run/series", "gchat/tokenizer",
    "gchat/vocab", "gaia_metrics",
)  # fmt: skip
"""Paths of the code that measures a run."""
RESTS_ON = _paths(
    "gaia/config", "gaia/data", "gaia/kernels/cross_entropy", "gchat/config", "gchat/model_shape",
    "gchat/objective", "gchat/run/loop", "gchat/run/progress", "gchat/run/session",
    "gchat/run/training_data", "gchat/train", "gchat/train_step",
)  # fmt: skip
"""Paths that ideas change with good reason, and that the figures pass through all the same: the
loss, the rows, what an evaluation is given, and the counts of tokens, FLOPs and seconds."""
WORKING_TREE = "."
_OF_WORKING_TREE = "working tree"
"""Its folder; no branch has a space in its name."""
_HERE = ("*.py", "*.yaml", "*.toml")


class TreeError(GaiaError):
    """A branch cannot be made into a source tree; the others go on."""


@dataclass(frozen=True)
class Tree:
    """One variant's code.

    Attributes:
        name: as given: a branch, a commit, `.` for the working tree, `a+b` for the merge of two
            branches; a part that is an idea is applied as a patch, and `+idea` to the first tree.
        code: its state on disk.
        size: files, lines added, lines removed, against the first tree.
        notes: sentences that the report must hold.
        options: of `gchat train` that belong to its ideas.
    """

    name: str
    code: Code
    size: tuple[int, int, int] = (0, 0, 0)
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def repository() -> Path:
    """The top folder of the clone around the working directory.

    Raises:
        DataError: there is none.
    """
    done = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DataError("this folder is in no git clone", "run this inside the clone")
    return Path(done.stdout.strip())


def head(root: Path) -> str:
    """Full hash of the clone's HEAD."""
    return commit_of(root, "HEAD")


def make_tree(root: Path, name: str, folder: Path, first: Tree | None) -> Tree:
    """Lays out one variant below `folder`.

    Args:
        root: the clone.
        name: branch, commit, `a+b` or `.`.
        folder: where worktrees go.
        first: the tree that judges and is compared with; None makes that one.

    Raises:
        TreeError: the name is unknown, the branches do not merge, or the disk is full.
        ConfigError: an idea comes twice.
    """
    branches, wanted = _parts(root, name, first)
    check_name(root, name, first.name if first else None)
    commits = [commit_of(root, part) for part in branches]
    place = folder / (folder_name(name) if name != WORKING_TREE else _OF_WORKING_TREE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TreeError(
            f"{folder} cannot be made ({error.strerror})", "give another --out"
        ) from None
    remove_tree(root, place)
    run_git(root, "worktree", "add", "--detach", "--force", str(place), commits[0])
    for part, commit in zip(branches[1:], commits[1:], strict=True):
        run_git(place, "merge", "--no-ff", "--no-edit", "-m", f"{name}: {part}", commit)
    on_changes = first is not None and first.name == WORKING_TREE and name.startswith("+")
    takes_changes = name == WORKING_TREE or on_changes
    notes = list(copy_changes(root, place) if takes_changes else _left_out(root, branches))
    for idea in wanted:
        for patch in idea.patches:
            apply(place, patch)
    options = tuple(option for idea in wanted for option in idea.options)
    if options:
        notes.append(f"{name} trains with {' '.join(options)}")
    if there := [path for path in JUDGES if (place / path).exists()]:
        run_git(place, "add", "--all", "--force", "--", *there)  # untracked files are judges, too
    if first is None:
        return Tree(name, code_at(place), notes=tuple(notes), options=options)
    # The first tree may hold changes of its own: those of `.`, or of ideas.
    base = run_git(Path(first.code.path), "write-tree").strip()
    if changed := _take_judges(base, place):
        notes.append(f"{', '.join(changed)} of {name} counts for nothing: {first.name}'s judges")
    listed = run_git(place, "diff", "--name-only", "-z", base, "--", *RESTS_ON)
    if rests := [file for file in listed.split("\0") if file]:
        notes.append(f"the figures of {name} rest on {', '.join(rests)}, which it changes: read it")
    size = _size(run_git(place, "diff", "--numstat", base, "--", "*.py", "*.yaml"))
    return Tree(name, code_at(place), size, tuple(notes), options)


def _take_judges(first: str, place: Path) -> list[str]:
    """Makes the judges of a tree those of the first one, its uncommitted changes included.

    Args:
        first: git's tree of it.
        place: of the tree to change.

    Returns:
        The files that were others, or only in one of the two.
    """
    listed = run_git(place, "diff", "--name-only", "--no-renames", "-z", first, "--", *JUDGES)
    changed = [name for name in listed.split("\0") if name]
    if changed:
        run_git(place, "checkout", "--no-overlay", first, "--", *changed)
    return changed


def _parts(root: Path, name: str, first: Tree | None) -> tuple[list[str], list[Idea]]:
    """Branches to merge and ideas to apply, of a name; a branch goes before an idea of its name.

    Raises:
        TreeError: a part is neither.
    """
    if name == WORKING_TREE:
        return ["HEAD"], []
    start, *parts = name.split("+")
    branches = [start or (first.code.commit if first else "HEAD")]
    # The first tree's own ideas are no commits: they are applied again.
    wanted = [] if start or first is None else _parts(root, first.name, None)[1]
    for part in parts:
        if is_commit(root, part):
            branches.append(part)
            continue
        try:
            wanted.append(ideas.read(part))
        except ConfigError as error:
            raise TreeError(
                f"{part!r} of {name} is no branch, commit or idea", error.remedy
            ) from None
    return branches, wanted


def check_name(root: Path, name: str, first: str | None = None) -> list[Idea]:
    """The ideas in a variant's name, and of a first variant that a name beginning with + builds on.

    Raises:
        TreeError: a part of it is no branch, commit or idea.
        ConfigError: an idea comes twice.
    """
    branches, wanted = _parts(root, name, None)
    for branch in branches:
        commit_of(root, branch)
    if idea := _named_twice(wanted):
        raise ConfigError(f"{name} has {idea} twice", "name it once")
    if first is None or first == name or not name.startswith("+"):
        return wanted
    wanted = check_name(root, first) + wanted
    if idea := _named_twice(wanted):
        start = first.partition("+")[0] or "HEAD"
        raise ConfigError(
            f"{name} builds on {first}, which has {idea}",
            f"write {start}{name} to start from {start}",
        )
    return wanted


def _named_twice(wanted: Sequence[Idea]) -> str | None:
    """An idea that comes twice, by itself or as a part of another: git would apply it once, and
    what was meant to be another variant would be the same one."""
    seen: set[object] = set()
    for idea in wanted:
        marks = {idea.name, *idea.patches}
        if seen & marks:
            return idea.name
        seen |= marks
    return None


def apply(place: Path, patch: Path) -> None:
    """Applies an idea's patch to a source tree, by a merge where the code has moved on.

    Raises:
        TreeError: it does not fit.
    """
    try:
        run_git(place, "apply", "--index", str(patch))
    except TreeError:
        try:
            run_git(place, "apply", "--index", "--3way", str(patch))
        except TreeError as error:
            raise TreeError(
                f"{patch.parent.name} does not fit this code ({error.problem})",
                "leave it out, or make a branch of it and mend that",
            ) from None


def remove_tree(root: Path, place: Path) -> None:
    """Takes a worktree away, if it is there, and git's entry of it: no other entry is touched,
    for the user's own worktree may lie on a disk that is absent now."""
    shutil.rmtree(place, ignore_errors=True)
    words = ["worktree", "remove", "--force", "--force", str(place)]
    subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)


_AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "gchat compare"),
        ("EMAIL", "compare@localhost"),
        ("DATE", "2000-01-01T00:00:00Z"),
    )
}
"""Author of the merges, which stay in their worktrees; a fixed date makes one merge one commit."""


def commit_of(root: Path, name: str) -> str:
    """Full hash of a branch or commit.

    Raises:
        TreeError: there is none of that name.
    """
    try:
        return run_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except TreeError:
        branches = run_git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
        raise TreeError(f"{name!r} is no branch or commit", f"use {', '.join(branches)}") from None


def is_commit(root: Path, name: str) -> bool:
    """Tells whether a name is that of a branch or commit."""
    try:
        commit_of(root, name)
    except TreeError:
        return False
    return True


def copy_changes(root: Path, place: Path) -> list[str]:
    """Brings the working tree's uncommitted changes along; says what was brought."""
    patch = subprocess.run(
        ["git", "-C", str(root), *DIFF, "HEAD", "--binary"], capture_output=True, check=True
    ).stdout
    if patch:
        done = subprocess.run(
            ["git", "-C", str(place), *_OURS, "apply", "--index", "-"],
            input=patch,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = " ".join(done.stderr.decode().split())
            raise TreeError("the working tree's changes do not apply", said)
    new = run_git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *_HERE)
    for file in filter(None, new.split("\0")):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, place / file)
    if new:  # else no diff would show them, nor count their lines, nor a tree of git's hold them
        run_git(place, "add", "--", *filter(None, new.split("\0")))
    state = code_at(place)
    return [f". is {state.said}: HEAD with uncommitted changes"] if state.changes else []


def _left_out(root: Path, parts: list[str]) -> list[str]:
    """Says so where a branch that is named has uncommitted changes in this clone."""
    here = subprocess.run(
        ["git", "-C", str(root), "symbolic-ref", "--short", "--quiet", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if here in parts and code_at(root).changes:
        return [f"uncommitted changes of {here} are left out; name `.` to take them"]
    return []


def _size(numstat: str) -> tuple[int, int, int]:
    rows = [line.split("\t") for line in numstat.splitlines()]
    added, removed = (
        sum(int(row[column]) for row in rows if row[column] != "-") for column in (0, 1)
    )
    return len(rows), added, removed


_OURS = (
    "-c", "merge.log=false", "-c", "merge.verifySignatures=false", "-c", "commit.gpgSign=false",
    "-c", "core.hooksPath=/dev/null", "-c", "apply.whitespace=nowarn",
)  # fmt: skip
"""Words of git that undo settings which the user has for their own commits, such as signing them:
here these would fail, ask, or run programs."""


def run_git(folder: Path, *words: str) -> str:
    """Output of a git command in a folder.

    Raises:
        TreeError: it failed.
    """
    environment = os.environ | _AUTHOR | {"GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", "-C", str(folder), *_OURS, *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise TreeError(
            f"git {words[0]} failed ({_fault(done.stderr or done.stdout)})",
            "mend the branch, or make room",
        )
    return done.stdout


def _fault(said: str) -> str:
    """The first fault that git names, of all it says: a full disk is one for every file."""
    lines = [line.strip() for line in said.splitlines()]
    faults = [line for line in lines if line.startswith(("error:", "fatal:", "CONFLICT"))]
    return " ".join(faults[:1] or lines)[:300]
