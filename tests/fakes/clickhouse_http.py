"""ClickHouse's HTTP interface over the real engine (chdb), as one user of deploy/ sees it.

    python -m tests.fakes.clickhouse_http --data DIR --user grafana_reader --port-file FILE

The engine has one user, so it is started once per user: `default` gets the profile, constraints,
quota and grants that deploy/clickhouse/users.d/gaia.xml gives to USER, and `gaia_admin` exists as
the definer of the views. One process at a time may have DIR.

Two things the embedded engine does not do, and this file does:
- passwords: X-ClickHouse-User and -Key, basic authentication or user=&password= are checked against
  the generated user's; a wrong one answers 403 with code 516, as HTTPHandler.cpp does.
- `readonly=1` with `changeable_in_readonly`: the embedded server ignores
  settings_constraints_replace_previous, which the latter needs. The engine runs with `readonly=2`
  (the same, except that settings may change), and a setting that the profile does not declare
  changeable is refused here, with SettingsConstraints.cpp's code 164 and message.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.fakes.clickhouse import apply_schema
from tests.fakes.otlp import as_json

ROOT = Path(__file__).resolve().parents[2]
USERS = ROOT / "deploy/clickhouse/users.d/gaia.xml"
PASSWORDS = {name: f"pw-{name}" for name in ("gaia_admin", "otel_writer", "grafana_reader")}
# Parameters of the interface that are no settings (HTTPHandler.cpp, reserved_param_names).
RESERVED = {
    "query", "database", "user", "password", "quota_key", "query_id", "default_format", "role",
    "stacktrace", "compress", "decompress", "session_id", "session_timeout", "session_check",
    "buffer_size", "wait_end_of_query", "client_protocol_version", "close_session",
}  # fmt: skip
HELLO = "SELECT displayName(), version(), revision(), timezone()"


def configuration(
    folder: Path, user: str, backups: Path | None = None
) -> tuple[Path, set[str], bool]:
    """Write the engine's files: the server's, the settings that may change, `readonly`."""
    tree = ElementTree.parse(USERS).getroot()
    wanted = tree.find(f"users/{user}")
    profile = tree.find(f"profiles/{wanted.findtext('profile')}")
    readonly = profile.findtext("readonly") == "1"
    changeable = {item.tag for item in profile.findall("constraints/*")
                  if item.find("changeable_in_readonly") is not None}  # fmt: skip
    for each in tree.findall("profiles/*"):
        if each.find("readonly") is not None:
            each.find("readonly").text = "2"
        for item in each.findall("constraints/*"):
            for mark in item.findall("changeable_in_readonly"):
                item.remove(mark)
    users = tree.find("users")
    users.remove(users.find("default"))
    for item in list(users):
        for key in ("password_sha256_hex", "password"):
            if item.find(key) is not None:
                item.remove(item.find(key))
        ElementTree.SubElement(item, "password").text = ""
    default = ElementTree.fromstring(ElementTree.tostring(wanted))
    default.tag = "default"
    if default.find("password") is None:
        ElementTree.SubElement(default, "password").text = ""
    users.append(default)
    quotas = tree.find("quotas")
    if quotas.find("default") is None:  # the stock users.xml has it
        ElementTree.SubElement(ElementTree.SubElement(quotas, "default"), "interval").append(
            ElementTree.fromstring("<duration>3600</duration>")
        )
    if tree.find("profiles/default") is None:
        ElementTree.SubElement(tree.find("profiles"), "default")
    (folder / "users.xml").write_bytes(ElementTree.tostring(tree))
    server = folder / "server.xml"
    disk = backups and (
        f"<storage_configuration><disks><backups><type>local</type><path>{backups}/</path>"
        "</backups></disks></storage_configuration><backups><allowed_disk>backups</allowed_disk>"
        f"<allowed_path>{backups}/</allowed_path></backups>"
    )
    server.write_text(
        f"<clickhouse>{disk or ''}<user_directories><users_xml><path>"
        f"{folder / 'users.xml'}</path></users_xml></user_directories></clickhouse>"
    )
    return server, changeable, readonly


class Failure(Exception):
    """An answer that is no result: HTTP status, ClickHouse's code, text."""

    def __init__(self, status: int, code: int, text: str):
        super().__init__(text)
        self.status, self.code = status, code


class Engine:
    def __init__(self, data: Path, user: str, folder: Path, backups: Path | None = None):
        import chdb

        server, self.changeable, self.readonly = configuration(folder, user, backups)
        self.user, self.folder = user, folder
        self.connection = chdb.connect(f"{data}?config-file={server}")
        self.lock = threading.Lock()
        self.inserts = 0

    def run(self, sql: str, arguments: dict[str, str], body: bytes) -> bytes:
        settings = {k: v for k, v in arguments.items()
                    if k not in RESERVED and not k.startswith("param_")}  # fmt: skip
        for name in settings:
            if self.readonly and name not in self.changeable:
                text = f"Cannot modify '{name}' setting in readonly mode. (READONLY)"
                raise Failure(500, 164, f"Code: 164. DB::Exception: {text}")
        if sql.strip() == HELLO:
            return hello()
        form = arguments.get("default_format", "TabSeparated")
        if asked := re.search(r"\sFORMAT\s+(\w+)\s*$", sql):
            sql, form = sql[: asked.start()], asked[1]
        parameters = {k[6:]: v for k, v in arguments.items() if k.startswith("param_")}
        if sql.lstrip().upper().startswith("INSERT") and body:
            return self.insert(sql, form, body)
        if settings:
            sql += " SETTINGS " + ", ".join(f"{k} = '{v}'" for k, v in settings.items())
        return self.query(sql, form, parameters)

    def insert(self, sql: str, form: str, body: bytes) -> bytes:
        """A body of rows: the engine reads it from a file."""
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(body)
            file.flush()
            self.query(f"{sql} FROM INFILE '{file.name}' FORMAT {form}", "TabSeparated", {})
        self.inserts += 1
        return b""

    def query(self, sql: str, form: str, parameters: dict[str, str]) -> bytes:
        with self.lock:
            try:
                result = self.connection.query(sql, form, params=parameters)
            except Exception as error:
                text = str(error)
                code = int((re.search(r"Code: (\d+)", text) or [0, 1000])[1])
                status = {60: 404, 81: 404, 497: 403, 159: 408, 62: 400}.get(code, 500)
                raise Failure(status, code, text) from error
            return bytes(result.bytes())


def hello() -> bytes:
    """Answers what clickhouse-go asks first, as a Native block of its own protocol version.

    Later blocks have the version that this answers as `revision()`; 0 is what the engine writes.
    """

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    block = b"\x01\x00\x02" + struct.pack("<i", -1) + b"\x00" + bytes([4, 1])
    for name, kind, data in (
        ("displayName()", "String", text("chdb")),
        ("version()", "String", text("26.9.2.1")),
        ("revision()", "UInt32", struct.pack("<I", 0)),
        ("timezone()", "String", text("UTC")),
    ):
        block += text(name) + text(kind) + b"\x00" + data
    return block


def handler(engine: Engine):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path == "/ping":
                self.answer(200, b"Ok.\n")
            elif self.path == "/inserts":  # for the tests alone
                self.answer(200, str(engine.inserts).encode())
            else:
                self.do_POST()

        def do_POST(self):
            url = urllib.parse.urlsplit(self.path)
            arguments = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            body = self.body()
            try:
                self.check_password(arguments)
                sql = arguments.get("query")
                if sql is None:
                    sql, body = body.decode(), b""
                self.answer(200, engine.run(sql, arguments, body))
            except Failure as failure:
                self.answer(failure.status, str(failure).encode() + b"\n", failure.code)

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def check_password(self, arguments):
            user, password = arguments.get("user", "default"), arguments.get("password", "")
            if self.headers.get("x-clickhouse-user"):
                user = self.headers["x-clickhouse-user"]
                password = self.headers.get("x-clickhouse-key", "")
            elif self.headers.get("authorization", "").startswith("Basic "):
                pair = base64.b64decode(self.headers["authorization"][6:]).decode()
                user, _, password = pair.partition(":")
            if user != engine.user or password != PASSWORDS[user]:
                text = f"{user}: Authentication failed: password is incorrect, or there is no user"
                raise Failure(403, 516, f"Code: 516. DB::Exception: {text} with such name.")

        def answer(self, status, body, code=0):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if code:
                self.send_header("x-clickhouse-exception-code", str(code))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return Handler


def inserts(port: int) -> int:
    """Inserts that this engine has done since it started."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/inserts") as response:
        return int(response.read())


def ask(port: int, user: str, sql: str, **settings) -> str:
    """One query over the interface; the error's text is in the exception's notes."""
    address = f"http://127.0.0.1:{port}/?{urllib.parse.urlencode(settings)}"
    request = urllib.request.Request(address, sql.encode())
    request.add_header("X-ClickHouse-User", user)
    request.add_header("X-ClickHouse-Key", PASSWORDS[user])
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        error.add_note(error.read().decode("utf-8", "replace")[:1000])
        raise


def inserter(port: int, user: str):
    """A sink for otlp.serve that writes as the collector's exporter does, as that user."""

    def insert(rows):
        for table, items in rows.items():
            lines = "\n".join(json.dumps(item) for item in map(as_json, items))
            sql = f"INSERT INTO otel.{table} FORMAT JSONEachRow"
            ask(port, user, lines, query=sql, async_insert="false")

    return insert


@contextlib.contextmanager
def serve(data: Path, user: str, port: int = 0, schema: bool = True, backups: Path | None = None):
    """The interface in a process of its own, which has `port`; `kill()` is a kill -9."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "port"
        command = [sys.executable, "-m", "tests.fakes.clickhouse_http", "--data", str(data)]
        command += ["--user", user, "--port", str(port), "--port-file", str(ready)]
        command += [] if schema else ["--no-schema"]
        command += ["--backups", str(backups)] if backups else []
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            deadline = time.monotonic() + 120
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the engine did not start as {user}: {process.poll()}")
                time.sleep(0.02)
            process.port = int(ready.read_text())
            yield process
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--user", choices=PASSWORDS, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-schema", action="store_true")
    parser.add_argument("--backups", type=Path, help="folder of the disk `backups`")
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(options.data, options.user, Path(folder), options.backups)
        if options.user == "gaia_admin" and not options.no_schema:
            apply_schema(lambda sql: engine.query(sql, "TabSeparated", {}), definer="gaia_admin")
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(engine))
        server.daemon_threads = True
        temporary = options.port_file.with_suffix(".tmp")
        temporary.write_text(str(server.server_port))
        os.replace(temporary, options.port_file)
        server.serve_forever()


if __name__ == "__main__":
    main()
