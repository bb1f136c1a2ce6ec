"""`gchat compare … --on v6e-1 --budget 10USD`: the same comparison on a machine that `gml` rents.

`gml run` makes the machine, sends one clone whose history holds every branch, runs `gchat compare`
there, brings the results home and deletes the machine. It may live for so long at so high a price
that the budget cannot be exceeded: the price limit is the budget divided by the lifetime.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gaia.errors import ConfigError, GaiaError
from gchat.research import ideas, worktrees
from gchat.research.worktrees import WORKING_TREE, TreeError

RESULTS = ("results.jsonl", "comparison.json", "curves.png", "report.html")
MINUTES = 60.0
"""Budget of time where none is given."""
_START_MINUTES, _SLACK = 30.0, 1.5
_OURS = ("--timeout", "--max-price", "--folder", "--dest", "--fetch", "--data", "--dry-run")
_NOT_ONE = ("-n", "--count", "--node", "--attach")
"""Words of `gml run` for several machines, whose prices add up, or for one that is there."""
_HOME = "results"
"""Folder of the sent clone, there and here, that comes home."""


@dataclass(frozen=True)
class Rental:
    """A machine and the most that it may cost.

    Attributes:
        on: instance type, or words of `gml run` such as `v6e-1 --spot`.
        budget: US dollars.
        minutes: of the comparison itself.
    """

    on: str
    budget: float
    minutes: float

    @property
    def lifetime_minutes(self) -> int:
        """Minutes after which the machine is deleted, whatever happens."""
        return round(self.minutes * _SLACK + _START_MINUTES)

    @property
    def max_price(self) -> float:
        """US dollars per hour above which no machine is taken, rounded down to cents."""
        return int(self.budget / (self.lifetime_minutes / 60) * 100) / 100

    def words(self) -> list[str]:
        """Words of `gml run` for the machine."""
        on = shlex.split(self.on)
        machine = on if on[0].startswith("-") else ["--instance-type", *on]
        limits = ["--timeout", f"{self.lifetime_minutes}m", "--max-price", f"{self.max_price:.2f}"]
        return [*machine, *limits]


def rental(on: str, budget: str | None, minutes: float | None) -> Rental:
    """Reads what may be spent.

    Raises:
        ConfigError: no budget, or one that is no amount of US dollars.
    """
    try:
        words = [word.partition("=")[0] for word in shlex.split(on)]
    except ValueError as error:
        raise ConfigError(f"--on is {on!r} ({error})", "close the quotation mark") from None
    if not words:
        raise ConfigError("--on is empty", "name an instance type, e.g. v6e-1")
    if several := [word for word in words if word in _NOT_ONE or re.match(r"-n\d", word)]:
        raise ConfigError(
            f"--on has {several[0]}, and the budget is that of one machine it makes",
            "leave it out",
        )
    if decided := [word for word in words if word in _OURS]:
        raise ConfigError(f"--on has {decided[0]}, which this decides", "leave it out")
    if budget is None:
        raise ConfigError(f"--on {on} has no --budget", "say what it may cost, e.g. --budget 10USD")
    amount = re.fullmatch(r"\$?(\d+(?:\.\d+)?)\s*(?:USD|usd|\$)?", budget.strip())
    if amount is None or float(amount[1]) <= 0:
        raise ConfigError(f"--budget is {budget!r}", "write US dollars, e.g. 10USD")
    return Rental(on, float(amount[1]), MINUTES if minutes is None else minutes)


def compare_on(
    spent: Rental, names: Sequence[str], words: Sequence[str], folder: Path, *,
    data: str | None, dry_run: bool,
) -> int:  # fmt: skip
    """Runs the comparison on a rented machine, and brings its results home.

    Args:
        spent: machine and limits.
        names: what is compared, as given.
        words: options of `gchat compare`, without those of the machine, data and folders.
        folder: of the sent clone; the results lie in `of_machine(folder, spent)`.
        data: data set here or at gs://, which is sent along; None prepares one there.
        dry_run: print what `gml` would do.

    Returns:
        The exit status of `gml run`.

    Raises:
        TreeError: a branch is unknown, or the clone to send cannot be made.
    """
    root = worktrees.repository()
    place = folder / "sent"
    branches = send_clone(root, names, place)
    line = remote_line(names, branches, words, with_data=data is not None)
    command = [sys.executable, "-m", "gml", "run", *spent.words(), "--folder", str(place)]
    command += ["--dest", "gaia-compare", "--fetch", _HOME]
    command += (["--data", data] if data else []) + (["--dry-run"] if dry_run else [])
    done = subprocess.run([*command, "--", line], check=False)
    home = of_machine(folder, spent)
    for name in RESULTS:
        if (place / _HOME / name).exists():
            home.mkdir(exist_ok=True)
            shutil.copy2(place / _HOME / name, home / f"{name}.part")
            (home / f"{name}.part").replace(home / name)
    return done.returncode


def of_machine(folder: Path, spent: Rental) -> Path:
    """Folder of the results of one kind of machine: those trained here stay what they are."""
    return folder / f"on-{'-'.join(re.findall(r'[A-Za-z0-9.]+', spent.on))}"


def send_clone(root: Path, names: Sequence[str], place: Path) -> dict[str, str]:
    """Makes the clone to send: one commit whose parents are all that is compared.

    Returns:
        The full hash of each branch, commit or working tree that `names` speak of.

    Raises:
        TreeError: a name is unknown, or the disk is full.
    """
    parts: list[str] = []
    for name in names:
        parts += [name] if name == WORKING_TREE else [part for part in name.split("+") if part]
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "--quiet", "--no-checkout", str(root), str(place))
    commits: dict[str, str] = {}
    for part in dict.fromkeys(parts):
        if part == WORKING_TREE:
            commits[part] = _working_tree(root, place)
            continue
        try:
            commits[part] = git(root, "rev-parse", "--verify", f"{part}^{{commit}}")
        except TreeError:
            ideas.read(part)  # applied there; unknown ones are named here
    if not commits:
        commits["HEAD"] = git(root, "rev-parse", "HEAD")
    first, *others = dict.fromkeys(commits.values())
    parents = [word for commit in (first, *others) for word in ("-p", commit)]
    sent = git(place, "commit-tree", f"{first}^{{tree}}", *parents, "-m", "gchat compare")
    git(place, "checkout", "--quiet", "-B", "compare", sent)
    return commits


def _working_tree(root: Path, place: Path) -> str:
    """Commits the working tree's changes in the clone alone."""
    head = git(root, "rev-parse", "HEAD")
    git(place, "checkout", "--quiet", "--detach", head)
    worktrees.copy_changes(root, place)
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "working tree")
    return git(place, "rev-parse", "HEAD")


def remote_line(
    names: Sequence[str], commits: dict[str, str], words: Sequence[str], *, with_data: bool
) -> str:
    """The bash line that the machine runs."""
    tree_branch = "working-tree"
    lines = ["set -e"]
    for name, commit in commits.items():
        branch = tree_branch if name == WORKING_TREE else name
        if name != commit and not re.fullmatch(r"HEAD|.*[~^@].*|[0-9a-f]{7,40}", branch):
            lines.append(f"git branch --force {shlex.quote(branch)} {commit}")
    here = [tree_branch if name == WORKING_TREE else name for name in names]
    out = f"--out runs/compare-here {'--data $GAIA_DATA' if with_data else ''}".strip()
    wanted = " ".join(shlex.quote(word) for word in [*here, *words])
    kept = " ".join(f"runs/compare-here/{name}" for name in RESULTS)
    lines += [
        '. requirements/venv.sh && gaia_venv "$(gaia_platform)"',
        f"mkdir -p {_HOME} && trap 'cp {kept} {_HOME}/ 2>/dev/null || :' EXIT",
        f".venv/bin/python -m gchat compare {wanted} {out}",
    ]
    return "\n".join(lines)


def git(place: Path, *words: str) -> str:
    """Output of a git command.

    Raises:
        TreeError: it failed.
    """
    return worktrees.run_git(place, *words).strip()


def check(code: int) -> None:
    """Raises GaiaError where the rented comparison did not end well."""
    if code:
        raise GaiaError(
            f"the comparison on the rented machine ended with status {code}",
            "see above; `gml ls` shows what is still there",
        )
