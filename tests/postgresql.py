"""A PostgreSQL of Debian's, on loopback, for one test session."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

NEEDED = "needs PostgreSQL (apt-get install postgresql)"


def binaries():
    """The folder of `initdb` and `pg_ctl`; skips where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip(NEEDED)
    return folders[-1]


class Server:
    """A server with a folder of its own.

    Attributes:
        url: of the database `site`, owned by a user who is no superuser.
    """

    def __init__(self, folder):
        self.folder, self.bin = folder / "postgres", binaries()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"postgresql://gchat:word@127.0.0.1:{self.port}/site"
        self.folder.mkdir()
        # PostgreSQL refuses to run as root.
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as:
            folder.chmod(0o755)
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self.folder), "-U", "boss", "-A", "trust", "-E", "UTF8",
                  "--locale", "C.UTF-8", "--no-sync")  # fmt: skip
        self.start()
        for statement in ("CREATE ROLE gchat LOGIN PASSWORD 'word'",
                          "CREATE DATABASE site OWNER gchat"):  # fmt: skip
            self._run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "boss", "-d",
                      "postgres", "-c", statement)  # fmt: skip

    def _run(self, program, *args):
        subprocess.run([*self._as, str(self.bin / program), *args], check=True,
                       capture_output=True, cwd="/tmp", timeout=120)  # fmt: skip

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", str(self.folder), "-o", options, "-l",
                  str(self.folder / "log"), "-w", "start")  # fmt: skip

    def stop(self):
        self._run("pg_ctl", "-D", str(self.folder), "-m", "immediate", "-w", "stop")

    def empty(self):
        """Makes the database new."""
        for statement in ("DROP DATABASE site WITH (FORCE)", "CREATE DATABASE site OWNER gchat"):
            self._run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "boss", "-d",
                      "postgres", "-c", statement)  # fmt: skip


@contextlib.contextmanager
def serve():
    """A server in a folder that its own user may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop()
