"""Real OpenSSH servers on loopback, several ports as several hosts, each with a home of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if os.path.exists("/usr/sbin/sshd") else None)
MISSING = (
    ""
    if SSHD and shutil.which("ssh") and shutil.which("rsync")
    else "needs openssh-server, ssh and rsync (see tests/system_packages.sh)"
)


@dataclass
class Server:
    """One sshd with its own port and home."""

    port: int
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=90)

    def hang_up(self) -> None:
        """Ends every open connection, as a network failure would; the server stays."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            for deeper in descendants(int(pid)):
                if b"sshd" in comm(deeper):
                    kill(deeper)
            kill(int(pid))


def comm(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    try:
        found = [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [y for x in found for y in (x, *descendants(x))]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def start(folder: Path, public_key: str, port: int = 0) -> Server:
    """Starts an sshd for the current user; `folder` holds its configuration and home."""
    assert SSHD
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    if not (folder / "host_key").exists():
        make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(public_key)
    port = port or free_port()
    # sshd starts sessions in the passwd home; each server here shall look like another machine.
    (folder / "enter.sh").write_text(
        '#!/bin/bash\ncd "$HOME" || exit 1\n'
        'if [ -n "$SSH_ORIGINAL_COMMAND" ]; then exec bash -c "$SSH_ORIGINAL_COMMAND"; fi\n'
        "exec bash\n"
    )
    (folder / "enter.sh").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home} GIT_CONFIG_GLOBAL={home}/.gitconfig
ForceCommand {folder}/enter.sh
MaxStartups 100
MaxSessions 100
LogLevel ERROR
"""
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    until = time.monotonic() + 90
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Server(port, home, process)
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError((folder / "sshd.log").read_text())
