"""The process between the orchestrator and a command: nothing that the command starts outlives it.

    python -m gchat.orchestrate.warden RESULT LOG GRACE_S PARENT -- COMMAND…

It adopts every orphan below it. On SIGTERM, or when the orchestrator dies, it asks all of them to
stop and kills after the grace. When the last one is gone it writes RESULT, whoever still lives to
read it: so a turn that has ended is known to have ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from gchat.orchestrate import processes

LINGER_S = 10.0
"""Time for what a command left behind to end, once it is asked to."""
_TICK_S, _ENDING_TICK_S = 2.0, 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass
class Result:
    """The end of one turn."""

    status: int = 0
    """Exit status of the command; -N where signal N ended it."""
    stopped: bool = False
    """The command was asked to stop."""
    left_over: list[str] = field(default_factory=list)
    """Processes that outlived the command, as far as they had not been asked to stop with it."""
    killed: int = 0
    """Processes that did not end when they were asked to."""
    seconds: float = 0.0
    problem: str = ""
    """Reason for which the command could not be started."""


def watch(words: list[str], log: Path, grace_s: float, parent: int) -> Result:
    """Runs a command to its end and beyond."""
    processes.become_subreaper()
    processes.end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    result, began = Result(), time.monotonic()
    stop_at: float | None = None
    if os.getppid() != parent:  # it died before the line above
        result.problem, result.stopped = "the orchestrator is gone", True
        return result
    try:
        command = _start(words, log)
    except OSError as error:
        result.status, result.problem = 127, f"{words[0]}: {error.strerror}"
        return result
    asked: set[int] = set()
    ended: dict[int, int] = {}
    while True:
        ended |= processes.reap()
        status = ended.get(command.pid)
        ending = status is not None or stop_at is not None
        alive = processes.below() if ending else []  # it reads the whole table of processes
        if status is not None and not alive:
            break
        if status is not None and stop_at is None:
            result.left_over = [processes.described(one) for one in alive]
            stop_at = time.monotonic() + min(LINGER_S, grace_s)
        if stop_at is not None:
            _ask(alive, asked)
            if time.monotonic() >= stop_at:
                result.killed += processes.kill(processes.below, ended)
                continue
        number = signal.sigtimedwait(_SIGNALS, _ENDING_TICK_S if ending else _TICK_S)
        if number is not None and number.si_signo != signal.SIGCHLD and not result.stopped:
            result.stopped = True
            stop_at = time.monotonic() + grace_s
    result.status, result.seconds = status, time.monotonic() - began
    return result


def _start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        processes.end_with_parent()

    with open(log, "ab") as output:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=prepare,
        )  # fmt: skip


def _ask(alive: list[psutil.Process], asked: set[int]) -> None:
    """Asks each once: a second request makes some programs end without saving."""
    for one in alive:
        if one.pid not in asked:
            asked.add(one.pid)
            processes.tell(one, signal.SIGTERM)
            processes.tell(one, signal.SIGCONT)  # a stopped process hears nothing


def write(result: Result, path: Path) -> None:
    """Writes a result whole, and durably."""
    partial = path.with_name(f".{path.name}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> Result | None:
    """The result of a turn; None where there is none."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def main(arguments: list[str]) -> None:
    """Runs the command line."""
    split = arguments.index("--")
    result_path, log, grace, parent = arguments[:split]
    result = watch(arguments[split + 1 :], Path(log), float(grace), int(parent))
    write(result, Path(result_path))


if __name__ == "__main__":
    main(sys.argv[1:])
