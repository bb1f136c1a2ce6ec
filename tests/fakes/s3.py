"""A public object of Amazon S3 for tests: ranges, and faults on demand.

As the REST API describes GetObject: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
Errors: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import re
import threading
import time
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Bucket:
    """Objects, and what is to go wrong.

    Attributes:
        objects: content by path.
        refuse: (status, code) of the next answers.
        cuts: how many more answers break off after half of their body.
        slow_s: pause after each 4 KiB of a body.
        ranges: answer ranges; else whole objects, as a plain proxy before it may.
        log: path and Range of every request.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuse: list[tuple[int, str]] = []
        self.cuts, self.slow_s, self.ranges = 0, 0.0, True
        self.log: list[tuple[str, str | None]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Answers for the bucket that a subclass is made for."""

    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        bucket, asked = self.bucket, self.headers.get("Range")
        bucket.log.append((self.path, asked))
        if bucket.refuse:
            return self._error(*bucket.refuse.pop(0))
        if self.path not in bucket.objects:
            return self._error(404, "NoSuchKey")
        content = bucket.objects[self.path]
        headers = {"ETag": f'"{md5(content).hexdigest()}"', "Content-Type": "application/zip"}
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and bucket.ranges:
            start, status = int(match[1]), 206
            if start >= len(content):
                return self._error(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], {"Accept-Ranges": "bytes", **headers})

    def _error(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code></Error>"
        self._send(status, body.encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        cut = self.bucket.cuts > 0 and status < 300
        self.bucket.cuts -= cut
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        sent = body[: len(body) // 2] if cut else body
        try:
            for at in range(0, len(sent), 4096):
                self.wfile.write(sent[at : at + 4096])
                self.wfile.flush()
                if self.bucket.slow_s:
                    time.sleep(self.bucket.slow_s)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.close_connection = self.close_connection or cut


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serve(bucket: Bucket):
    """Serves the bucket on loopback; `bucket.url` is its address."""
    handler = type("BucketHandler", (Handler,), {"bucket": bucket})
    server = _Server(("127.0.0.1", 0), handler)
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
