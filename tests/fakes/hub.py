"""A Hugging Face hub for tests: the three answers that the client needs, with faults on demand."""

import hashlib
import json
import re
import threading
import urllib.parse
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


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub that a subclass is made for."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer_api(self, path: str) -> None:
        """Answers of the API on a repository and its files: HfApi.dataset_info, list_repo_tree.

        https://huggingface.co/docs/hub/api; the fields that huggingface_hub 2.4 parses.
        """
        tree = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path)
        info = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", path)
        match = tree or info
        if match is None or match[2] not in ("main", COMMIT):
            return self._json(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        if tree is None:
            return self._json(200, {"id": match[1], "sha": COMMIT})
        inside = f"{tree[3]}/" if tree[3] else ""
        entries = [
            {
                "type": "file", "path": name, "size": len(data), "oid": "0" * 40,
                "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data),
                        "pointerSize": 130},
            }
            for name, data in self.hub.files.items() if name.startswith(inside)
        ]  # fmt: skip
        if not entries:
            return self._json(404, {"error": f"{tree[3]} does not exist"}, "EntryNotFound")
        return self._json(200, entries)

    def _json(self, status: int, value: object, code: str | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, with_body: bool) -> None:
        asked = self.headers.get("Range")
        self.hub.log.append((self.command, self.path, asked))
        if self.path.startswith("/api/datasets/"):
            return self._answer_api(urllib.parse.unquote(self.path.split("?")[0]))
        match = re.fullmatch(r"/datasets/.+?/resolve/([^/]+)/(.+)", self.path)
        name = match.group(2) if match else ""
        if match is None or match.group(1) not in ("main", COMMIT) or name not in self.hub.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.hub.files[name]
        start = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0]) if asked else 0
        body = content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
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
        if self.hub._take(self.hub.flips, name):
            body = bytes([body[0] ^ 1]) + body[1:]
        if self.hub._take(self.hub.cuts, name):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serves the files on a loopback port as `HF_ENDPOINT = hub.url`."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
