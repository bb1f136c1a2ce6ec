"""gml's own time: start-up, `ls` from cache, sync of this repository, create on a fake cloud.

Targets: `gml --help` <= 250 ms, `gml ls --cached` <= 350 ms, first sync of this repository to a
loopback sshd <= 1500 ms and an unchanged one <= 600 ms, `node create` to a usable shell <= 3000 ms
beyond the cloud's own latency. The limits are timed in the same run, so that a slow machine shows
as one: the interpreter's start (`python_ms`), one ssh handshake (`ssh_ms`), and rsync of the same
files by hand over a new connection (`rsync_first_ms`, `rsync_unchanged_ms`). `sky --help` is run
beside it where SkyPilot is installed, else null.
Everything is timed as users start it: a new process each time, median of several.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

ROOT = harness.ROOT


def timed(argv: list[str], env: dict[str, str], cwd: Path | None = None) -> float:
    """Milliseconds of one run; fails loudly when the command does."""
    begun = time.perf_counter()
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True)
    elapsed = (time.perf_counter() - begun) * 1e3
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed: {done.stderr[-500:]}")
    return elapsed


def main(args: argparse.Namespace) -> dict:
    rounds = 5 if args.quick else 15
    folder = Path(tempfile.mkdtemp(prefix="gmlb", dir="/tmp"))
    try:
        return measure(folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, rounds: int) -> dict:
    home = folder / "gml"
    home.mkdir(mode=0o700)
    # Bytecode is cached as in any installation, whatever this shell says.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GML_HOME": str(home), "HOME": str(folder)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    gml = [sys.executable, "-m", "gml"]
    settings = f'owner = "bench"\nssh_key = "{folder}/key"\nbackoff_s = 0.05\n'
    (home / "config.toml").write_text(settings)
    result: dict = {}

    def many(key: str, argv: list[str], cwd: Path | None = None) -> None:
        timed(argv, env, cwd)  # fills the bytecode cache
        values = [timed(argv, env, cwd) for _ in range(rounds)]
        result.update(harness.spread(key, values))

    many("python_ms", [sys.executable, "-c", "pass"])
    many("help_ms", [*gml, "--help"])
    many("ls_ms", [*gml, "ls", "--cached"])
    sky = shutil.which("sky")
    result["sky_help_ms"] = None
    if sky:
        result.update(
            harness.spread("sky_help_ms", [timed([sky, "--help"], env) for _ in range(3)])
        )
    result.update(over_ssh(folder, home, env, gml, rounds))
    report(result)
    return result


def over_ssh(folder: Path, home: Path, env: dict, gml: list[str], rounds: int) -> dict:
    """Sync and create against a real sshd; all null where there is none."""
    from tests.fakes import sshd
    from tests.fakes.cloud import Cloud, Server

    empty = {"sync_first_ms": None, "sync_unchanged_ms": None, "create_overhead_ms": None}
    if sshd.MISSING:
        return {**empty, "skipped": sshd.MISSING}
    sshd.make_key(folder / "key")
    server = sshd.start(folder / "host", (folder / "key.pub").read_text())
    cloud = Cloud(op_delay=0.5, addresses=[("127.0.0.1", server.port)])
    http = Server(cloud)
    config = home / "config.toml"
    extra = f'[local.hosts]\nbox = "{server.address}"\n[google]\n'
    config.write_text(config.read_text() + extra + f'ssh_user = "{getpass.getuser()}"\n')
    try:
        create = [*gml, "node", "create", "-p", "local", "--zone", "box", "--timeout", "1h"]
        timed([*create, "--name", "bench"], env)
        first, unchanged = [], []
        plain = Plain(folder, server)
        sync = [*gml, "sync", "bench", "--folder", str(ROOT)]
        for index in range(max(3, rounds // 2)):
            first.append(timed([*sync, "--dest", f"r{index}"], env))
            unchanged.append(timed([*sync, "--dest", f"r{index}"], env))
            plain.measure(index, env)
        overhead = []
        fake = {**env, **http.environment()}
        for index in range(3):
            words = [*gml, "node", "create", "-t", "v6e-8", "-p", "google", "--strategy", "gce"]
            words += ["--zone", "us-east5-b", "--timeout", "1h", "--name", f"n{index}"]
            # The cloud's own latency here is the operation's delay of half a second.
            overhead.append(timed(words, fake) - 500)
            timed([*gml, "node", "delete", f"n{index}"], fake)
        return {
            **harness.spread("sync_first_ms", first),
            **harness.spread("sync_unchanged_ms", unchanged),
            **harness.spread("create_overhead_ms", overhead),
            **plain.spreads(),
        }
    finally:
        # Ends the watchdog that the node was given.
        subprocess.run([*gml, "node", "delete", "bench"], env=env, capture_output=True)
        http.close()
        server.stop()


class Plain:
    """The same by hand: an ssh login, and rsync of the files that git lists."""

    def __init__(self, folder: Path, server) -> None:
        options = f"-i {folder}/key -o UserKnownHostsFile={folder}/known -o LogLevel=ERROR"
        user, _, port = server.address.rpartition(":")
        self.user = user
        self.ssh = f"ssh -p {port} -o StrictHostKeyChecking=accept-new {options}"
        self.list = folder / "files"
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
            capture_output=True, check=True,
        )  # fmt: skip
        kept = [f for f in listed.stdout.split(b"\0") if f and (ROOT / os.fsdecode(f)).exists()]
        self.list.write_bytes(b"\0".join(kept))
        self.times: dict[str, list[float]] = {}

    def measure(self, index: int, env: dict[str, str]) -> None:
        rsync = ["rsync", "-rltpz", "--from0", f"--files-from={self.list}", "-e", self.ssh]
        rsync += [f"{ROOT}/", f"{self.user}:plain{index}/"]
        for key, argv in (
            ("ssh_ms", [*self.ssh.split(), self.user, "true"]),
            ("rsync_first_ms", rsync),
            ("rsync_unchanged_ms", rsync),
        ):
            self.times.setdefault(key, []).append(timed(argv, env))

    def spreads(self) -> dict[str, float]:
        return {k: v for key, values in self.times.items()
                for k, v in harness.spread(key, values).items()}  # fmt: skip


def report(result: dict) -> None:
    targets = {
        "python_ms": None, "help_ms": 250, "ls_ms": 350, "sync_first_ms": 1500,
        "sync_unchanged_ms": 600, "create_overhead_ms": 3000, "sky_help_ms": None,
        "ssh_ms": None, "rsync_first_ms": None, "rsync_unchanged_ms": None,
    }  # fmt: skip
    print(f"{'':20} {'median':>8} {'min':>8} {'max':>8}  target")
    for key, target in targets.items():
        value = result.get(key)
        if value is None:
            print(f"{key:20} {'absent':>8}")
            continue
        low, high = result[f"{key}_min"], result[f"{key}_max"]
        print(f"{key:20} {value:8.0f} {low:8.0f} {high:8.0f}  {target or ''}")


if __name__ == "__main__":
    harness.run(main, __doc__)
