"""Real servers for queues: Debian's redis-server and PostgreSQL, each on a folder of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.fakes.sshd import free_port

NO_REDIS = "needs redis-server (apt-get install redis-server) and the package redis"
NO_POSTGRES = "needs PostgreSQL (apt-get install postgresql) and the package psycopg"


@contextlib.contextmanager
def redis_server(*options):
    """The address of a server that is empty; stopped at the end."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip(NO_REDIS)
    pytest.importorskip("redis", reason=NO_REDIS)
    import redis

    with tempfile.TemporaryDirectory(prefix="gaia-redis-") as folder:
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen([program, *words, *options], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port)
            _until(lambda: client.ping(), server)
            client.close()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(240)


def postgres_programs():
    """Folder of initdb and postgres; None where there is none."""
    places = [Path(p).parent for p in (shutil.which("initdb"), shutil.which("postgres")) if p]
    places = [*places, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


@contextlib.contextmanager
def postgres_server():
    """The address of a server with an empty database; stopped at the end."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    pytest.importorskip("psycopg", reason=NO_POSTGRES)
    import psycopg

    # PostgreSQL refuses to run as root: then as the user that Debian's package has made.
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="gaia-pg-") as folder:
        if root:
            shutil.chown(folder, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
        data, port = f"{folder}/data", free_port()
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "gaia", "-A", "trust", "-E", "UTF8"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), "-k", folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        url = f"postgresql://gaia@127.0.0.1:{port}/postgres"
        try:
            _until(lambda: psycopg.connect(url).close(), server)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: the folder goes too
            server.wait(240)


def _until(ready, server):
    limit = time.monotonic() + 240
    while True:
        try:
            return ready()
        except Exception:
            assert server.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
