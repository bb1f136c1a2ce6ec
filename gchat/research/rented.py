"""`gchat compare … --on v6e-1 --budget 10USD`: the same comparison on a machine that `gml` rents.

`gml run` makes the machine, sends one clone whose history holds every branch, runs `gchat compare`
there, brings the results home and deletes the machine. It may live for so long at so high a price
that the budget cannot be exceeded: the price limit is the budget divided by the lifetime.
"""

import importlib.util
import math
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gaia.errors import ConfigError, GaiaError
from gaia.writer_lock import WriterLock
from gchat.research import cells, child, sent_clone, worktrees
from gchat.research.sent_clone import FACTS, HOME, RESULTS

MINUTES = 60.0
"""Budget of time where none is given."""
_START_MINUTES, _SLACK = 30.0, 1.5
SHORT = {"-t": "--instance-type", "-p": "--provider", "-y": "--yes"}
VALUED = (
    "--instance-type", "--provider", "--zone", "--strategy", "--reservation", "--disk-gb", "--wait",
    "--runtime-version", "--idle", "--host", "--env", "--secret", "--setup",
)  # fmt: skip
PLAIN = ("--spot", "--retry-until-up", "--internal-ip", "--self-terminate", "--yes")
"""Words of `gml run` that may be typed, with and without a value: what machine it is, and how it is
prepared. Others decide its end, its price, its code or its results, which are decided here."""
_REPEATABLE = ("--host", "--env", "--secret")
_DEST = "gaia-compare"
_LONGEST = 80
_NO_MACHINE = (2, 3, 4, 5, 6, 10)
"""Statuses of `gml run` after which no machine is left, so that none can be taken home later."""


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


class RentedFailure(GaiaError):
    """The comparison on the rented machine did not end well."""

    exit_status = 1


def rental(on: str, budget: str | None, minutes: float | None) -> Rental:
    """Reads what may be spent.

    Raises:
        ConfigError: words that no machine here may have, no budget, or one that buys nothing.
    """
    try:
        words = shlex.split(on)
    except ValueError as error:
        raise ConfigError(f"--on is {on!r} ({error})", "close the quotation mark") from None
    if not words:
        raise ConfigError("--on is empty", "name an instance type, e.g. v6e-1")
    _check_words(words)
    if budget is None:
        raise ConfigError(f"--on {on} has no --budget", "say what it may cost, e.g. --budget 10USD")
    amount = re.fullmatch(r"\$?(\d+(?:\.\d+)?)\s*(?:USD|usd|\$)?", budget.strip())
    if amount is None or not 0 < float(amount[1]) < math.inf:
        raise ConfigError(f"--budget is {budget!r}", "write US dollars, e.g. 10USD")
    spent = Rental(on, float(amount[1]), MINUTES if minutes is None else minutes)
    if spent.max_price <= 0:
        raise ConfigError(
            f"--budget {budget} is less than a cent an hour over {spent.lifetime_minutes} minutes",
            "give more, or fewer --minutes",
        )
    return spent


def _check_words(words: Sequence[str]) -> None:
    """Raises ConfigError for what may not stand behind --on."""
    named: dict[str, str] = {}
    for option, value in _options(words):
        if option in named and option not in _REPEATABLE:
            raise ConfigError(f"--on has {option} twice", "give it once")
        named[option] = value
    local = named.get("--provider") == "local" or "--host" in named
    if "--instance-type" not in named and not local:
        raise ConfigError("--on has no instance type", "begin with one, e.g. v6e-1")


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, the type that may come first included."""
    left = list(words)
    if not left[0].startswith("-"):
        yield "--instance-type", left.pop(0)
    while left:
        typed, equals, value = left.pop(0).partition("=")
        option = SHORT.get(typed, typed)
        short_with_value = bool(equals) and typed in SHORT
        if option in PLAIN and not equals:
            yield option, ""
        elif option in VALUED and not short_with_value:
            if not equals and left and not left[0].startswith("-"):
                value = left.pop(0)
            if not value:
                raise ConfigError(f"--on has {typed} without a value", "give one, or leave it out")
            yield option, value
        else:
            raise ConfigError(
                f"--on has {typed}, which may not stand there",
                f"leave it out; what may: {', '.join((*VALUED, *PLAIN))}",
            )


def _check_tools() -> None:
    """Raises ConfigError where gml cannot work here: found later, the machine would be there."""
    for module in ("gml", "typer", "httpx2"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"--on needs gml, and {module} is not installed",
                "run `pip install -e .` in the clone of gaia",
            )
    for program in ("ssh", "rsync"):
        if shutil.which(program) is None:
            raise ConfigError(f"--on needs {program}, which is not installed", f"install {program}")


def _data_word(data: str | None) -> str | None:
    """The data set as gml takes it: gs:// as it is, a folder as a whole path.

    Raises:
        ConfigError: the folder's name can be none there.
        DataError: the folder holds no data set.
    """
    if data is None or data.startswith("gs://"):
        return data
    cells.data_hash(data)
    folder = Path(data).resolve()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", folder.name):
        raise ConfigError(
            f"--data {data}: {folder.name!r} cannot be a folder's name on the machine",
            "rename it to letters, digits, dots and dashes",
        )
    return str(folder)


def compare_on(
    spent: Rental, names: Sequence[str], words: Sequence[str], folder: Path, *,
    data: str | None, dry_run: bool, log_to_stderr: bool = False,
) -> Path | None:  # fmt: skip
    """Runs the comparison on a rented machine, and brings its results home.

    Args:
        spent: machine and limits.
        names: what is compared, as given.
        words: options of `gchat compare`, without those of the machine, data and folders.
        folder: the results come to `of_machine(folder, spent)`, where the clone to send lies, too.
        data: data set here or at gs://, which is sent along; None prepares one there.
        dry_run: print what `gml` would do, and leave nothing behind.
        log_to_stderr: standard output is somebody else's.

    Returns:
        The folder of this run's results; None for a dry run.

    Raises:
        ConfigError: a name, the data, the price or this installation cannot work.
        FolderInUse: another comparison on such a machine is at work in the folder.
        KeyboardInterrupt: Ctrl-C, when gml has ended.
        RentedFailure: the comparison did not end well.
        TreeError: a branch is unknown, or the clone to send cannot be made.
    """
    _check_tools()
    data, root = _data_word(data), worktrees.repository()
    sent_clone.commits_of(root, names)  # nothing is written for a name that is unknown

    def command(place: Path) -> list[str]:
        sent = sent_clone.send_clone(root, names, place)
        line = sent_clone.remote_line(names, sent, words, with_data=data is not None)
        gml = [sys.executable, "-m", "gml", "run", *spent.words(), "--folder", str(place)]
        gml += ["--dest", _DEST, "--fetch", HOME, *(["--data", data] if data else [])]
        return [*gml, *["--dry-run"] * dry_run, "--", line]

    if dry_run:
        with tempfile.TemporaryDirectory(prefix="gchat-compare-") as made:
            ended = child.run(command(Path(made) / "sent"))  # it prints one JSON document
        ended.raise_if_interrupted()
        _check_plan(ended.status, spent)
        return None
    home = of_machine(folder, spent)
    place = home / "sent"
    with WriterLock(home / ".rented.lock", f"a rented comparison in {home}"):
        bring_home(place, home)  # what `gml run --attach` has brought since
        out = sys.stderr if log_to_stderr else None
        ended = child.run(command(place), out, lambda: _say_ending(place))
        came = bring_home(place, home)
        ended.raise_if_interrupted()
        _check(ended.status, came, place, spent)
        shutil.rmtree(place, ignore_errors=True)
    return came


def _check(status: int, came: Path | None, place: Path, spent: Rental) -> None:
    """Raises RentedFailure where the rented comparison did not end well."""
    kept = f"; what it trained lies in {came}" if came else ""
    if status == 0 and (came is None or not (came / FACTS).exists()):
        raise RentedFailure(f"the machine sent no {FACTS} home{kept}", "see its log above")
    if status == 0:
        return
    remedy = "see above"
    if status == 2:
        remedy = _cheaper(spent)
    elif status == 6:
        remedy = "none was to be had, or it was taken away: run it again, or without --spot"
    elif came is None and status not in _NO_MACHINE:
        remedy = f"see above; if `gml ls` still shows the machine, {_later(place)}"
    if came or status in _NO_MACHINE:
        shutil.rmtree(place, ignore_errors=True)
    kind = ConfigError if status == 2 else RentedFailure
    raise kind(f"the comparison on the rented machine ended with status {status}{kept}", remedy)


def _check_plan(status: int, spent: Rental) -> None:
    """Raises where gml could not say what it would do."""
    if status:
        kind = ConfigError if status == 2 else RentedFailure
        raise kind(f"the plan failed with status {status}", _cheaper(spent))


def _cheaper(spent: Rental) -> str:
    return (
        f"see above; a machine of more than ${spent.max_price:.2f} an hour needs more --budget or "
        "fewer --minutes"
    )


def _say_ending(place: Path) -> None:
    print(
        "gchat: waiting for gml to tidy up; a machine whose comparison has begun goes on, for its "
        f"lifetime at most: {_later(place)}",
        file=sys.stderr,
        flush=True,
    )


def _later(place: Path) -> str:
    """Names the command that brings home the results of a machine that is still there."""
    words = ["gml", "run", "--attach", "ID", "--folder", str(place), "--dest", _DEST]
    return f"`{shlex.join([*words, '--fetch', HOME])}` brings its results and ends it"


def of_machine(folder: Path, spent: Rental) -> Path:
    """Folder of the results of one kind of machine: those trained here stay what they are."""
    name = "-".join(re.findall(r"[A-Za-z0-9.]+", spent.on))
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{sha256(spent.on.encode()).hexdigest()[:8]}"
    return folder / f"on-{name}"


def bring_home(place: Path, home: Path) -> Path | None:
    """Moves what one run brought out of its clone; no file of another run is left beside it.

    Returns:
        The folder that holds it now: `home`, or `home/unfinished` where the comparison was not
        ended, so that one that was stays what it is. None where nothing came.

    Raises:
        RentedFailure: the folder cannot be written.
    """
    came = [name for name in RESULTS if (place / HOME / name).is_file()]
    if not came:
        return None
    to = home if FACTS in came else home / "unfinished"
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (to / name).unlink(missing_ok=True)
        for name in came:
            (place / HOME / name).replace(to / name)  # one file system: a full disk does not matter
    except OSError as error:
        raise RentedFailure(
            f"results cannot be moved to {to} ({error.strerror})", f"take them from {place / HOME}"
        ) from None
    return to
