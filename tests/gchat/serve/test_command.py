"""`gchat serve` as people start it: options, keys, a port in use, and the end of the process."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import runs
from gchat.__main__ import main

ROOT = Path(__file__).parents[3]

BAD = {
    "nothing": ([], "neither --run nor --upstream"),
    "no run": (["--run", "nowhere"], "nowhere"),
    "two of one name": (["--run", "a/x", "b/x"], "name of its own"),
    "no slots": (["--run", "x", "--slots", "0"], "--slots is 0"),
    "a rate": (["--run", "x", "--rate", "0"], "--rate is 0"),
    "a drain": (["--run", "x", "--drain", "-1"], "--drain is -1"),
    "no keys": (["--run", "x", "--api-keys", "none"], "none"),
    "a key for nobody": (["--new-key", "alice"], "--api-keys"),
    "an odd name": (["--new-key", "a b", "--api-keys", "keys"], "'a b'"),
    "a key and a run": (["--new-key", "alice", "--api-keys", "keys", "--run", "x"],
                        "--run has no effect beside --new-key; leave it out"),
    "a key and a port": (["--new-key", "alice", "--api-keys", "keys", "--port", "1"], "--port has"),
    "a key on a mesh": (["--new-key", "alice", "--api-keys", "keys", "--mesh.tensor", "2"],
                        "--mesh has no effect beside"),
    "slots of an upstream": (["--upstream", "http://x/v1", "--slots", "2"], "no effect"),
    "upstreams of a run": (["--run", "x", "--upstream-slots", "2"], "no effect without --upstream"),
    "half of llama.cpp": (["--upstream", "http://x/v1", "--upstream-api", "completion"],
                          "--upstream-tokenizer"),
    "an address": (["--run", "x", "--host", "256.0.0.1"], "cannot listen"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_options_that_cannot_work(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args, said = BAD[name]
    assert main(["serve", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not any(tmp_path.iterdir())


def test_a_port_in_use_and_a_new_key(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--run", "nowhere", "--port", port]) == 2
        assert f"port {port} (Address already in use)" in capsys.readouterr().err
    file = tmp_path / "keys"
    assert main(["serve", "--new-key", "alice", "--api-keys", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("sk-gchat-") and key not in file.read_text()


def test_a_file_of_keys_that_is_none_is_refused_and_stays(capsys, tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe")
    for args in (["--new-key", "alice"], ["--run", "x"]):
        assert main(["serve", *args, "--api-keys", str(file)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--api-keys '{file}': not UTF-8; check the path" in line
    assert file.read_bytes() == b"\xff\xfe"


@pytest.mark.slow
def test_a_server_from_its_start_to_its_end(data_dir, tmp_path, capsys):
    """Two runs by name, a key, SIGTERM within a stream: its answer is finished, the status is 0."""
    folder, keys = tmp_path / "run", tmp_path / "keys"
    assert main(["train", *runs.arguments(data_dir, folder, steps=10)]) == 0
    capsys.readouterr()
    assert main(["serve", "--new-key", "alice", "--api-keys", str(keys)]) == 0
    key = capsys.readouterr().out.strip()
    command = [sys.executable, "-m", "gchat", "serve", "--run", f"a={folder}", f"b={folder}",
               "--port", "0", "--api-keys", keys, "--slots", "2"]  # fmt: skip
    server = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if match := re.search(r"serving a, b on (http://127.0.0.1:\d+)/v1", line):
            break
    try:
        url = match[1]  # type: ignore[index]

        def ask(path, body=None):
            head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            raw = None if body is None else json.dumps(body).encode()
            return urllib.request.urlopen(urllib.request.Request(url + path, raw, head), timeout=60)

        with ask("/v1/models") as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["a", "b"]
        body = {"prompt": "the small", "max_tokens": 20, "temperature": 0}
        texts = set()
        for name in ("a", "b"):
            with ask("/v1/completions", body | {"model": name}) as answer:
                texts.add(json.load(answer)["choices"][0]["text"])
        assert len(texts) == 1  # two engines of the same parameters
        with ask("/v1/completions", body | {"model": "b", "stream": True}) as answer:
            first = answer.readline()
            server.send_signal(signal.SIGTERM)
            rest = answer.read().decode()
        assert first.startswith(b"data: ") and rest.endswith("data: [DONE]\n\n")
        said += server.stderr.read().splitlines(keepends=True)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    text = "".join(said)
    assert "gchat serve: ended" in text and "Traceback" not in text
    assert "/v1/completions 200" in text and "alice" in text
    assert key not in text and "the small" not in text
