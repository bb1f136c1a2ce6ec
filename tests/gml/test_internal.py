"""Machines without external addresses: a bastion (ProxyJump) and IAP, over real sshd."""

from __future__ import annotations

import base64
import getpass
import json
import os
import struct
import sys
from pathlib import Path

import pytest

from gml.errors import UsageError
from gml.places import region_of
from gml.remote.keys import check_key
from tests.fakes.gml_kit import CONFIG, make_fleet

CREATE = ("node", "create", "-t", "v6e-8", "-p", "google", "--timeout", "1h", "--name", "k",
          "--strategy", "gce", "--zone", "us-east5-b", "--internal-ip")  # fmt: skip
RELAY = """#!{python}
# Stands in for `gcloud compute start-iap-tunnel`: writes down its words, and carries the bytes.
import os, socket, sys, threading
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
there = socket.create_connection(("127.0.0.1", int(sys.argv[4])))
def up():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def configure(home: Path, key: Path, more: str) -> None:
    text = CONFIG.format(key=key) + f'[google]\nssh_user = "{getpass.getuser()}"\n{more}'
    (home / "config.toml").write_text(text)


def test_a_bastion_is_the_only_way_in(server, sshd_farm, gml, home, repo):
    folder, servers = sshd_farm
    machine, bastion = servers[0], servers[1]
    configure(home, folder / "key", f'tunnel = "{bastion.address}"\n')
    server.cloud.addresses = [("127.0.0.1", machine.port)]
    done = gml(*CREATE)
    assert done.returncode == 0, done.stderr
    (raw,) = [r for n, r in server.cloud.resources.items() if "/instances/" in n]
    assert "accessConfigs" not in raw["networkInterfaces"][0]
    assert gml("exec", "k", "--", "echo $HOME").stdout.strip() == str(machine.home)
    assert gml("sync", "k", "--folder", str(repo), "--dest", "w").returncode == 0
    assert (machine.home / "w" / "main.py").exists()
    text = (home / "ssh_config").read_text()
    assert "ProxyJump gml-bastion" in text and f"Port {bastion.port}" in text
    assert "gml-bastion ssh-ed25519" in (home / "known_hosts").read_text()
    # Another bastion, where nothing listens: then there is no way in.
    make_fleet().ssh._control("k", "exit")  # the shared connection would go on working
    configure(home, folder / "key", f'tunnel = "{getpass.getuser()}@127.0.0.1:1"\n')
    assert gml("exec", "k", "--", "true").returncode == 255
    gml("node", "delete", "k")


@pytest.mark.slow
def test_iap_is_asked_for_the_machine_by_name(server, sshd_farm, gml, home, tmp_path, monkeypatch):
    folder, servers = sshd_farm
    configure(home, folder / "key", 'tunnel = "iap"\ninternal_ip = "yes"\n')
    server.cloud.addresses = [("127.0.0.1", servers[0].port)]
    log = tmp_path / "gcloud.log"
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(RELAY.format(python=sys.executable, log=str(log)))
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = gml(*CREATE[:-1])  # the setting alone is enough
    assert done.returncode == 0, done.stderr
    assert gml("exec", "k", "--", "echo in").stdout == "in\n"
    assert log.read_text().splitlines()[0] == (
        f"compute start-iap-tunnel gml-k {servers[0].port} --listen-on-stdin --project proj-123 "
        "--zone us-east5-b --verbosity warning"
    )
    gml("node", "delete", "k")


@pytest.mark.parametrize(
    ("words", "config", "says"),
    [
        (("-p", "lambda", "-t", "gpu_1x_gh200"), "", "--internal-ip is for --provider google"),
        (("--strategy", "node"), 'tunnel = "iap"', "IAP reaches Compute Engine's machines only"),
        ((), 'tunnel = "a b"', "google.tunnel 'a b' is not a host"),
        ((), 'internal_ip = "maybe"', "google.internal_ip = 'maybe' is unknown"),
        (("--runtime-version", "v2"), "", "--runtime-version is the TPU API's"),
        (("--strategy", "node", "--runtime-version", "V 2"), "", "is not a version"),
    ],
)
def test_what_can_not_be_reached_is_told_before_it_is_made(server, home, gml, words, config, says):
    configure(home, home.parent / "key", config + "\n")
    done = gml(*CREATE, *words)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert server.cloud.mutations() == []


def test_the_tpu_api_gets_the_runtime_version_and_no_external_address(server, home, gml):
    words = [w if w != "gce" else "node" for w in CREATE]
    done = gml(*words, "--runtime-version", "v2-alpha-tpuv6e-base", "--dry-run")
    body = json.loads(done.stdout)["requests"][0]["body"]
    assert body["runtimeVersion"] == "v2-alpha-tpuv6e-base"
    assert body["networkConfig"]["enableExternalIps"] is False
    done = gml(*words[:-1], "--dry-run")
    assert json.loads(done.stdout)["requests"][0]["body"]["networkConfig"]["enableExternalIps"]


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east5-b", "us-east5"),
        ("us-central1-ai1a", "us-central1"),
        ("us-south1-ai1b", "us-south1"),
        ("us-east5", "us-east5"),
        ("us-west-1", "us-west-1"),  # Lambda's regions are their own places
        ("box-a", "box-a"),
    ],
)
def test_zones_lie_in_regions(zone, region):
    assert region_of(zone) == region


def hardware_key(path: Path) -> Path:
    """A security key's private file (PROTOCOL.u2f of OpenSSH): a handle, and no secret."""

    def text(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    kind, public = b"sk-ssh-ed25519@openssh.com", os.urandom(32)
    shown = text(kind) + text(public) + text(b"ssh:")
    inner = struct.pack(">II", 7, 7) + shown + b"\x01" + text(os.urandom(64)) + text(b"")
    inner += text(b"test")
    inner += bytes(range(1, 1 + -len(inner) % 8))
    whole = b"openssh-key-v1\0" + text(b"none") + text(b"none") + text(b"")
    whole += struct.pack(">I", 1) + text(shown) + text(inner)
    folded = base64.encodebytes(whole).decode()
    begin, end = (f"-----{word} OPENSSH PRIVATE KEY-----" for word in ("BEGIN", "END"))
    path.write_text(f"{begin}\n{folded}{end}\n")
    path.chmod(0o600)
    path.with_name(f"{path.name}.pub").write_text(
        f"{kind.decode()} {base64.b64encode(shown).decode()} test\n"
    )
    return path


def test_a_hardware_key_without_its_token_is_one_line_before_anything_is_made(server, home, gml):
    configure(home, hardware_key(home / "id_ed25519_sk"), "")
    with pytest.raises(UsageError, match="its token does not answer"):
        check_key(make_fleet().config)
    done = gml(*CREATE)
    assert done.returncode == 2 and "plug it in" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert server.cloud.mutations() == []
    checks = json.loads(gml("doctor", "-p", "google", "--json").stdout)["checks"]
    (key,) = [c for c in checks if c["check"] == "ssh key"]
    assert not key["ok"] and "token" in key["detail"]


def test_own_hosts_take_jump_and_agent_from_the_users_configuration(sshd_farm, gml, home, tmp_path):
    """ProxyJump and IdentityAgent of ~/.ssh/config, against real servers and a real agent."""
    import subprocess

    folder, servers = sshd_farm
    user = Path(os.environ["HOME"]) / ".ssh"
    socket = home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert agent.poll() is None
        env = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", str(folder / "key")], check=True, env=env)
        name = getpass.getuser()
        common = f"  User {name}\n  IdentityAgent {socket}\n  StrictHostKeyChecking no\n"
        common += f"  UserKnownHostsFile {tmp_path}/known\n"
        common = f"  HostName 127.0.0.1\n{common}"
        (user / "config").write_text(
            f"Host inner\n  Port {servers[2].port}\n  ProxyJump outer\n{common}"
            f"Host outer\n  Port {servers[3].port}\n{common}"
        )
        text = 'owner = "tester"\nssh_key = "/none"\nbackoff_s = 0.01\n'
        (home / "config.toml").write_text(text + '[local.hosts]\nbox = ["inner"]\n')
        words = ("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h")
        done = gml(*words, "--name", "j")
        assert done.returncode == 0, done.stderr
        assert gml("exec", "j", "--", "echo $HOME").stdout.strip() == str(servers[2].home)
        assert "-W [%h]:%p outer" in (home / "ssh_config").read_text()
        assert gml("node", "delete", "j").returncode == 0
    finally:
        agent.terminate()
        agent.wait()


def test_data_in_the_region_of_an_ai_zone_is_near(server, home, gml, repo):
    """docs.cloud.google.com/compute/docs/regions-zones: AI zones belong to their region."""
    server.cloud.buckets["central"] = "US-CENTRAL1"
    words = (
        "run",
        "-p",
        "google",
        "-t",
        "tpu7x-8",
        "--zone",
        "us-central1-ai1a",
        "--timeout",
        "1h",
    )
    done = gml(*words, "--data", "gs://central/x", "--dry-run", "--", "true", cwd=repo)
    assert done.returncode == 0, done.stderr
    assert "data streams from gs://central/x (us-central1)" in done.stderr
    done = gml(*words, "--data", "gs://here/x", "--dry-run", "--", "true", cwd=repo)
    assert done.returncode == 2 and "the machine in us-central1;" in done.stderr, done.stderr
