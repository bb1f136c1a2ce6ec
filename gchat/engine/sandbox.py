"""Runs Python that a model wrote, contained: for HumanEval, tool calls and rewards.

The code runs in namespaces of its own (processes, network, mounts, IPC) as a user id of its own,
on a read-only disk with a small memory disk at `/tmp`, under limits of memory, CPU time, files,
processes and output. When it ends, or is ended, all that it has started ends. Where the kernel
does not let these walls be built, nothing is run: `SandboxError` says which wall.

It keeps accidents and clumsy malice in; against a kernel exploit it is no wall. The caller's home
is hidden; what any user may read elsewhere on the machine the code may read, but it has no network
to send it anywhere.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from gaia.errors import ConfigError, GaiaError
from gchat.engine import contained

_SCRIPT = Path(contained.__file__)
_UIDS = 1_000_000_000
"""First of the user ids that code runs as where the caller is root; nobody has them."""


class SandboxError(GaiaError):
    """This machine cannot contain code, so none was run."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one run."""

    seconds: float = 10.0
    """Time from start to end, in s."""
    cpu_s: int = 10
    """Processor time of one process, in s."""
    memory_mb: int = 512
    """Address space of one process, in MiB."""
    files_mb: int = 16
    """Size of the memory disk, and of any file, in MiB."""
    processes: int = 8
    """Processes and threads at once."""
    output_kb: int = 64
    """Characters read of stdout and stderr together, in KiB; more ends the run."""

    def check(self) -> None:
        """Raises ConfigError naming the field that is not above 0."""
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"limits.{name} is {value}", "use a number above 0")


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    `ended` is "exit" (then `status` is the exit status), "signal" (then it is the signal's
    number), or the limit that ended it: "time" or "output" (then it is -1). A process above its
    processor time ends by SIGKILL.
    """

    ended: str
    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Tells whether the code came to its end without an error."""
        return self.ended == "exit" and self.status == 0


def run(code: str, limits: Limits = Limits()) -> Outcome:
    """Runs Python source to its end or to a limit.

    Args:
        code: a whole program; it reads an empty stdin and has the standard library.
        limits: bounds of the run.

    Raises:
        SandboxError: a wall cannot be built here; nothing was run.
        ConfigError: a limit is not above 0, or the code holds a lone surrogate.
    """
    limits.check()
    try:
        code.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the code is not UTF-8 ({error})", "repair its text") from None
    if sys.platform != "linux":
        raise SandboxError(f"{sys.platform} has no namespaces", "run generated code on Linux")
    started = time.monotonic()
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writer,),
                start_new_session=True,
                env={},
            )
        finally:
            os.close(writer)
        try:
            _give(process, code, limits)
            limit, out, err = _read(process, limits, started + limits.seconds)
        finally:
            _end(process)
        said = report.read().decode()
    kind, _, detail = said.partition(" ")
    if kind == "failed":
        raise SandboxError(
            f"generated code cannot be contained here ({detail})",
            "allow user namespaces, or run as root on Linux 5.12 or newer",
        )
    seconds = time.monotonic() - started
    if limit or not detail:
        return Outcome(limit or "signal", -1 if limit else signal.SIGKILL, out, err, seconds)
    status = int(detail)
    return Outcome("exit" if status >= 0 else "signal", abs(status), out, err, seconds)


def _give(process: subprocess.Popen[bytes], code: str, limits: Limits) -> None:
    """Hands over the code and its limits."""
    uid = _UIDS + process.pid if os.getuid() == 0 else 0
    task = {
        "code": code,
        "limits": asdict(limits),
        "as_uid": uid,
        "parent": os.getpid(),
        "home": str(Path.home()),
    }
    assert process.stdin
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(task).encode() + b"\n")


@cache
def unavailable() -> str:
    """The reason why this machine cannot contain code; empty where it can."""
    try:
        run("pass", Limits(seconds=30.0))
    except SandboxError as error:
        return str(error)
    return ""


def _read(
    process: subprocess.Popen[bytes], limits: Limits, deadline: float
) -> tuple[str, str, str]:
    """The limit that the run met, if any, and its two outputs, cut at theirs."""
    left = limits.output_kb << 10
    taken: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    assert process.stdout and process.stderr
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "out")
        selector.register(process.stderr, selectors.EVENT_READ, "err")
        reason = ""
        while not reason and selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                reason = "time"
            for key, _ in ready:
                chunk = os.read(key.fd, min(1 << 16, left + 1))
                if not chunk:
                    selector.unregister(key.fileobj)
                taken[key.data] += chunk[:left]
                left -= len(chunk)
                if left < 0:
                    reason = "output"
                    break
    if not reason:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            reason = "time"
    out, err = (bytes(part).decode(errors="replace") for part in taken.values())
    return reason, out, err


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process outside; process 1 of the namespace dies with it, and with that all."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()
