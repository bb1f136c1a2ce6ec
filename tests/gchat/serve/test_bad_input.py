"""Requests that cannot work: an error in OpenAI's shape, and the server goes on."""

import contextlib
import http.client
import json
import logging
import socket
import time

import pytest

import serving
from gchat.serve.connection import Connection
from gchat.serve.keys import Keys, new
from gchat.serve.limits import Rates
from tests.fakes import openai_api

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "x"}]


def refusal(response, status):
    """The error in an answer, which must have this status and OpenAI's shape."""
    assert response.status_code == status, (response.status_code, response.text)
    body = response.json()
    assert not openai_api.problems("ErrorResponse", body)
    return body["error"]


BAD = {
    "no model": (CHAT, {"messages": HELLO}, 400, "model"),
    "an unknown model": (CHAT, {"model": "big", "messages": HELLO}, 404, "model"),
    "a number for a model": (CHAT, {"model": 3, "messages": HELLO}, 400, "model"),
    "no messages": (CHAT, {"model": "tiny"}, 400, "messages"),
    "messages of nothing": (CHAT, {"model": "tiny", "messages": []}, 400, "messages"),
    "no content": (CHAT, {"model": "tiny", "messages": [{"role": "user"}]}, 400, "messages.0"),
    "a role": (CHAT, {"model": "tiny", "messages": [{"role": "x", "content": ""}]}, 400,
               "messages.0.role"),
    "a late instruction": (CHAT, {"model": "tiny", "messages": [
        *HELLO, {"role": "system", "content": "x"}]}, 400, "messages.1.role"),
    "a picture": (CHAT, {"model": "tiny", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, None),
    "an unknown field": (CHAT, {"model": "tiny", "messages": HELLO, "temprature": 1}, 400,
                         "temprature"),
    "n": (CHAT, {"model": "tiny", "messages": HELLO, "n": 1000}, 400, "n"),
    "n of nothing": (PLAIN, {"model": "tiny", "prompt": "x", "n": 0}, 400, "n"),
    "max_tokens": (CHAT, {"model": "tiny", "messages": HELLO, "max_tokens": 10**6}, 400,
                   "max_tokens"),
    "a negative max_tokens": (PLAIN, {"model": "tiny", "prompt": "x", "max_tokens": -1}, 400,
                              "max_tokens"),
    "a text for a number": (PLAIN, {"model": "tiny", "prompt": "x", "max_tokens": "5"}, 400,
                            "max_tokens"),
    "a hot temperature": (PLAIN, {"model": "tiny", "prompt": "x", "temperature": 3}, 400,
                          "temperature"),
    "a penalty": (PLAIN, {"model": "tiny", "prompt": "x", "presence_penalty": 1}, 400,
                  "presence_penalty"),
    "a long prompt": (PLAIN, {"model": "tiny", "prompt": "fox " * 2000}, 400, None),
    "no prompt": (PLAIN, {"model": "tiny"}, 400, "prompt"),
    "an empty list": (PLAIN, {"model": "tiny", "prompt": []}, 400, None),
    "an id beyond": (PLAIN, {"model": "tiny", "prompt": [5, 400]}, 400, "prompt"),
    "a negative id": (PLAIN, {"model": "tiny", "prompt": [-5]}, 400, None),
    "half a character": (PLAIN, {"model": "tiny", "prompt": "\ud83d"}, 400, None),
    "an empty stop": (PLAIN, {"model": "tiny", "prompt": "x", "stop": [""]}, 400, "stop"),
    "a bias beyond": (PLAIN, {"model": "tiny", "prompt": "x", "logit_bias": {"999": 1}}, 400,
                      "logit_bias"),
    "a schema that nothing fits": (CHAT, {"model": "tiny", "messages": HELLO, "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}}}, 400, None),
    "a grammar of gigabytes": (PLAIN, {"model": "tiny", "prompt": "x", "structured_outputs": {
        "regex": "(a{1000}){1000}"}}, 400, None),
    "a call of nothing": (CHAT, {"model": "tiny", "messages": HELLO, "tool_choice": "required"},
                          400, "tool_choice"),
    "a stored response": ("/v1/responses", {"model": "tiny", "input": "x",
                          "previous_response_id": "y"}, 400, "previous_response_id"),
    "no text to encode": ("/tokenize", {}, 400, "prompt"),
    "an id to decode": ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
    "n_predict": ("/completion", {"prompt": "x", "n_predict": 10**6}, 400, "n_predict"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_field_is_named(server, name):
    path, body, status, param = BAD[name]
    for streamed in ({}, {"stream": True}) if path in (CHAT, PLAIN) else ({},):
        raw = json.dumps(body | streamed).encode()
        answer = server.http.post(path, content=raw, headers={"content-type": "application/json"})
        error = refusal(answer, status)
        assert error["message"] and "Traceback" not in error["message"]
        if param is not None:
            assert error["param"] == param
    assert server.idle()


@pytest.mark.parametrize(
    ("raw", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "application/json", 400),
        (b'{"model": "tiny", "prompt": "x", "metadata": 1e999}', "application/json", 400),
        (
            b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
            "application/json",
            400,
        ),
        (b'{"a":' * 100_000, "application/json", 400),
        (b'{"model": "tiny", "prompt": "x"}', "text/plain", 415),
        (b"model=tiny", "application/x-www-form-urlencoded", 415),
        (b'{"model": "' + b"x" * (5 << 20), "application/json", 413),
    ],
)
def test_bodies_that_are_none(server, raw, kind, status):
    refusal(server.http.post(PLAIN, content=raw, headers={"content-type": kind}), status)


def test_a_body_without_a_length_that_is_too_large(server):
    """The client that still sends is heard out: it would find the connection reset."""
    sent = (b"x" * 65_536 for _ in range(300))
    refusal(
        server.http.post(PLAIN, content=sent, headers={"content-type": "application/json"}), 413
    )
    assert next(sent, None) is None


def test_paths_and_methods(server):
    refusal(server.http.get("/v1/nothing"), 404)
    refusal(server.http.get(PLAIN), 405)
    refusal(server.http.get("/v1/models/none"), 404)


def sent(port, raw, wait=5.0):
    """All that the server says to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        connection.sendall(raw)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_no_http_and_silent_or_slow_clients(monkeypatch):
    """None of them holds a connection for longer than its limit."""
    monkeypatch.setattr(Connection, "head_s", 0.3)
    monkeypatch.setattr(Connection, "stalled_s", 0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving.running(body_s=0.3) as server:
        answer = sent(server.port, b"\x16\x03\x01 no http\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400") and b'"error"' in answer
        assert sent(server.port, b"") == b""  # it says nothing, and is closed
        assert sent(server.port, b"POST /v1/comp") == b""
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        with contextlib.closing(kept):
            for _ in range(2):  # a second request is no matter, half a third one is
                kept.request("GET", "/health")
                assert kept.getresponse().read() == b'{"status":"ok"}'
            kept.sock.sendall(b"GET / HT")
            assert kept.sock.recv(1) == b""
        late = sent(server.port, head + b"Content-Length: 100\r\n\r\n{")
        assert late.startswith(b"HTTP/1.1 408") and b'"error"' in late
        body = json.dumps({"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 900,
                           "n": 64, "logprobs": 20, "temperature": 2}).encode()  # fmt: skip
        # Small buffers of the kernel: connections have those of their listener.
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with raw:
            raw.connect(("127.0.0.1", server.port))
            raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            end = time.monotonic() + 30  # it reads nothing: the server ends its answers
            while server.server.server_state.connections and time.monotonic() < end:
                time.sleep(0.02)
        assert not server.server.server_state.connections
        assert server.idle()
        assert server.post(PLAIN, model="tiny", prompt="x", max_tokens=1).status_code == 200


def test_keys_rates_and_a_log_without_secrets(caplog):
    key, line = new("alice")
    other = new("mallory")[0]
    keys = Keys(dict([line.split(":sha256:")]))
    service = serving.make_service(keys=keys, rates=Rates(3, None))
    ask = {"model": "tiny", "prompt": "the secret of the prompt", "max_tokens": 1}
    with caplog.at_level(logging.DEBUG), serving.running(service) as server:
        assert server.http.get("/health").status_code == 200
        for header in ({}, {"Authorization": f"Bearer {other}"}, {"Authorization": key},
                       {"Authorization": "Bearer \xff\xfe"}):  # fmt: skip
            raw = {name: value.encode("latin-1") for name, value in header.items()}
            error = refusal(server.http.post(PLAIN, json=ask, headers=raw), 401)
            assert error["code"] == "invalid_api_key" and other not in error["message"]
        refusal(server.http.get("/v1/models"), 401)
        refusal(server.http.get("/metrics"), 401)
        right = {"Authorization": f"Bearer {key}"}
        assert server.http.get("/v1/models", headers=right).status_code == 200
        for _ in range(3):
            assert server.http.post(PLAIN, json=ask, headers=right).status_code == 200
        limited = server.http.post(f"{PLAIN}?key={key}", json=ask, headers=right)
        assert refusal(limited, 429)["code"] == "rate_limit_exceeded"
        assert 1 <= int(limited.headers["Retry-After"]) <= 20
        server.http.get(f"/v1/{key}", headers=right)
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))
    assert "alice" in ours and "401" in ours
    for secret in (key, other, "secret of the prompt"):
        assert secret not in ours
