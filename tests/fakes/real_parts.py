"""Real parts of the stack without containers: the collector, Caddy, and clickhouse-go.

They are built with Go from pinned modules (the module proxy is needed once) and run with deploy/'s
own configuration; only addresses, secrets' files and the transport to ClickHouse (HTTP instead of
native, without compression) are overlaid.

The binaries outlive a test run, which has a GAIA_HOME of its own: they are kept by their versions
in $GAIA_TEST_PARTS, or else in gaia-test-parts below the user's cache ($XDG_CACHE_HOME, ~/.cache).
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.fakes.clickhouse_http import PASSWORDS

ROOT = Path(__file__).resolve().parents[2]
COLLECTOR = ROOT / "tests/fakes/collector"
OCB = "go.opentelemetry.io/collector/cmd/builder@v0.165.0"
CADDY = "github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.4"
TOKEN = "t0ken"


def parts_home() -> Path:
    """The folder of binaries that were built before."""
    if chosen := os.environ.get("GAIA_TEST_PARTS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gaia-test-parts"


def build(name: str, recipe: str, commands: list[list[str]], copy: Path | None = None) -> Path:
    """A binary called `name`, built once per recipe and machine type; skips where Go is missing."""
    key = f"{recipe}\n{platform.system()} {platform.machine()}"
    target = parts_home() / hashlib.sha256(key.encode()).hexdigest()[:16] / name
    if target.exists():
        return target
    if shutil.which("go") is None:
        pytest.skip(f"{name} is built with Go, which is not installed")
    work = target.with_suffix(f".{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        if copy is not None:
            shutil.copytree(copy, work)
        work.mkdir(parents=True, exist_ok=True)
        for command in commands:
            env = os.environ | {"GOBIN": str(work / "bin"), "GOFLAGS": "-buildvcs=false"}
            subprocess.run(
                command, cwd=work, check=True, env=env, capture_output=True, timeout=1500
            )
        # In one step: another test run may be looking, or building the same.
        os.replace(next(p for p in work.rglob(name) if p.is_file()), target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def collector_binary() -> Path:
    recipe = (COLLECTOR / "builder.yaml").read_text()
    commands = [["go", "run", OCB, "--config", "builder.yaml"]]
    return build("otelcol", recipe + OCB, commands, COLLECTOR)


def caddy_binary() -> Path:
    return build("caddy", CADDY, [["go", "install", CADDY]])


def reader_binary() -> Path:
    folder = COLLECTOR / "reader"
    recipe = "".join((folder / name).read_text() for name in ("main.go", "go.mod", "go.sum"))
    return build("reader", recipe, [["go", "build", "-mod=readonly", "."]], folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    """Somebody listens there; raises OSError where nobody does."""
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


def wait_for(what, process: subprocess.Popen | None = None, seconds: float = 120.0):
    """Until `what()` is true; an OSError counts as false."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if got := what():
                return got
        assert process is None or process.poll() is None, f"ended with {process.poll()}"
        time.sleep(0.1)
    raise AssertionError(f"did not come true in {seconds} s: {what}")


class Collector:
    """The collector with deploy/collector/config.yaml; start, kill -9 and start again.

    Args:
        folder: for its log, secrets and overlay.
        clickhouse_port: of the HTTP interface.
        queue: the folder of its queue on disk.
    """

    def __init__(self, folder: Path, clickhouse_port: int, queue: Path):
        self.binary, self.folder = collector_binary(), folder
        self.grpc, self.http, self.health = free_port(), free_port(), free_port()
        folder.mkdir()
        (folder / "token").write_text(TOKEN)
        (folder / "password").write_text(PASSWORDS["otel_writer"])
        address = f"http://127.0.0.1:{clickhouse_port}?dial_timeout=10s&compress=none"
        overlay = {
            "extensions": {
                "health_check": {"endpoint": f"127.0.0.1:{self.health}"},
                "bearertokenauth": {"filename": str(folder / "token")},
                "file_storage/queue": {
                    "directory": str(queue), "compaction": {"directory": str(queue)},
                },
            },
            "receivers": {"otlp": {"protocols": {
                "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"},
                "http": {"endpoint": f"127.0.0.1:{self.http}"},
            }}},
            "exporters": {"clickhouse": {
                "endpoint": address, "password": f"${{file:{folder / 'password'}}}",
            }},
            "service": {"telemetry": {"metrics": {"level": "none"}}},
        }  # fmt: skip
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [str(self.binary), "--config", str(ROOT / "deploy/collector/config.yaml")]
        command += ["--config", str(self.folder / "overlay.yaml")]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{self.health}/"
        wait_for(lambda: urllib.request.urlopen(address).status == 200, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def caddy(folder: Path, collector: Collector):
    """Caddy with deploy/caddy/Caddyfile for localhost: the OTLP addresses and the CA file."""
    folder.mkdir()
    ports = {"443": free_port(), "4317": free_port(), "4318": free_port(), "8123": free_port()}
    text = (ROOT / "deploy/caddy/Caddyfile").read_text()
    text = text.replace("https://{$GAIA_DOMAIN} {", f"https://localhost:{ports['443']} {{")
    for port in ("4317", "4318"):
        text = text.replace(f"https://{{$GAIA_DOMAIN}}:{port}", f"https://localhost:{ports[port]}")
    text = text.replace("http://:8123 {", f"http://127.0.0.1:{ports['8123']} {{")
    text = text.replace("collector:4317", f"127.0.0.1:{collector.grpc}")
    text = text.replace("collector:4318", f"127.0.0.1:{collector.http}")
    options = (
        f"admin off\nauto_https disable_redirects\nskip_install_trust\nhttp_port {free_port()}"
    )
    (folder / "Caddyfile").write_text(f"{{\n{options}\nhttps_port {ports['443']}\n}}\n{text}")
    env = os.environ | {"XDG_DATA_HOME": str(folder), "HOME": str(folder)}
    command = [str(caddy_binary()), "run", "--config", str(folder / "Caddyfile")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    authority = folder / "caddy/pki/authorities/local/root.crt"
    try:
        wait_for(authority.exists, process)
        wait_for(lambda: answers(int(ports["4318"])), process)
        yield {
            "http/protobuf": f"https://localhost:{ports['4318']}",
            "grpc": f"https://localhost:{ports['4317']}",
            "certificate": str(authority),
        }
    finally:
        process.terminate()
        process.wait(30)


def read(port: int, user: str, queries: list[str], timeout_s: int) -> list[dict]:
    """Reads through clickhouse-go, with the deadline that Grafana's data source sets."""
    done = subprocess.run(
        [str(reader_binary()), f"127.0.0.1:{port}", user, str(timeout_s)],
        input="".join(" ".join(sql.split()) + "\n" for sql in queries),
        env=os.environ | {"GAIA_CLICKHOUSE_PASSWORD": PASSWORDS[user]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
