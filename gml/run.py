"""`gml run`: create or reuse, sync, set up, command, logs, results, delete - and recover."""

from __future__ import annotations

import dataclasses
import os
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gml import jobs, sync
from gml.config import Config
from gml.durations import format_duration
from gml.errors import GmlError, StockOut, Unavailable, UsageError
from gml.fanout import jax_environment, others_watched
from gml.model import Node
from gml.nodes import Manager
from gml.planning import Wish
from gml.providers.base import Tick
from gml.threads import on_hosts
from gml.ui import say, streaming

PREEMPTED = "preempted"


@dataclass(frozen=True)
class RunWish:
    """What `gml run` was asked to do beside the node itself."""

    command: str
    job: str
    folder: Path
    dest: str
    env: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    setup: str = ""
    fetch: tuple[str, ...] = ("runs",)
    keep: bool = False
    detach: bool = False
    recover: bool = False
    max_recoveries: int = 20
    resume_flag: str = "--resume"
    git_credentials: bool = False
    sync: bool = True


class Preempted(GmlError):
    """The machine was taken away in the middle of the job."""

    code = 6


def job_environment(config: Config, node: Node, extra: Mapping[str, str]) -> dict[str, str]:
    """What every job is told: deadline, price, metrics, compile cache. Values may be secrets.

    GAIA_DEADLINE is unix seconds, GAIA_PRICE_PER_HOUR US dollars per hour for the whole node.
    """
    env: dict[str, str] = {"GAIA_NODE": node.id}
    if node.deadline is not None:
        env["GAIA_DEADLINE"] = str(node.deadline)
    if node.price is not None:
        env["GAIA_PRICE_PER_HOUR"] = f"{node.price:.4f}"
    if config.metrics.endpoint:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = config.metrics.endpoint
        token = metrics_token(config)
        if token:
            env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=" + urllib.parse.quote(
                f"Bearer {token}"
            )
    if config.google.bucket and node.provider == "google":
        env["GAIA_BUCKET"] = f"gs://{config.google.bucket}"
        env["JAX_COMPILATION_CACHE_DIR"] = f"gs://{config.google.bucket}/gaia/compile-cache"
    return {**env, **extra}


def metrics_token(config: Config) -> str:
    """The token from the 0600 file, or ''; raises UsageError when others may read it."""
    if not config.metrics.token_file:
        return os.environ.get("GML_METRICS_TOKEN", "")
    path = Path(config.metrics.token_file).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(
                f"metrics.token_file {path} is readable by others", f"chmod 600 {path}"
            )
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UsageError(f"metrics.token_file {path} does not exist", "create it, 0600") from None


class Runner:
    """One `gml run` from beginning to end."""

    def __init__(
        self, manager: Manager, wish: RunWish, tick: Tick, out: BinaryIO | None = None
    ) -> None:
        self.manager = manager
        self.wish = wish
        self.tick = tick
        self.out = out
        self.ssh = manager.ssh
        self.outcome: dict[str, Any] = {}
        self.started = False

    def run(self, node: Node | None, node_wish: Wish | None) -> int:
        """Runs the job to its end and returns its exit code.

        Args:
            node: an existing node to use, or None.
            node_wish: how to make one, and to make it again after a preemption.
        """
        ours = node is None
        if node is None:
            assert node_wish is not None
            node = self.manager.create(node_wish, self.tick)
        elif self._has_job(node):
            raise self._taken(node, self.wish.job)  # before its code is changed under it
        try:
            for attempt in range(self.wish.max_recoveries + 1):
                command = self.wish.command
                if attempt and self.wish.resume_flag:
                    command = f"{command} {self.wish.resume_flag}"
                try:
                    self.prepare(node)
                    self.start(node, command, attempt)
                    if self.wish.detach:
                        self._say_detached(node)
                        self.outcome = {"node": node.id, "job": self.wish.job, "state": "running"}
                        return 0
                    return self.finish(
                        node, self.job_name(attempt), keep=self.wish.keep or not ours
                    )
                except Preempted as error:
                    if not self.wish.recover or node_wish is None:
                        raise
                    if attempt == self.wish.max_recoveries:
                        raise
                    node = self._again(node, node_wish, error)
        except KeyboardInterrupt:
            if ours and not self.wish.keep and not self.started:
                say(f"\ngml: no job runs yet: deleting {node.id}")
                self.manager.delete(node, self.tick)
            else:
                self._say_interrupted(node)
            raise
        except GmlError:
            # A node that we made and could not use is not left to its deadline.
            if ours and not self.wish.keep and not self._has_job(node):
                self.manager.delete(node, self.tick)
            raise
        raise AssertionError("unreachable")

    def job_name(self, attempt: int) -> str:
        """The job's name, with the number of the recovery."""
        return self.wish.job if attempt == 0 else f"{self.wish.job}-r{attempt}"

    def prepare(self, node: Node) -> None:
        """Code, git identity, data and set-up on every host."""
        wish, count = self.wish, len(node.hosts)
        where = node.id if count == 1 else f"{count} hosts"
        if wish.sync:
            self.tick(f"sending code to {where}")
            reports = on_hosts(
                count, lambda i: sync.push(self.ssh, node, wish.folder, wish.dest, index=i)
            )
            if reports[0].withheld:
                say(f"gml: held back as secrets: {', '.join(reports[0].withheld[:5])}")
        on_hosts(
            count,
            lambda i: sync.send_git_identity(self.ssh, node, i, wish.folder, wish.git_credentials),
        )
        if wish.data and not wish.data.startswith("gs://"):
            self.tick(f"sending data to {where}")
            folder = Path(wish.data)
            dest = f"data/{folder.name}"
            on_hosts(count, lambda i: sync.push_folder(self.ssh, node, folder, dest, index=i))
        if wish.setup:
            self._everywhere(node, wish.setup)

    def _everywhere(self, node: Node, command: str) -> None:
        name = f"{jobs.SETUP}{round(time.time())}"
        dest = self.wish.dest
        on_hosts(
            len(node.hosts),
            lambda i: jobs.start(self.ssh, node, name, command, workdir=dest, env={}, index=i),
        )
        for index in range(len(node.hosts)):
            self.tick(f"running --setup on host {index}")
            with streaming(self.out):
                code = jobs.follow(self.ssh, node, name, index=index, out=self.out)
            if code != 0:
                raise UsageError(f"--setup failed on host {index} with exit code {code}")

    def start(self, node: Node, command: str, attempt: int) -> None:
        """Starts the job on every host."""
        base = job_environment(self.manager.config, node, self.wish.env)
        if self.wish.data:
            folder = Path(self.wish.data)
            remote = self.wish.data.startswith("gs://")
            up = "../" * (1 + self.wish.dest.count("/"))
            base["GAIA_DATA"] = self.wish.data if remote else f"{up}data/{folder.name}"
        job, dest = self.job_name(attempt), self.wish.dest
        self.tick(f"starting {job}")
        self.started = True

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
        self.tick(f"{job} runs on {node.id}")
        with streaming(self.out), others_watched(self.ssh, node, job) as failed:
            code = jobs.follow(self.ssh, node, job, out=self.out, lost=self._check_alive(node))
        if failed:
            say(f"gml: host {failed[0][0]} failed first, with exit code {failed[0][1]}")
            code = failed[0][1]
        if code != 0 and self._was_told(node):
            raise Preempted(f"{node.id} was preempted", "run with --recover to go on elsewhere")
        if code != 0 and len(node.hosts) > 1:
            for index in range(1, len(node.hosts)):
                jobs.terminate(self.ssh, node, job, index=index)
        got = fetch(self.ssh, node, self.wish.folder, self.wish.dest, self.wish.fetch, self.tick)
        if not keep:
            self.manager.delete(node, self.tick)
        self.outcome = {
            "node": node.id,
            "job": job,
            "state": "ended",
            "exit_code": code,
            "fetched": got,
            "deleted": not keep,
            "spent_usd": node.cost(self.manager.now()),
        }
        return code

    def _check_alive(self, node: Node) -> Callable[[], None]:
        def check() -> None:
            self.tick(f"asking {node.provider} whether {node.id} still exists: it does not answer")
            try:
                live = self.manager.provider(node.provider).find(node)
            except Unavailable:
                return
            if live is None or live.dead():
                state = live.state if live else "gone"
                raise Preempted(f"{node.id} is {state}", "run with --recover to go on elsewhere")

        return check

    def _was_told(self, node: Node) -> bool:
        """Whether the watchdog passed a preemption notice on to the job."""
        folder = "$HOME/.gml/node" if node.provider == "local" else "/var/lib/gml"
        script = f"ls {folder}/told-{PREEMPTED}-* 2>/dev/null || :"
        try:
            done = on_hosts(
                len(node.hosts), lambda i: self.ssh.run(node, script, index=i, timeout_s=20)
            )
        except Unavailable:
            return True
        return any(d.stdout.strip() for d in done)

    def _again(self, node: Node, wish: Wish, error: GmlError) -> Node:
        """Always deletes before it makes the next: a preempted TPU goes on holding quota."""
        say(f"gml: {error.problem}; making another node")
        self.manager.delete(node, self.tick)
        left = (node.deadline or 0) - round(self.manager.now())
        if left < 120:
            raise Unavailable(f"{node.id} was lost {format_duration(left)} before its deadline")
        again = dataclasses.replace(wish, timeout_s=left, retry_until_up=True)
        try:
            return self.manager.create(again, self.tick)
        except StockOut as second:
            raise Unavailable(f"no machine to go on with: {second.problem}") from None

    def _has_job(self, node: Node) -> bool:
        try:
            return self.wish.job in jobs.names(self.ssh, node)
        except GmlError:
            return False

    def _say_detached(self, node: Node) -> None:
        say(
            f"gml: job {self.wish.job} runs on {node.id} and goes on without this terminal\n"
            f"gml: follow it:     gml logs -f {node.id}\n"
            f"gml: take it home:  gml run --attach {node.id}   (log, results, delete)"
        )

    def _say_interrupted(self, node: Node) -> None:
        left = "never ends by itself"
        if node.deadline is not None:
            left = f"ends by itself in {format_duration(node.deadline - self.manager.now())}"
        say(
            f"\ngml: {node.id} and its job go on; the machine {left}\n"
            f"gml: reattach: gml run --attach {node.id} · end it now: gml node delete {node.id}"
        )


def fetch(
    ssh, node: Node, folder: Path, dest: str, names: tuple[str, ...], tick: Tick
) -> list[str]:
    """Brings result folders of host 0 home, below `folder`; returns those that existed."""
    found = []
    for name in names:
        sync.check_dest(name)
        probe = ssh.run(node, f'[ -e "$HOME/{dest}/{name}" ] && echo yes || :')
        if probe.stdout.strip() == b"yes":
            tick(f"fetching {name}")
            sync.pull(ssh, node, f"{dest}/{name}", (folder / name).parent)
            found.append(name)
    return found
