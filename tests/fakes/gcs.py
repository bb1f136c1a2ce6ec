"""A fake Google Cloud Storage on loopback that the real clients talk to, with faults on demand.

    with serve() as fake:                     in this process
    with spawn() as fake:                     in a process of its own
    PYTHONPATH=tests python -m fakes.gcs      by hand; prints its address and the environment

Checked in tests/gaia/storage/test_fake_gcs.py with google-cloud-storage, array_record,
tensorstore, gcsfs and Orbax. `fake.environment` holds what makes each of them come here.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fakes.gcs_faults import Trouble
from fakes.gcs_http import Handler
from fakes.gcs_store import Store

BUCKET = "gaia-test"
TESTS = Path(__file__).resolve().parents[1]


def environment(url: str) -> dict[str, str]:
    """Variables that send every client to the fake and none to a metadata server."""
    return {
        "STORAGE_EMULATOR_HOST": url,  # google-cloud-storage, gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # google-cloud-cpp inside array_record
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or gcsfs asks over TLS first, for a minute
        "FSSPEC_GCS_TOKEN": "anon",  # or gcsfs looks for credentials everywhere first
        "GOOGLE_CLOUD_PROJECT": "gaia-test",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": "127.0.0.1:9",
    }


class Server(ThreadingHTTPServer):
    """Knows its connections, so that going away cuts them as a dead server would."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, store: Store, trouble: Trouble, fake: "FakeGcs | None") -> None:
        self.store, self.trouble, self.fake = store, trouble, fake
        self.uploads: dict[str, Any] = {}
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""

    def cut(self) -> None:
        """Closes every connection at once."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)


class FakeGcs:
    """The service: a store behind a server that can go away and come back on its port."""

    def __init__(self, port: int = 0) -> None:
        self.store, self.trouble = Store(), Trouble()
        self._server: Server | None = None
        self._port = port
        self.start()
        self.store.create_bucket(BUCKET)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.url)

    def start(self) -> None:
        self._server = Server(self._port, self.store, self.trouble, self)
        self._port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            self._thread.join()
            server.server_close()
            server.cut()

    def go_away(self, seconds: float) -> None:
        """No server for so long: connections are cut, new ones are refused."""

        def away() -> None:
            self.stop()
            threading.Timer(seconds, self.start).start()

        threading.Thread(target=away).start()

    def control(self, what: dict[str, Any]) -> dict[str, Any]:
        """`{"faults": {…}}`, `{"outage_s": 5}`, `{"reset_stats": true}`, or any of them."""
        if "faults" in what:
            self.trouble.set(what["faults"])
        if what.get("reset_stats"):
            self.trouble.reset_stats()
        if what.get("outage_s"):
            self.go_away(what["outage_s"])
        return self.trouble.snapshot()


class Remote:
    """The same controls for a fake in another process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = environment(url)

    def control(
        self, what: dict[str, Any] | None = None, *, patience_s: float = 90
    ) -> dict[str, Any]:
        """Sets faults; returns the statistics. Waits for the end of an outage, which may outlast
        what a test did during it.
        """
        request = urllib.request.Request(f"{self.url}/_control", json.dumps(what or {}).encode())
        until = time.monotonic() + patience_s
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)
            except OSError as error:  # URLError is one
                reason = getattr(error, "reason", error)
                if not isinstance(reason, ConnectionError) or time.monotonic() > until:
                    raise
                time.sleep(0.1)


@contextlib.contextmanager
def serve() -> Iterator[FakeGcs]:
    """A fake in this process; point clients at it with `environment`."""
    fake = FakeGcs()
    try:
        yield fake
    finally:
        fake.stop()


@contextlib.contextmanager
def spawn() -> Iterator[Remote]:
    """A fake in a process of its own, which costs this one no time on the interpreter lock."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes.gcs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Remote(json.loads(process.stdout.readline())["url"])
    finally:
        process.stdin.close()  # it ends when its parent does, however that ends
        process.wait()
        process.stdout.close()


def main() -> None:
    fake = FakeGcs(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(json.dumps({"url": fake.url, "environment": fake.environment}), flush=True)
    sys.stdin.read()
    fake.stop()


if __name__ == "__main__":
    main()
