"""`gchat orchestrate PLAN`, and `status`, `add`, `stop` of the work that a plan began."""

import json
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from gaia.config import parse
from gaia.errors import ConfigError
from gaia.output import may_go_away
from gaia.writer_lock import FolderInUse, WriterLock
from gchat.orchestrate import plan as plans
from gchat.orchestrate import status
from gchat.orchestrate.runner import Runner, WorkFailed
from gchat.orchestrate.store import Store

LOCK = ".orchestrate.lock"


@dataclass(frozen=True)
class Orchestrate:
    """Run the workloads of a plan on one accelerator, one at a time, until none is left.

    Training, judging and generating take turns as processes of their own: all that a turn started
    is gone, and its memory back, before the next begins. Run again after any kind of end, it goes
    on; what was done is not done again.

    gchat orchestrate plan.yaml
    gchat orchestrate status plan.yaml
    gchat orchestrate add plan.yaml more --command "gchat synth generate …" --priority -5
    gchat orchestrate stop plan.yaml train
    """

    plan: tyro.conf.Positional[Path]
    """YAML file of workloads."""
    folder: Path | None = None
    """Folder of state and logs; the plan's own, or PLAN.work beside it, when left out."""
    wait: bool = False
    """Stay when all is done, for what `add` brings."""
    dry_run: bool = False
    """Print the plan and start nothing."""

    def start(self) -> None:
        """Runs the plan.

        Raises:
            ConfigError: the plan cannot work.
            FolderInUse: another process runs it.
            WorkFailed: a workload has failed for good.
        """
        plan = plans.read(self.plan, self.folder)
        if self.dry_run:
            print(status.planned(plan))
            print(f"state and logs go to {plan.folder}; nothing was started")
            return
        with WriterLock(plan.folder / LOCK, f"the work in {plan.folder}"):
            store = Store(plan.folder, make=True)
            try:
                store.forget_stop()  # it was meant for the process before
                store.take_plan(plan.workloads)
                with may_go_away():
                    say = partial(print, flush=True)
                    runner = Runner(store, plan.folder, aging=plan.aging, say=say, wait=self.wait)
                    finished = runner.run()
                    self._say_end(store, plan, finished=finished)
            finally:
                store.close()

    def _say_end(self, store: Store, plan: plans.Plan, *, finished: bool) -> None:
        print(status.table(status.facts(store, plan.folder, plan.aging)))
        if not finished:
            words = [str(self.plan), *(["--folder", str(self.folder)] if self.folder else [])]
            words += ["--wait"] * self.wait
            print(f"stopped; go on with\n  gchat orchestrate {shlex.join(words)}")
            return
        failed = [row.work.name for row in store.rows() if row.state == "failed"]
        if failed:
            raise WorkFailed(
                f"{', '.join(failed)} failed for good; the logs are in {plan.folder / 'logs'}",
                "mend it, put it back with `gchat orchestrate add PLAN NAME`, and start again",
            )


@dataclass(frozen=True)
class _Of:
    plan: tyro.conf.Positional[Path]
    """YAML file of the plan, or the folder of its state."""

    def place(self) -> tuple[Path, float]:
        """Folder of the state, and the plan's aging."""
        if self.plan.is_dir():
            return self.plan, 1.0
        plan = plans.read(self.plan)
        return plan.folder, plan.aging


@dataclass(frozen=True)
class Status(_Of):
    """Show the workloads of a plan: states, turns, failures, and what runs now.

    gchat orchestrate status plan.yaml
    """

    json: bool = False
    """Print one JSON object."""

    def start(self) -> None:
        """Prints the state; changes nothing."""
        folder, aging = self.place()
        store = Store(folder)
        try:
            facts = status.facts(store, folder, aging)
        finally:
            store.close()
        print(json.dumps(facts) if self.json else status.table(facts))


@dataclass(frozen=True)
class Add(_Of):
    """Add a workload to work that is under way or to come, or put a stopped or failed one back.

    gchat orchestrate add plan.yaml night --command "gchat synth generate …" --priority -5
    gchat orchestrate add plan.yaml train
    """

    name: tyro.conf.Positional[str]
    """Name of the workload."""
    command: str | None = None
    """Command line; left out to put back the workload of this name."""
    resume: str | None = None
    """Command line that goes on with what an earlier turn began, which may have saved nothing: of
    a training give --allow-restart too."""
    done: str | None = None
    """File whose presence means that the work is done."""
    priority: float | None = None
    """Priority, of which the highest runs first; 0 when left out."""
    slice: str | None = None
    """Length of a turn, such as 30m."""
    limit: str | None = None
    """Longest turn, after which it counts as failed."""
    retries: int | None = None
    """Further tries after a failure; 2 when left out."""
    after: tuple[str, ...] = ()
    """Workloads that must be done first."""

    def start(self) -> None:
        """Adds the workload; a running orchestrator takes it up at its next turn."""
        folder, _ = self.place()
        given: dict[str, Any] = {
            "command": self.command, "resume": self.resume, "done": self.done,
            "priority": self.priority, "slice": self.slice, "limit": self.limit,
            "retries": self.retries, "after": list(self.after) or None,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        store = Store(folder)
        try:
            if self.command is None:
                if given:
                    option = next(iter(given))
                    raise ConfigError(
                        f"--{option} has no effect without --command", "give the command too"
                    )
                store.again(self.name)
                print(f"{self.name} waits again")
                return
            work = plans.workload(self.name, given)
            plans.check_links([*(row.work for row in store.rows()), work])
            store.add(work)
            print(f"{self.name} waits, with priority {work.priority:g}")
        finally:
            store.close()


@dataclass(frozen=True)
class Stop(_Of):
    """Stop the orchestrator after it has stopped what runs, or take one workload out of the queue.

    gchat orchestrate stop plan.yaml
    gchat orchestrate stop plan.yaml train
    """

    name: tyro.conf.Positional[str | None] = None
    """Name of a workload; the whole orchestrator when left out."""

    def start(self) -> None:
        """Leaves the request, which a running orchestrator takes up within a second."""
        folder, _ = self.place()
        store = Store(folder)
        try:
            state = "running" if _is_held(folder) else "not running"
            state = store.row(self.name).state if self.name is not None else state
            if self.name is not None and state == "waiting":
                store.stop(self.name)
                print(f"{self.name} is stopped")
            elif state == "running":
                store.ask("stop", self.name or "")
                print(f"{self.name or 'the orchestrator'} is asked to stop")
            else:
                print(f"{self.name or 'the orchestrator'} is {state} already")
        finally:
            store.close()


def _is_held(folder: Path) -> bool:
    """Tells whether an orchestrator works in a folder."""
    try:
        with WriterLock(folder / LOCK, f"the work in {folder}"):
            return False
    except FolderInUse:
        return True


def main(args: list[str]) -> None:
    """Runs the command line."""
    verbs = {"status": Status, "add": Add, "stop": Stop}
    verb = verbs.get(args[0]) if args else None
    command = verb or Orchestrate
    prog = f"gchat orchestrate {args[0]}" if verb else "gchat orchestrate"
    words = args[1:] if verb else args
    parse(command, words, prog=prog, description=command.__doc__).start()
