"""A Hugging Face hub for tests: the three answers that the client needs, with faults on demand."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub:
    """Files of one data set repository, and what is to go wrong.

    Attributes:
        files: content by name.
        flips: how many more answers get their first byte changed, by name.
        cuts: how many more answers break off after half of their body, by name.
        log: method, path and Range of every request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.flips: dict[str, int] = {}
        self.cuts: dict[str, int] = {}
        self.log: list[tuple[str, str, str | None]] = []
        self.url = ""

    def _take(self, faults: dict[str, int], name: str) -> bool:
        if faults.get(name, 0) <= 0:
            return False
        faults[name] -= 1
        return True


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            asked = self.headers.get("Range")
            hub.log.append((self.command, self.path, asked))
            match = re.fullmatch(r"/datasets/.+?/resolve/([^/]+)/(.+)", self.path)
            name = match.group(2) if match else ""
            if match is None or match.group(1) not in ("main", COMMIT) or name not in hub.files:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = hub.files[name]
            start = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0]) if asked else 0
            body = content[start:]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            sha256 = hashlib.sha256(content).hexdigest()
            for key, value in {
                "Content-Length": str(len(body)),
                "ETag": f'"{sha256}"',
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if not with_body:
                return
            if hub._take(hub.flips, name):
                body = bytes([body[0] ^ 1]) + body[1:]
            if hub._take(hub.cuts, name):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(body)

    return Handler


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serves the files on a loopback port as `HF_ENDPOINT = hub.url`."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
