"""dumps.wikimedia.org for tests: listings, dumpstatus.json, files by ranges, faults on demand."""

import bz2
import hashlib
import html
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JOB = "articlesmultistreamdump"


def page(number: int, title: str, text: str, namespace: int = 0, target: str | None = None) -> str:
    """One <page> as export-0.11 has it: https://www.mediawiki.org/xml/export-0.11.xsd."""
    redirect = "" if target is None else f'<redirect title="{html.escape(target)}" />'
    return (
        f"  <page>\n    <title>{html.escape(title)}</title>\n    <ns>{namespace}</ns>\n"
        f"    <id>{number}</id>\n    {redirect}<revision><id>{number + 1000}</id>"
        f"<text bytes='{len(text.encode())}' xml:space='preserve'>{html.escape(text)}</text>"
        "</revision>\n  </page>\n"
    )


def multistream(pages: list[tuple], per_stream: int = 3) -> tuple[bytes, bytes]:
    """A multistream dump and its index, as MediaWiki's recompressxml writes them.

    The beginning, each group of pages and the end are bz2 streams of their own; the index has
    `offset:page:title` with the title as it stands in the XML.
    https://meta.wikimedia.org/wiki/Data_dumps/Dump_format#Multistream_dumps

    Args:
        pages: arguments of `page`.
        per_stream: 100 in the real ones.
    """
    data = bz2.compress(
        b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" '
        b'xml:lang="en">\n  <siteinfo><dbname>enwiki</dbname><namespaces>'
        b'<namespace key="0" case="first-letter" /><namespace key="6">File</namespace>'
        b'<namespace key="14">Category</namespace></namespaces></siteinfo>\n'
    )
    index = []
    for start in range(0, len(pages), per_stream):
        group = pages[start : start + per_stream]
        index += [f"{len(data)}:{number}:{html.escape(title)}\n" for number, title, *_ in group]
        data += bz2.compress("".join(page(*each) for each in group).encode())
    data += bz2.compress(b"</mediawiki>\n")
    return data, bz2.compress("".join(index).encode())


class Dumps:
    """Dumps of wikis, and what is to go wrong.

    Attributes:
        files: content by path.
        status: dumpstatus.json by "/enwiki/20261101/".
        refuse: (status, Retry-After) of the next answers.
        cuts: how many more answers break off after half of their body, by file name.
        flips: how many more answers have one byte changed in the middle, by file name.
        slow_s: pause after each 4 KiB of a body, by file name.
        log: path and Range of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.status: dict[str, dict] = {}
        self.refuse: list[tuple[int, str | None]] = []
        self.cuts: dict[str, int] = {}
        self.flips: dict[str, int] = {}
        self.slow_s: dict[str, float] = {}
        self.ranges = True
        self.log: list[tuple[str, str | None]] = []
        self.url = ""

    def add(self, wiki: str, date: str, pages: list[tuple], *, done: bool = True,
            recombined: bool = False) -> None:  # fmt: skip
        """Publishes a dump. Small wikis have one job, large ones join their parts in a second."""
        articles, index = multistream(pages)
        base = f"/{wiki}/{date}/"
        names = {
            f"{wiki}-{date}-pages-articles-multistream.xml.bz2": articles,
            f"{wiki}-{date}-pages-articles-multistream-index.txt.bz2": index,
        }
        files = {
            name: {
                "size": len(data), "url": base + name,
                "md5": hashlib.md5(data).hexdigest(), "sha1": hashlib.sha1(data).hexdigest(),
            }
            for name, data in names.items()
        }  # fmt: skip
        # Fields as in https://dumps.wikimedia.org/enwiki/20240501/dumpstatus.json (version 0.8).
        state = {"status": "done" if done else "in-progress", "updated": f"{date} 12:00:00"}
        jobs = {JOB: state | ({"files": {} if recombined else files} if done else {})}
        if recombined:
            jobs[f"{JOB}recombine"] = state | {"files": files}
        self.status[base] = {"version": "0.8", "jobs": jobs}
        self.files |= {base + name: data for name, data in names.items()}


class Handler(BaseHTTPRequestHandler):
    """Answers for the dumps that a subclass is made for."""

    dumps: Dumps
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.dumps.log.append((self.path, asked))
        # https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
        agent = self.headers.get("User-Agent", "")
        if not agent or re.match(r"(python|httpx|curl|urllib)", agent, re.IGNORECASE):
            return self._send(403, b"Please respect our robot policy", {})
        if self.dumps.refuse:
            # nginx's limit of connections and rate: 503 (its default) or 429, with Retry-After
            # from Wikimedia's edge; https://wikitech.wikimedia.org/wiki/Robot_policy
            status, after = self.dumps.refuse.pop(0)
            return self._send(status, b"slow down", {"Retry-After": after} if after else {})
        if re.fullmatch(r"/\w+/", self.path):
            return self._listing()
        base, _, name = self.path.rpartition("/")
        if name == "dumpstatus.json" and f"{base}/" in self.dumps.status:
            return self._send(200, json.dumps(self.dumps.status[f"{base}/"]).encode(), {})
        if self.path not in self.dumps.files:
            return self._send(404, b"<html><head><title>404 Not Found</title></head></html>", {})
        return self._file(name, self.dumps.files[self.path], asked)

    def _listing(self) -> None:
        """nginx's autoindex (ngx_http_autoindex_module); `latest/` is among the dates."""
        dates = sorted(b.split("/")[2] for b in self.dumps.status if b.startswith(self.path))
        if not dates:
            return self._send(404, b"<html><head><title>404 Not Found</title></head></html>", {})
        links = [f'<a href="{d}/">{d}/</a>  01-Nov-2026 10:00   -' for d in (*dates, "latest")]
        page = f"<html><h1>Index of {self.path}</h1><pre>" + "\n".join(
            ["<a href='../'>../</a>", *links]
        )
        return self._send(200, page.encode(), {"Content-Type": "text/html"})

    def _file(self, name: str, content: bytes, asked: str | None) -> None:
        """A static file of nginx: ranges of RFC 9110, 14; 416 beyond its end."""
        headers = {
            "Accept-Ranges": "bytes",
            "Last-Modified": formatdate(1.79e9, usegmt=True),
            "ETag": f'"{len(content):x}"',
            "Content-Type": "application/octet-stream",
        }
        start, end = 0, len(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if match and self.dumps.ranges:
            start = int(match[1])
            end = min(end, int(match[2]) + 1) if match[2] else end
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = content[start:end]
        if self.dumps.flips.get(name, 0) > 0:
            self.dumps.flips[name] -= 1
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0x55]) + body[middle + 1 :]
        cut = self.dumps.cuts.get(name, 0) > 0
        if cut:
            self.dumps.cuts[name] -= 1
        status = 206 if "Content-Range" in headers else 200
        self._send(status, body, headers, cut=cut, pause_s=self.dumps.slow_s.get(name, 0.0))

    def _send(self, status: int, body: bytes, headers: dict, *, cut: bool = False,
              pause_s: float = 0.0) -> None:  # fmt: skip
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        sent = body[: len(body) // 2] if cut else body
        try:
            for at in range(0, len(sent), 4096):
                self.wfile.write(sent[at : at + 4096])
                self.wfile.flush()
                if pause_s:
                    time.sleep(pause_s)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.close_connection = self.close_connection or cut


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that went away: tests kill some."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve() -> Iterator[Dumps]:
    """Serves dumps on a loopback port as `WIKIMEDIA_DUMPS_URL = dumps.url`."""
    dumps = Dumps()
    server = _Server(("127.0.0.1", 0), type("Served", (Handler,), {"dumps": dumps}))
    dumps.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield dumps
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
