"""deploy/serve without containers: each RUN line in a clean environment, files by their schemas."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

import chat_nginx
import runs
from dockerfile import PINNED, Dockerfile

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy/serve"
DOCKERFILE = Dockerfile(DEPLOY / "Dockerfile")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"), vocab_size=300)


def test_images_are_pinned_and_nothing_but_the_proxy_is_public():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert PINNED.match(DOCKERFILE.values("FROM")[0])
    for name, service in services.items():
        assert PINNED.match(service["image"]) or service["image"] == "gaia-serve"
        assert (name == "caddy") == ("ports" in service)
        assert service["restart"] == "unless-stopped"
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
    assert services["caddy"]["ports"] == ["${GCHAT_BIND:-127.0.0.1}:443:443"]
    assert {"--ctx-size=4096", "--n-predict=1024"} <= set(services["llama"]["command"])
    build = services["gchat"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_caddy_reaches_the_front_of_llama_as_the_documents_start_it():
    text = (DEPLOY / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    upstream = services["caddy"]["environment"]["GCHAT_UPSTREAM"]
    assert upstream == "${GCHAT_UPSTREAM:-gchat:8000}"
    for page in (text, (ROOT / "docs/serving.md").read_text()):
        assert re.search(r"GCHAT_UPSTREAM=(\w+):8000", page)[1] == "front"
        # Not gchat, which has no run there; so the front builds the image itself.
        assert re.search(r"--profile llama up -d (.*?)[`\n]", page)[1] == "front caddy"
    assert services["front"]["build"] == services["gchat"]["build"]


def test_the_servers_options_are_options():
    """Whatever the files start, `gchat serve` takes."""
    from gaia.config import parse
    from gchat.serve.options import Serve

    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    entry = json.loads(DOCKERFILE.values("ENTRYPOINT")[0])[2:]
    commands = [entry + json.loads(DOCKERFILE.values("CMD")[0])]
    commands += [entry + [str(word) for word in compose["services"][name]["command"]]
                 for name in ("gchat", "front")]  # fmt: skip
    unit = (DEPLOY / "gchat-serve.service").read_text()
    plain = re.search(r"gchat serve (.*)", unit.split("ExecStart=")[1])[1]
    options = re.search(r'^Environment="GCHAT_OPTIONS=([^"]+)"', unit, re.M)[1]
    commands.append(plain.replace("$GCHAT_OPTIONS", options).split())
    for command in commands:
        given = parse(Serve, command)
        given.check()
        assert given.api_keys
        # Both wait longer than answers that have begun may take.
        assert given.drain < int(re.search(r"TimeoutStopSec=(\d+)", unit)[1])
    for name in ("gchat", "front"):
        assert compose["services"][name]["stop_grace_period"] == "45s"
    llama = (DEPLOY / "llama-server.service").read_text()
    assert "--ctx-size 4096 --n-predict 1024" in llama and "Restart=always" in llama


def test_proxies_pass_events_as_they_come():
    nginx = (DEPLOY / "nginx.conf").read_text()
    for line in ("proxy_buffering off;", "gzip off;", "proxy_http_version 1.1;",
                 "proxy_read_timeout 600s;"):  # fmt: skip
        assert line in nginx
    assert "flush_interval -1" in (DEPLOY / "Caddyfile").read_text()


@pytest.mark.slow
def test_compose_by_its_schema():
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed (slow.txt)")
    for file in (DEPLOY / "compose.yaml", ROOT / "deploy/compose.yaml"):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema",
                   "vendor.compose-spec", file]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_units_by_systemd(tmp_path):
    """Their programs are not here; all else must be as systemd wants it."""
    for file in DEPLOY.glob("*.service"):
        text = re.sub(r"/opt/gaia/.venv/bin/gchat|/usr/local/bin/llama-server", "/bin/true",
                      file.read_text())  # fmt: skip
        (tmp_path / file.name).write_text(text)
    shutil.copy(DEPLOY / "gchat-health@.timer", tmp_path)
    for name in ("gchat-serve.service", "llama-server.service", "gchat-health@8000.timer"):
        unit = tmp_path / name
        if "@8000" in name:
            unit.symlink_to(tmp_path / "gchat-health@.timer")
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        ours = [line for line in (done.stdout + done.stderr).splitlines() if str(tmp_path) in line
                or line.startswith(("gchat", "llama"))]  # fmt: skip
        assert not ours, ours


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (apt install nginx-light)")
def test_nginx_takes_its_file(tmp_path):
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout",
         key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    text = (DEPLOY / "nginx.conf").read_text()
    text = text.replace("/etc/letsencrypt/live/chat.example.org", str(tmp_path))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log;\nevents {{}}\nhttp {{\n{text}\n}}\n"
    )
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_each_line_of_the_dockerfile_in_a_clean_environment(data_dir, tmp_path):
    """Makes what the image would hold, in an empty folder with an empty home; then it serves."""
    work, environment = DOCKERFILE.build(tmp_path)
    folder = tmp_path / "run"
    from gchat.__main__ import main

    assert main(["train", *runs.arguments(data_dir, folder, steps=10)]) == 0
    port = chat_nginx.free_port()
    command = [*DOCKERFILE.entry(port), "--run", f"model={folder}"]
    server = subprocess.Popen(command, cwd=work, env=environment)
    try:
        DOCKERFILE.wait_until_healthy(server, port, work)
        body = {"model": "model", "prompt": "the small", "max_tokens": 3}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
