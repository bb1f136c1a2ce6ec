"""Steps of a speedrun: commands of `gchat`, each in a process of its own, done once.

A process of its own gives all memory back to the system, on every kind of device, before the next
step takes it. A step is done when the file that it leaves behind is there; until then the same
command goes on with it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gaia.errors import GaiaError
from gaia.interrupt import hearing

ANSWERS_ENDED = ("--json", "--retry-errors")
"""Options of `gchat generate` as a step: its file grows answer by answer, its summary ends it."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StepFailed(GaiaError):
    """A step ended with an error, which it has said itself."""

    exit_status = 1


@dataclass(frozen=True)
class Step:
    """One command.

    `train` leaves a finished summary.json in its run; `measure` prints JSON that is kept in `file`;
    `make` leaves `file`, which must appear whole.
    """

    name: str
    kind: Literal["train", "measure", "make"]
    words: Callable[[], Sequence[str]]
    """The command's words behind `gchat`, made when the step begins: they may depend on others."""
    file: Path
    """Run folder of a training; of the others the file that they leave."""
    resume: Sequence[str] = ()
    """Words of the command that goes on with a training."""

    @property
    def done(self) -> bool:
        """True where the step need not be done again."""
        if self.kind == "train":
            return bool(summary_of(self.file).get("finished"))
        return self.file.exists()

    def command(self) -> list[str]:
        """The words of the command to run now."""
        begun = self.kind == "train" and (self.file / "config.yaml").exists()
        return list(self.resume) if begun else list(self.words())


def summary_of(run: Path) -> dict[str, Any]:
    """summary.json of a run; empty where it has none yet."""
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def run_all(steps: Sequence[Step], seconds: dict[str, float], save: Callable[[], None]) -> bool:
    """Runs what is not done, in order.

    Args:
        steps: all of them.
        seconds: wall time of each by name; added to.
        save: called when `seconds` has changed.

    Returns:
        False where a step was stopped on request and saved its work.

    Raises:
        StepFailed: a step failed.
    """
    for number, step in enumerate(steps, start=1):
        if step.done:
            continue
        print(f"\n── {number}/{len(steps)} {step.name}", flush=True)
        began = time.monotonic()
        status, stopped = _run(step)
        seconds[step.name] = seconds.get(step.name, 0.0) + time.monotonic() - began
        save()
        if stopped and not (step.done and step is steps[-1]):
            return False
        if status:
            raise StepFailed(
                f"{step.name} failed with status {status}, for the reason above",
                "mend it, then go on with --resume",
            )
        if not step.done:
            if step.kind == "train":  # it was told to stop in another way, and has saved
                return False
            raise StepFailed(f"{step.name} left no {step.file}", "go on with --resume")
    return True


def _run(step: Step) -> tuple[int, bool]:
    """Exit status of the step, and whether somebody asked it to stop."""
    command = [sys.executable, "-m", "gchat", *step.command()]
    kept = step.file.with_name(f".{step.file.name}.partial") if step.kind == "measure" else None
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
    output = None if kept is None else open(kept, "w", encoding="utf-8")  # noqa: SIM115
    try:
        process = subprocess.Popen(command, stdout=output)
        with _passed_on(process) as asked:
            status = process.wait()
    finally:
        if output is not None:
            output.close()
    if kept is not None:
        if status == 0:
            os.replace(kept, step.file)
        else:
            kept.unlink(missing_ok=True)
    return status, bool(asked)


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Passes signals on to the step, which saves its work; yields those that came."""
    asked: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        asked.append(number)
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal tells the step itself
            process.send_signal(number)

    with hearing(pass_on, *_SIGNALS):
        yield asked
