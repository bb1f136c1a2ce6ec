"""Detached jobs on a node: they survive a closed laptop, and their exit code is kept.

A job is a folder `~/.gml/jobs/NAME` on the machine: `run.sh`, `env` (0600, the secrets), `log`,
`pid` (leader of its own process group) and finally `rc`. Everything travels over stdin, so no
secret shows in any argv, on either side.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO

from gml.errors import NotFound, Unavailable, UsageError
from gml.model import Node
from gml.remote.ssh import Ssh
from gml.remote.sync import check_dest

# What `gml run --setup` is called; `--job` may be called so too, at its own risk.
SETUP = "setup-"
_JOB = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# How long a follower goes on trying to reach a machine that stopped answering.
RECONNECT_S = 120.0

_START = """set -eu
umask 077
dir="$HOME/.gml/jobs/{job}"
mkdir -p "$HOME/.gml/jobs" "$HOME/{workdir}"
mkdir "$dir" 2>/dev/null || {{ echo exists; exit 0; }}
base64 -d > "$dir/env" <<'EOF'
{env}
EOF
base64 -d > "$dir/run.sh" <<'EOF'
{command}
EOF
cat > "$dir/wrapper.sh" <<'EOF'
# SIGTERM goes to the whole group. With a trap, bash waits for the command and then goes on, so
# this shell lives to record the exit code; the command itself gets the signal undisturbed.
trap : TERM INT HUP
set -a; . "$1/env"; set +a
cd "$HOME/{workdir}"
bash "$1/run.sh"; rc=$?
echo "$rc" > "$1/rc.new"; mv "$1/rc.new" "$1/rc"
EOF
setsid nohup bash "$dir/wrapper.sh" "$dir" > "$dir/log" 2>&1 < /dev/null &
echo $! > "$dir/pid.new"; mv "$dir/pid.new" "$dir/pid"
echo started
"""

# Tells whether a process runs. One that has ended keeps its id until its parent asks for it, and
# PID 1 of many a container never asks: kill(2), and so `tail --pid` of the job, take it for alive.
_LIVES = """lives() { read -r stat < "/proc/$1/stat" || return 1; case "$stat" in
*") Z "*|*") X "*) return 1;; esac; } 2>/dev/null
"""

# The child that looks ends with the job, or with this shell; tail ends with that child, which this
# shell asks for.
_FOLLOW = """dir="$HOME/.gml/jobs/{job}"
[ -d "$dir" ] || exit 251
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$dir/pid" ] && break; sleep 0.1; done
{lives}job="$(cat "$dir/pid")"
while lives "$job" && lives $$; do sleep 0.4; done < /dev/null > /dev/null 2>&1 &
tail -c +{offset} -s 0.2 -f --pid=$! "$dir/log"
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$dir/rc" ] && exit "$(cat "$dir/rc")"; sleep 0.2; done
exit 252
"""


def check_job(name: str) -> str:
    """A job name that is safe as a folder; raises UsageError."""
    if not _JOB.fullmatch(name):
        raise UsageError(f"job name {name[:60]!r} is not usable", "use 1-41 of a-z, 0-9, - and _")
    return name


def env_text(env: Mapping[str, str]) -> str:
    """`export K='v'` lines; raises UsageError for a name that bash would not take."""
    for name in env:
        if not _ENV.fullmatch(name):
            raise UsageError(f"environment variable name {name[:60]!r} is not usable")
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items())


def start(
    ssh: Ssh,
    node: Node,
    job: str,
    command: str,
    *,
    workdir: str,
    env: Mapping[str, str],
    index: int = 0,
) -> bool:
    """Starts a detached job; False when a job of that name already exists there.

    Args:
        command: a bash command line.
        workdir: folder below the remote home.
        env: its environment; values may be secrets.
    """
    script = _START.format(
        job=check_job(job),
        workdir=check_dest(workdir),
        env=_pack(env_text(env)),
        command=_pack(command + "\n"),
    )
    done = ssh.run(node, script, index=index)
    return done.stdout.split()[-1:] == [b"started"]


def follow(
    ssh: Ssh,
    node: Node,
    job: str,
    *,
    index: int = 0,
    out: BinaryIO | None = None,
    lost: Callable[[], None] = lambda: None,
) -> int:
    """Streams a job's log until it ends and returns its exit code.

    A broken connection is taken up again where it stopped; `lost` is called each time and may
    raise to say that the machine is gone.

    Raises:
        NotFound: no such job. Unavailable: the machine stayed away, or the job left no exit code.
    """
    sink = out if out is not None else sys.stdout.buffer
    offset, silent_since = 1, None
    while True:
        script = _FOLLOW.format(job=check_job(job), offset=offset, lives=_LIVES)
        process = subprocess.Popen(
            [*ssh.argv(node, index, "-T"), script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read1(65536):  # type: ignore[attr-defined]
                offset += len(chunk)
                silent_since = None
                sink.write(chunk)
                sink.flush()
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()
        if code == 251:
            raise NotFound(f"{node.id} has no job {job!r}", f"see `gml logs {node.id} --list`")
        if code == 252:
            raise Unavailable(
                f"job {job} on {node.id} ended without an exit code", "was the machine rebooted?"
            )
        if code != 255:
            return code
        # 255 is ssh's own code for a lost connection, or the job's; its rc file tells which.
        with contextlib.suppress(Unavailable):
            state = status(ssh, node, job, index=index)
            if state.isdigit():
                _rest(ssh, node, job, index, offset, sink)
                return int(state)
        lost()
        silent_since = silent_since or time.monotonic()
        if time.monotonic() - silent_since > RECONNECT_S:
            raise Unavailable(
                f"{node.id} stopped answering", f"reattach with `gml logs -f {node.id}`"
            )
        time.sleep(2)


def _rest(ssh: Ssh, node: Node, job: str, index: int, offset: int, sink: BinaryIO) -> None:
    """Copies the log between a broken connection and the job's end."""
    done = ssh.run(node, f'tail -c +{offset} "$HOME/.gml/jobs/{job}/log"', index=index)
    sink.write(done.stdout)
    sink.flush()


def status(ssh: Ssh, node: Node, job: str, *, index: int = 0) -> str:
    """`running`, the exit code as text, `lost` (no exit code), or `none`."""
    done = ssh.run(
        node,
        f"""{_LIVES}dir="$HOME/.gml/jobs/{check_job(job)}"
[ -d "$dir" ] || {{ echo none; exit 0; }}
if [ -e "$dir/pid" ] && lives "$(cat "$dir/pid")" && [ ! -e "$dir/rc" ]; then echo running
elif [ -e "$dir/rc" ]; then cat "$dir/rc"
else echo lost; fi
""",
        index=index,
    )
    return done.stdout.decode().strip()


def names(ssh: Ssh, node: Node, *, index: int = 0) -> list[str]:
    """Jobs on the node, in the order in which they were started."""
    script = 'cd "$HOME/.gml/jobs" 2>/dev/null && ls -1tr */run.sh 2>/dev/null || :'
    done = ssh.run(node, script, index=index)
    return [line.split("/", 1)[0] for line in done.stdout.decode().split()]


def latest(names_in_order: list[str]) -> str:
    """The last job that is not a `--setup`, or the last of all; '' where there is none."""
    return next(
        (j for j in reversed(names_in_order) if not j.startswith(SETUP)),
        (names_in_order or [""])[-1],
    )


def terminate(ssh: Ssh, node: Node, job: str, *, index: int = 0) -> None:
    """SIGTERM to the whole process group of a job."""
    ssh.run(
        node,
        f'kill -TERM -- "-$(cat "$HOME/.gml/jobs/{check_job(job)}/pid")"',
        index=index,
        check=False,
    )


def _pack(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
