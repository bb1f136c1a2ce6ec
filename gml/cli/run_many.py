"""`gml run -n N`: one command on N machines, each by a `gml run` in a process of its own.

So each machine is made, watched, recovered and deleted as a single one is, and no machine's trouble
is another's. Each job finds its place in GML_INDEX (from 0) and the number of all in GML_COUNT.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from gml.cli.terminal import Lasting, emit, say
from gml.errors import UsageError
from gml.model import check_id
from gml.nodes.signals import terminate_is_interrupt
from gml.options import options_of
from gml.remote.ssh import quote
from gml.request import NodeRequest
from gml.run import RunRequest

_OWN = ("count", "name", "job")  # fields that each machine gets a value of its own for


def words_of(kind: type, typed: Mapping[str, Any]) -> list[str]:
    """The options of a dataclass as they were typed; those left out stay out.

    Args:
        kind: a dataclass that declares options.
        typed: values by the fields' names, as the command line took them.
    """
    words: list[str] = []
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, item in options_of(kind).items():
        value, flag = typed.get(name), item.flags[0]
        default = defaults[name] if item.default is None else item.default
        if name in _OWN or value is None or value == default:
            continue
        if isinstance(value, bool):
            yes, _, no = flag.partition("/")
            words.append(yes if value else no)
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag, str(value)]
    return words


def check_many(request: RunRequest) -> None:
    """Raises UsageError for what makes no sense with several machines."""
    for option, value in (("--node", request.node), ("--attach", request.attach)):
        if value:
            raise UsageError(f"{option} names one machine, and -n asks for {request.count}",
                             "leave one of them out")  # fmt: skip


def run_many(
    request: RunRequest, typed: Mapping[str, Any], command: list[str], as_json: bool
) -> int:
    """Runs the command on all machines; the first exit code that is not 0, or 0.

    Args:
        request: of the run; `count` says how many machines.
        typed: options of the command line, by field.
        command: words after `--`.
        as_json: print one document with every machine's outcome.
    """
    base = check_id(typed.get("name") or time.strftime("fleet-%m%d-%H%M%S"))
    names = [check_id(f"{base}-{i}") for i in range(request.count)]
    options = words_of(RunRequest, typed) + words_of(NodeRequest, typed)
    line = command[0] if len(command) == 1 else quote(command)
    running = []
    with terminate_is_interrupt():
        try:
            for i, name in enumerate(names):
                own = ["--name", name, "--job", request.job or "job"]
                own += ["--env", f"GML_INDEX={i}", "--env", f"GML_COUNT={request.count}"]
                words = ["run", *options, *own, "--yes", "--json", "--", line]
                running.append(_Machine(name, words, sys.stderr if as_json else sys.stdout))
            for machine in running:
                machine.wait()
        except KeyboardInterrupt:
            for machine in running:
                machine.interrupt()
            for machine in running:
                machine.wait()
            raise
    outcomes = [machine.outcome() for machine in running]
    if as_json:
        emit({"nodes": outcomes})
    bad = [one for one in outcomes if one["exit_code"]]
    spent = sum(one.get("spent_usd") or 0.0 for one in outcomes)
    say(
        f"gml: {len(outcomes) - len(bad)} of {len(outcomes)} machines ended with exit code 0; "
        f"${spent:.2f} in all"
    )
    for one in bad:
        say(f"gml: {one['node']} ended with exit code {one['exit_code']}")
    return bad[0]["exit_code"] if bad else 0


class _Machine:
    """One `gml run`; its lines are passed on with its name before them."""

    def __init__(self, name: str, words: Sequence[str], out: TextIO) -> None:
        self.name, self._out = name, Lasting(out.buffer)
        # A session of its own: Ctrl-C reaches it from here alone, once.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gml", *words], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            errors="replace",
        )  # fmt: skip
        self._document = ""
        self._readers = [threading.Thread(target=read, daemon=True)
                         for read in (self._read_log, self._read_document)]  # fmt: skip
        for reader in self._readers:
            reader.start()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:  # to its end, whoever reads us: the run would block else
            if line.strip():
                self._out.write(f"[{self.name}] {line.rstrip()}\n".encode(errors="replace"))

    def _read_document(self) -> None:
        assert self._process.stdout is not None
        self._document = self._process.stdout.read()

    def interrupt(self) -> None:
        """Sends what Ctrl-C sends."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Waits for its end and its last line."""
        self._process.wait()
        for reader in self._readers:
            reader.join(10)

    def outcome(self) -> dict[str, Any]:
        """Output of a command with `--json`, and its exit code."""
        try:
            told = json.loads(self._document)
        except ValueError:
            told = {}
        return {**told, "node": self.name, "exit_code": self._process.returncode}
