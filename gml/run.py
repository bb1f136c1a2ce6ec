"""`gml run`: create or reuse, sync, set up, command, logs, results, delete - and recover."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gml.durations import format_duration
from gml.errors import GmlError, StockOut, Unavailable, UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.nodes.change import delete
from gml.nodes.create import create
from gml.nodes.signals import terminate_is_interrupt, uninterrupted
from gml.options import option
from gml.progress import Progress, silent, unbreakable
from gml.remote import jobs, sync
from gml.remote.environment import job_environment
from gml.remote.fanout import jax_environment, others_watched, wait_for_others
from gml.request import NodeRequest
from gml.threads import on_hosts

PREEMPTED = "preempted"


@dataclass(frozen=True)
class RunRequest:
    """Everything `gml run` does beside making the node; `command` is a bash line."""

    node: str = option("", "--node", help="Run on this node, and keep it.")
    count: int = option(
        1, "--count", "-n", help="Number of machines that run the command, each its own.",
        limits={"min": 1, "max": 256},
    )  # fmt: skip
    attach: str = option("", "--attach", help="Attach to the job that runs on this node.")
    job: str = option("", "--job", help="Name of the job; default: job-DATE-TIME.")
    folder: Path = option(Path("."), "--folder", help="Local git work tree to send.")
    dest: str = option("", "--dest", help="Remote folder; default: the local folder's name.")
    data: str = option("", "--data", help="Data set, as gs://… or a folder; becomes $GAIA_DATA.")
    setup: str = option("", "--setup", help="Command to run before the job.")
    fetch: tuple[str, ...] = option(
        ("runs",),
        "--fetch",
        help="Result folder to bring home, repeatable; default: runs.",
        typed=list[str] | None,
        parse=lambda texts: tuple(texts or ("runs",)),
    )
    env: tuple[str, ...] = option(
        (), "--env", help="Variable for the job, as NAME=VALUE, repeatable.",
        typed=list[str] | None, parse=lambda texts: tuple(texts or ()),
    )  # fmt: skip
    secret: tuple[str, ...] = option(
        (), "--secret", help="Variable of this shell to pass on, by NAME, repeatable.",
        typed=list[str] | None, parse=lambda texts: tuple(texts or ()),
    )  # fmt: skip
    keep: bool = option(False, "--keep", help="Keep the node after the job.")
    detach: bool = option(False, "--detach", help="Start the job and return.")
    recover: bool = option(
        False, "--recover", help="Make another node and resume when the spot node is taken away."
    )
    resume_flag: str = option(
        "--resume", "--resume-flag", help="Flag appended to the command when it resumes."
    )
    git_credentials: bool = option(
        False, "--git-credentials", help="Copy the stored github.com login to the node."
    )
    sync: bool = option(True, "--sync/--no-sync", help="Send the work tree.")
    git: bool = option(True, "--git/--no-git", help="Send the git history with the work tree.")
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    max_recoveries: int = 20


class Preempted(GmlError):
    """The machine was taken away in the middle of the job."""

    code = 6
    # The cloud itself says that nothing runs there any more.
    gone = False


@dataclass(frozen=True)
class Console:
    """Outputs of a run: steps, lines for people, and the job's log (None: stdout)."""

    progress: Progress = silent
    say: Callable[[str], None] = silent
    out: BinaryIO | None = None
    streaming: Callable[[BinaryIO | None], AbstractContextManager[None]] = lambda out: nullcontext()
    on_up: Callable[[Node], None] = lambda node: None


class Runner:
    """One `gml run` from beginning to end."""

    def __init__(self, fleet: Fleet, request: RunRequest, console: Console) -> None:
        self.fleet = fleet
        self.request = request
        self.console = console
        self.progress = unbreakable(console.progress)
        self.ssh = fleet.ssh
        self.outcome: dict[str, Any] = {}
        # Name of the job that may run on `node` by now; '' before its start.
        self.started = ""
        self.ours = False
        # None once it is deleted.
        self.node: Node | None = None

    def run(self, node: Node | None, node_request: NodeRequest | None) -> int:
        """Runs the job to its end and returns its exit code.

        Args:
            node: an existing node to use, or None.
            node_request: how to make one, and to make it again after a preemption.
        """
        self.ours = node is None
        # A closed terminal or a SIGTERM unwinds like Ctrl-C, so that a node without a job goes.
        with terminate_is_interrupt():
            if node is None:
                assert node_request is not None
                node = create(self.fleet, node_request, self.progress, self.console.on_up)
            elif self._has_job(node, self.request.job):
                raise self._taken(node, self.request.job)  # before its code is changed under it
            self.node = node
            try:
                return self._attempts(node, node_request)
            except BaseException as error:
                self._clean_up(error)
                raise

    def _attempts(self, node: Node, node_request: NodeRequest | None) -> int:
        """Runs the job, and with `recover` again on another node after each preemption."""
        attempt, request = 0, self.request
        while True:
            command = request.command
            if attempt and request.resume_flag:
                command = f"{command} {request.resume_flag}"
            try:
                self.prepare(node)
                if self.ours and not request.keep:
                    # Whoever attaches, maybe another process, deletes what was made for the job.
                    node = self.node = self.fleet.store.put(
                        node.replace(run=self.job_name(attempt))
                    )
                self.start(node, command, attempt)
                if request.detach:
                    self._say_detached(node)
                    self.outcome = {"node": node.id, "job": request.job, "state": "running"}
                    return 0
                keep = request.keep or not self.ours
                return self.finish(node, self.job_name(attempt), keep=keep)
            except Preempted as error:
                last = attempt == request.max_recoveries
                if not request.recover or node_request is None or last:
                    raise
                node = self._again(node, node_request, error)
                attempt += 1

    def _clean_up(self, error: BaseException) -> None:
        """Deletes a node that we made and could not use: it is not left to its deadline.

        One that may have a job stays, and is named: silence is no sign that nothing runs there.
        """
        node = self.node
        if node is None:
            return
        if self.ours and not self.request.keep and self._unused(node, error):
            with uninterrupted():
                self.console.say(f"\ngml: no job runs on {node.id}: deleting it")
                delete(self.fleet, node, self.progress)
        elif isinstance(error, KeyboardInterrupt) or self.ours or self.started:
            self._say_left(node, certain=isinstance(error, KeyboardInterrupt))

    def _unused(self, node: Node, error: BaseException) -> bool:
        """Tells whether certainly no job of ours is on the node."""
        if not self.started or (isinstance(error, Preempted) and error.gone):
            return True
        return isinstance(error, GmlError) and self._has_job(node, self.started) is False

    def job_name(self, attempt: int) -> str:
        """The job's name, with the number of the recovery."""
        return self.request.job if attempt == 0 else f"{self.request.job}-r{attempt}"

    def prepare(self, node: Node) -> None:
        """Code, git identity, data and set-up on every host."""
        request, count = self.request, len(node.hosts)
        where = node.id if count == 1 else f"{count} hosts"
        if request.sync:
            root, dest = request.folder, request.dest
            listing = sync.listing_of(root)
            for line in sync.announcement(self.ssh, node, root, dest, listing):
                self.console.say(f"gml: {line}")
            self.progress(f"sending code to {where}")
            reports = on_hosts(
                count,
                lambda i: sync.push(
                    self.ssh, node, root, dest, index=i, history=request.git, listing=listing
                ),
            )
            if reports[0].note:
                self.console.say(f"gml: {reports[0].note}")
            if reports[0].withheld:
                self.console.say(f"gml: held back as secrets: {', '.join(reports[0].withheld[:5])}")
        on_hosts(
            count,
            lambda i: sync.send_git_identity(
                self.ssh, node, i, request.folder, request.git_credentials
            ),
        )
        if request.data and not request.data.startswith("gs://"):
            self.progress(f"sending data to {where}")
            folder = Path(request.data)
            dest = f"data/{folder.name}"
            on_hosts(count, lambda i: sync.push_folder(self.ssh, node, folder, dest, index=i))
        if request.setup:
            self._everywhere(node, request.setup)

    def _everywhere(self, node: Node, command: str) -> None:
        name = f"{jobs.SETUP}{round(time.time())}"
        dest = self.request.dest
        on_hosts(
            len(node.hosts),
            lambda i: jobs.start(self.ssh, node, name, command, workdir=dest, env={}, index=i),
        )
        for index in range(len(node.hosts)):
            self.progress(f"running --setup on host {index}")
            with self.console.streaming(self.console.out):
                code = jobs.follow(self.ssh, node, name, index=index, out=self.console.out)
            if code != 0:
                raise UsageError(f"--setup failed on host {index} with exit code {code}")

    def start(self, node: Node, command: str, attempt: int) -> None:
        """Starts the job on every host."""
        base = job_environment(self.fleet.config, node, self.request.environment)
        if self.request.data:
            folder = Path(self.request.data)
            remote = self.request.data.startswith("gs://")
            up = "../" * (1 + self.request.dest.count("/"))
            base["GAIA_DATA"] = self.request.data if remote else f"{up}data/{folder.name}"
        job, dest = self.job_name(attempt), self.request.dest
        self.progress(f"starting {job}")
        self.started = job

        def begin(index: int) -> bool:
            env = {**base, **jax_environment(node, index)}
            return jobs.start(self.ssh, node, job, command, workdir=dest, env=env, index=index)

        if not all(on_hosts(len(node.hosts), begin)):
            raise self._taken(node, job)

    def _taken(self, node: Node, job: str) -> UsageError:
        return UsageError(
            f"{node.id} has a job {job!r} already",
            f"reattach with `gml logs -f {node.id} {job}`, or take another --job",
        )

    def finish(self, node: Node, job: str, *, keep: bool) -> int:
        """Streams the log, fetches results, deletes the node; returns the job's exit code.

        `outcome` then holds what `--json` prints.
        """
        code = self._followed(node, job)
        if code != 0 and self._was_told(node):
            raise Preempted(f"{node.id} was preempted", "run with --recover to go on elsewhere")
        if code != 0 and len(node.hosts) > 1:
            for index in range(1, len(node.hosts)):
                jobs.terminate(self.ssh, node, job, index=index)
        got = fetch(
            self.ssh,
            node,
            self.request.folder,
            self.request.dest,
            self.request.fetch,
            self.progress,
        )
        if not keep:
            delete(self.fleet, node, self.progress)
        self.outcome = {
            "node": node.id,
            "job": job,
            "state": "ended",
            "exit_code": code,
            "fetched": got,
            "deleted": not keep,
            "spent_usd": node.cost(self.fleet.now()),
        }
        return code

    def _followed(self, node: Node, job: str) -> int:
        """Streams the first host's log until the job has ended on every host.

        Returns:
            The exit code of the host that failed first, or 0.
        """
        self.progress(f"{job} runs on {node.id}")
        alive = self._check_alive(node)
        with (
            self.console.streaming(self.console.out),
            others_watched(self.ssh, node, job) as failed,
        ):
            code = jobs.follow(self.ssh, node, job, out=self.console.out, lost=alive)
        if code == 0 and not failed:
            # The others may still write their part of a checkpoint, or fail after the first.
            failed = wait_for_others(self.ssh, node, job, self.progress, alive)
        if failed:
            index, code = failed[0]
            self.console.say(f"gml: host {index} failed first, with exit code {code}")
        return code

    def _check_alive(self, node: Node) -> Callable[[], None]:
        def check() -> None:
            self.progress(
                f"asking {node.provider} whether {node.id} still exists: it does not answer"
            )
            try:
                live = self.fleet.provider(node.provider).find(node)
            except Unavailable:
                return
            if live is None or live.dead():
                state = live.state if live else "gone"
                lost = Preempted(f"{node.id} is {state}", "run with --recover to go on elsewhere")
                lost.gone = True
                raise lost

        return check

    def _was_told(self, node: Node) -> bool:
        """Tells whether the watchdog passed a preemption notice on to the job."""
        folder = "$HOME/.gml/node" if node.provider == "local" else "/var/lib/gml"
        script = f"ls {folder}/told-{PREEMPTED}-* 2>/dev/null || :"
        try:
            done = on_hosts(
                len(node.hosts), lambda i: self.ssh.run(node, script, index=i, timeout_s=20)
            )
        except Unavailable:
            return True
        return any(d.stdout.strip() for d in done)

    def _again(self, node: Node, request: NodeRequest, error: GmlError) -> Node:
        """Always deletes before it makes the next: a preempted TPU goes on holding quota."""
        self.console.say(f"gml: {error.problem}; making another node")
        delete(self.fleet, node, self.progress)
        self.node, self.started = None, ""
        left = (node.deadline or 0) - round(self.fleet.now())
        if left < 120:
            raise Unavailable(f"{node.id} was lost {format_duration(left)} before its deadline")
        again = dataclasses.replace(request, timeout_s=left, retry_until_up=True)
        try:
            self.node = create(self.fleet, again, self.progress, self.console.on_up)
        except StockOut as second:
            raise Unavailable(f"no machine to go on with: {second.problem}") from None
        return self.node

    def _has_job(self, node: Node, job: str) -> bool | None:
        """Tells whether the job was ever started on the node; None where the node doesn't say."""
        try:
            return job in jobs.names(self.ssh, node)
        except GmlError:
            return None

    def _say_detached(self, node: Node) -> None:
        then = "(log, results, delete)" if node.run else "(log, results)"
        self.console.say(
            f"gml: job {self.request.job} runs on {node.id} and goes on without this terminal\n"
            f"gml: follow it:     gml logs -f {node.id}\n"
            f"gml: take it home:  gml run --attach {node.id}   {then}"
        )

    def _say_left(self, node: Node, *, certain: bool) -> None:
        """Tells what goes on without us, until when it is billed, and how to come back to it."""
        left = "never ends by itself"
        if node.deadline is not None:
            left = f"ends by itself in {format_duration(node.deadline - self.fleet.now())}"
        bill = f" and is billed ${node.price:.2f}/h until then" if node.price else ""
        what = f"{node.id} and its job go on" if certain else f"{node.id} is left up"
        self.console.say(
            f"\ngml: {what}; the machine {left}{bill}\n"
            f"gml: reattach: gml run --attach {node.id} · end it now: gml node delete {node.id}"
        )


def fetch(
    ssh, node: Node, folder: Path, dest: str, names: tuple[str, ...], progress: Progress
) -> list[str]:
    """Brings result folders of host 0 home, below `folder`; returns those that existed."""
    fetched = []
    for name in map(sync.check_result, names):
        probe = ssh.run(node, f'[ -e "$HOME/{dest}/{name}" ] && echo yes || :')
        if probe.stdout.strip() == b"yes":
            progress(f"fetching {name}")
            sync.pull(ssh, node, f"{dest}/{name}", (folder / name).parent)
            fetched.append(name)
    return fetched
