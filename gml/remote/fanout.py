"""Commands on the hosts of a node: one in the foreground, or all at once with prefixed output."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from gml.errors import GmlError, Unavailable, UsageError
from gml.model import Node
from gml.progress import Progress
from gml.remote import jobs
from gml.remote.ssh import Ssh, quote
from gml.threads import in_parallel

# jax.distributed's default; the same on every host of a slice.
COORDINATOR_PORT = 8476
# Seconds between two looks at the further hosts of a slice while the first one's log is followed.
WATCH_S = 5.0


def jax_environment(node: Node, index: int, port: int = COORDINATOR_PORT) -> dict[str, str]:
    """Coordinator and process ids, said explicitly: right on every cloud, metadata or not.

    JAX reads JAX_COORDINATOR_ADDRESS itself; the other two are for the caller of
    `jax.distributed.initialize(num_processes=…, process_id=…)`. Empty for a single host.
    """
    if len(node.hosts) < 2:
        return {}
    first = node.hosts[0]
    return {
        "JAX_COORDINATOR_ADDRESS": f"{first.internal or first.address}:{port}",
        "JAX_NUM_PROCESSES": str(len(node.hosts)),
        "JAX_PROCESS_ID": str(index),
    }


def run_one(
    ssh: Ssh, node: Node, words: Sequence[str], *, index: int = 0, tty: bool = False
) -> int:
    """Runs a command in the foreground with our stdin and stdout; returns its exit code."""
    options = ["-tt" if tty else "-T"]
    command = words[0] if len(words) == 1 else quote(words)
    return subprocess.call([*ssh.argv(node, index, *options), command])


def run_all(
    ssh: Ssh,
    node: Node,
    words: Sequence[str],
    *,
    hosts: Sequence[int] | None = None,
    out: TextIO | None = None,
    port: int = COORDINATOR_PORT,
) -> int:
    """Runs a command on every host at once; the first failure ends the others.

    Every output line is prefixed with the host's number. stdin is not forwarded. `hosts` are the
    numbers of those that run it; all without.

    Returns:
        0, or the exit code of the first host that failed.
    """
    if not words:
        raise UsageError("the command is missing", "write it after --")
    sink = out or sys.stdout
    tag = secrets.token_hex(4)
    command = words[0] if len(words) == 1 else quote(words)
    lock, failed = threading.Lock(), threading.Event()
    codes: dict[int, int] = {}
    chosen = range(len(node.hosts)) if hosts is None else hosts
    processes = {i: _start(ssh, node, i, tag, command, port) for i in chosen}

    def pump(index: int) -> None:
        process = processes[index]
        assert process.stdout is not None
        for line in process.stdout:
            with lock:
                sink.write(f"[{index}] {line.decode(errors='replace')}")
                sink.flush()
        code = process.wait()
        with lock:
            codes[index] = code
            first = code != 0 and not failed.is_set()
            if first:
                failed.set()
                codes.setdefault(-1, code)
        if first:
            _kill_others(ssh, node, tag, [i for i in chosen if i != index and i not in codes])

    threads = [threading.Thread(target=pump, args=(i,), daemon=True) for i in chosen]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        _kill_others(ssh, node, tag, [i for i in chosen if i not in codes])
        raise
    for index in chosen:
        with contextlib.suppress(Exception):
            ssh.run(node, f'rm -f "$HOME/.gml/exec-{tag}"', index=index, timeout_s=10)
    return codes.get(-1, 0)


def _start(
    ssh: Ssh, node: Node, index: int, tag: str, command: str, port: int
) -> subprocess.Popen[bytes]:
    """One host's command; its process group's id goes into a file, so that it can be ended."""
    env = "".join(f"export {k}={v}; " for k, v in jax_environment(node, index, port).items())
    script = f'mkdir -p "$HOME/.gml"; echo $$ > "$HOME/.gml/exec-{tag}"; {env}{command}'
    # -T: no terminal. sshd makes the shell a session leader, so its pid is its group's id.
    return subprocess.Popen(
        [*ssh.argv(node, index, "-T"), f"bash -c {quote([script])}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _kill_others(ssh: Ssh, node: Node, tag: str, others: Sequence[int]) -> None:
    def kill(other: int) -> None:
        with contextlib.suppress(Exception):
            ssh.run(
                node,
                f'f="$HOME/.gml/exec-{tag}"; for i in 1 2 3 4 5; do [ -s "$f" ] && break; '
                f'sleep 0.1; done; kill -TERM -- "-$(cat "$f")"',
                index=other,
                check=False,
                timeout_s=20,
            )

    in_parallel([lambda i=i: kill(i) for i in others])


@contextlib.contextmanager
def others_watched(ssh: Ssh, node: Node, job: str) -> Iterator[list[tuple[int, int]]]:
    """Looks at a detached job on hosts 1, 2, … while the caller follows it on host 0.

    A host where it failed (or vanished: code 1) ends the job on host 0, which would otherwise wait
    for it in a collective. Yields a list that then holds that host's number and exit code.
    """
    failed: list[tuple[int, int]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(WATCH_S):
            for index in range(1, len(node.hosts)):
                try:
                    state = jobs.status(ssh, node, job, index=index)
                except GmlError:
                    continue  # a host that does not answer now may answer next time
                if state == "lost" or (state.isdigit() and state != "0"):
                    failed.append((index, int(state) if state.isdigit() else 1))
                    with contextlib.suppress(GmlError):
                        jobs.terminate(ssh, node, job)
                    return

    thread = threading.Thread(target=look, daemon=True)
    if len(node.hosts) > 1:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(timeout=5)


def wait_for_others(
    ssh: Ssh, node: Node, job: str, progress: Progress, lost: Callable[[], None]
) -> list[tuple[int, int]]:
    """Waits until a detached job has ended on hosts 1, 2, …, or failed on one of them.

    Args:
        ssh: the way there.
        node: the node; with a single host there is nothing to wait for.
        job: name of the job, which has ended on host 0.
        progress: told what is waited for.
        lost: called where a host does not answer; may raise to say that the machine is gone.

    Returns:
        The host that failed, and its exit code (1 where it left none); empty if all ended well.

    Raises:
        Unavailable: a host stayed away.
    """
    left, silent = list(range(1, len(node.hosts))), dict[int, float]()
    while left:
        progress(f"{job} has ended on host 0; waiting for {len(left)} more")
        for index in tuple(left):
            try:
                state = jobs.status(ssh, node, job, index=index)
            except Unavailable as error:
                lost()
                since = silent.setdefault(index, time.monotonic())
                if time.monotonic() - since > jobs.RECONNECT_S:
                    remedy = f"reattach with `gml run --attach {node.id} --job {job}`"
                    raise Unavailable(f"host {index}: {error.problem}", remedy) from None
                continue
            silent.pop(index, None)
            if state == "0":
                left.remove(index)
            elif state != "running":
                return [(index, int(state) if state.isdigit() else 1)]
        if left:
            time.sleep(min(WATCH_S, 1.0))
    return []
