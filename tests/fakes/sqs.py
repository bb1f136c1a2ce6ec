"""SQS and S3 for tests: moto's server, in a process of its own.

moto answers as the services do, errors too. It keeps a message's visibility by the clock, counts
deliveries, and moves to the dead letter what was delivered too often.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time

from tests.fakes.sshd import free_port

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


@contextlib.contextmanager
def moto():
    """The environment in which boto3 asks this server."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait(240)
