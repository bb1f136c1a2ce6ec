"""The loop: one workload at a time, each in a process tree that is gone before the next starts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gaia.errors import GaiaError
from gaia.interrupt import hearing
from gchat.evals.progress_line import ProgressLine, clock
from gchat.orchestrate import choice, memory, processes, warden
from gchat.orchestrate.plan import Workload
from gchat.orchestrate.store import Outcome, Store, Turn

LOGS, TURNS = "logs", "turns"
_TICK_S, _ASK_S = 0.2, 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WorkFailed(GaiaError):
    """Some workloads have failed for good."""

    exit_status = 1


class Runner:
    """Runs the workloads of a store until none is left.

    Args:
        store: open; nobody else runs its work.
        folder: of the state.
        aging: priority that an hour of waiting adds.
        say: prints a line for people.
        wait: stay when all is done, for what others add.
        warden_command: words that start a warden.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        aging: float,
        say: Callable[[str], None],
        wait: bool = False,
        warden_command: Sequence[str] = (sys.executable, "-m", "gchat.orchestrate.warden"),
    ) -> None:
        self._store, self._folder, self._aging, self._say = store, folder, aging, say
        self._wait, self._warden_command = wait, list(warden_command)
        self._memory = memory.reader()
        self._asked: list[int] = []
        self._line = ProgressLine(lambda _: None)
        for name in (LOGS, TURNS):
            (folder / name).mkdir(exist_ok=True)

    def run(self) -> bool:
        """Runs what there is to run.

        Returns:
            False where somebody asked it to stop before its end.
        """
        with processes.subreaper(), hearing(self._heard, *_SIGNALS):
            self._settle()
            return self._loop()

    def _heard(self, number: int, _frame: Any) -> None:
        self._asked.append(number)

    def _loop(self) -> bool:
        while True:
            self._take_requests(None)
            if self._asked:
                return False
            rows = self._store.rows()
            for row in rows:
                if choice.may_run(row, rows) and row.work.is_done:
                    self._store.mark_done(row.work.name)
                    self._say(f"{row.work.name}: done already ({row.work.done} is there)")
            rows = self._store.rows()
            chosen, pause = choice.choose(rows, time.time(), self._aging)
            if chosen is not None:
                self._turn(chosen.work)
            elif pause is None and not self._wait:
                return True
            else:
                time.sleep(min(_ASK_S, pause if pause is not None else _ASK_S))

    # ── One turn ────────────────────────────────────────────────────────────────────────────────

    def _turn(self, work: Workload) -> None:
        words = work.words(self._store.had_turn(work.name))
        used = self._memory() if self._memory else []
        turn = self._store.begin(work.name, words)
        own = {one.pid for one in processes.below()}
        self._say(f"{_now()} {work.name}: turn {turn.id} begins; log {self._log(work.name)}")
        try:
            guard = self._start(turn, work, words)
        except OSError as error:  # its folder, or the log
            message = f"it cannot be started ({error.filename}: {error.strerror})"
            state = self._store.end(turn, "failed", message)
            self._say(f"{_now()} {work.name}: failed, {message}; now {state}")
            return
        why = self._watch(guard, turn, work)
        self._clear(turn, guard, own)
        back, after = memory.wait_until_back(self._memory, used) if self._memory else (True, [])
        if not back:
            self._say(f"{work.name}: GPU memory is not back: {used} MiB before, {after} after")
        facts = json.dumps({"before_mib": used, "after_mib": after}) if used else ""
        self._end(turn, work, why, facts)

    def _start(self, turn: Turn, work: Workload, words: list[str]) -> subprocess.Popen[bytes]:
        log = self._log(work.name)
        with open(log, "ab") as file:
            file.write(f"── turn {turn.id}, {_now()}: {' '.join(words)}\n".encode())
        arguments = [str(self._result(turn)), str(log), f"{work.grace_s}", str(os.getpid())]
        # A warden reads its own code from where this program does, whatever the work's folder.
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **dict(work.environment), processes.MARK: self._mark(turn)}
        return subprocess.Popen(
            [*self._warden_command, *arguments, "--", *words],
            cwd=work.directory,
            env=environment | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for this process, which passes it on
        )

    def _watch(self, guard: subprocess.Popen[bytes], turn: Turn, work: Workload) -> str:
        """Waits for the end of a turn; the reason for which it was stopped, or empty."""
        began, asked_at, why = time.monotonic(), 0.0, ""
        while guard.poll() is None:
            time.sleep(_TICK_S if time.monotonic() - began > 2 * _TICK_S else 0.02)
            passed = time.monotonic() - began
            if passed - asked_at >= _ASK_S:
                asked_at = passed
                why = self._take_requests(work.name) or why
            reason = why or self._reason(work, passed)
            if reason and not why.startswith("told: "):
                why = f"told: {reason}"
                guard.send_signal(signal.SIGTERM)
                self._say(f"{work.name}: asked to stop ({reason})")
            self._line.show(partial(self._shown, work, passed))
        self._line.end()
        return why.removeprefix("told: ")

    def _reason(self, work: Workload, passed: float) -> str:
        if self._asked:
            return "the orchestrator stops"
        if work.limit_s is not None and passed >= work.limit_s:
            return "limit"
        return "slice" if work.slice_s is not None and passed >= work.slice_s else ""

    def _take_requests(self, running: str | None) -> str:
        """Does what other processes asked for; a reason to stop the running workload, or empty."""
        why = ""
        for kind, name in self._store.requests():
            if kind == "stop" and not name:
                self._asked.append(signal.SIGTERM)
            elif kind == "stop" and name == running:
                self._store.mark_stopped(name)
                why = "on request"
            elif kind == "stop":
                self._store.stop(name)
        return why

    def _clear(self, turn: Turn, guard: subprocess.Popen[bytes], own: set[int]) -> None:
        """Makes sure that nothing of a turn lives, also where its warden was killed."""
        mark = self._mark(turn)
        left = [one for one in processes.marked(mark) if one.pid != guard.pid]
        if left:
            names = ", ".join(processes.described(one) for one in left)
            self._say(f"turn {turn.id}: killing what its warden left behind ({names})")
        processes.kill(lambda: processes.marked(mark))
        processes.kill(lambda: [one for one in processes.below() if one.pid not in own])

    def _end(self, turn: Turn, work: Workload, why: str, memory_facts: str = "") -> None:
        """Settles a turn that nothing is left of."""
        result = warden.read(self._result(turn))
        outcome, message = judged(result, why, done=work.is_done)
        state = self._store.end(
            turn, outcome, message, memory=memory_facts,
            result=json.dumps(asdict(result)) if result else "",
        )  # fmt: skip
        self._result(turn).unlink(missing_ok=True)
        took = clock(time.time() - turn.began)
        more = f", {message}" if message else ""
        over = "" if result is None or not result.left_over else (
            f"; {len(result.left_over)} processes outlived it, {result.killed} killed"
        )  # fmt: skip
        self._say(f"{_now()} {work.name}: {outcome} after {took}{more}{over}; now {state}")

    def _settle(self) -> None:
        """Ends the turns that a killed orchestrator left open."""
        for turn in self._store.open_turns():
            work = self._store.row(turn.workload).work
            mark = self._mark(turn)
            until = time.monotonic() + work.grace_s + warden.LINGER_S
            left = processes.marked(mark)
            if left:
                self._say(f"{work.name}: waiting for turn {turn.id} of an orchestrator that died")
            for one in left:
                processes.tell(one, signal.SIGTERM)
                processes.tell(one, signal.SIGCONT)  # a stopped process hears nothing
            while processes.marked(mark) and time.monotonic() < until and not self._asked:
                time.sleep(_TICK_S)
            processes.kill(lambda mark=mark: processes.marked(mark))
            self._end(turn, work, "the orchestrator died")

    # ── Names ───────────────────────────────────────────────────────────────────────────────────

    def _mark(self, turn: Turn) -> str:
        return f"{self._store.id}:{turn.id}"

    def _result(self, turn: Turn) -> Path:
        return self._folder.absolute() / TURNS / f"{turn.id}.json"

    def _log(self, name: str) -> Path:
        return self._folder.absolute() / LOGS / f"{name}.log"

    def _shown(self, work: Workload, passed: float) -> str:
        of = work.slice_s or work.limit_s
        rows = self._store.rows()
        waiting = sum(choice.may_run(row, rows) for row in rows)
        left = "" if of is None else f" of {clock(of)}"
        return f"{work.name} {clock(passed)}{left}, {waiting} waiting"


def judged(result: warden.Result | None, why: str, *, done: bool) -> tuple[Outcome, str]:
    """The outcome of a turn, and a word on it.

    Args:
        result: the warden's; None where it was killed.
        why: reason for which the turn was stopped; empty where it was not.
        done: the file is there that says that the work is done.
    """
    if done:
        return "done", ""
    if result is None:
        return "lost", why or "its warden was killed"
    if why == "limit":
        return "failed", "it ran into its limit"
    if result.problem:
        return ("lost" if result.stopped else "failed"), result.problem
    if result.stopped:
        return "yielded", why
    if result.status:
        end = f"signal {-result.status}" if result.status < 0 else f"status {result.status}"
        return "failed", f"it ended with {end}"
    return "done", ""


def _now() -> str:
    return time.strftime("%H:%M:%S")
