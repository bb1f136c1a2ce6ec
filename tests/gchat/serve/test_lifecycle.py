"""Clients that leave, engines that fail, and servers that are told to stop."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

import serving
from gaia.errors import ConfigError
from gchat.engine import programs
from gchat.serve import sse
from gchat.serve.http_server import listen
from serving import until

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "x"}]
LONG = {"model": "tiny", "prompt": "The quick", "max_tokens": 900, "temperature": 1, "seed": 1,
        "logit_bias": serving.endless()}  # fmt: skip


@contextlib.contextmanager
def connection(port, path, body):
    """A connection with a request on it that nobody reads the answer of yet."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as made:
        made.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
        yield made


@contextlib.contextmanager
def standing_still(engine):
    """Lets no step begin: what happens meanwhile is what the test does."""
    with engine._lock:
        yield


@pytest.fixture
def counted(monkeypatch):
    """[pieces of prompts read, calls of decoding]"""
    counts = [0, 0]
    for i, name in enumerate(("read_prompt", "decode")):
        real = getattr(programs, name)

        def counting(*args, i=i, real=real):
            counts[i] += 1
            return real(*args)

        monkeypatch.setattr(programs, name, counting)
    return counts


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_prompt_is_read(server, counted, monkeypatch, stream):
    engine, counting = serving.engine(), programs.read_prompt
    gone = threading.Event()

    def waiting(*args):
        made = counting(*args)
        assert gone.wait(20)
        return made

    monkeypatch.setattr(programs, "read_prompt", waiting)
    prompt = [1 + stream, *list(range(1, 300)) * 3]  # 15 pieces of 64 tokens
    with connection(server.port, PLAIN, LONG | {"prompt": prompt, "stream": stream}):
        until(lambda: counted[0] == 1)
    until(lambda: engine._cancelled)
    gone.set()
    assert server.idle() and counted == [1, 0]
    assert len(engine._scheduler.slots.free()) == serving.SLOTS


@pytest.mark.parametrize("path", [CHAT, PLAIN, "/v1/responses", "/completion"])
def test_a_client_that_leaves_within_a_stream_ends_the_work(server, counted, path):
    body = {"model": "tiny", "stream": True}
    endless = {"logit_bias": LONG["logit_bias"]}
    body |= {
        CHAT: {"messages": HELLO, "n": 3} | endless,
        PLAIN: LONG | {"n": 3},
        "/v1/responses": {"input": "x"},
        "/completion": {"prompt": "x"} | endless,
    }[path]  # fmt: skip
    with connection(server.port, path, body) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        until(lambda: counted[1] >= 1)
    assert server.idle()
    steps, calls = server.service.driver.steps, counted[1]
    time.sleep(0.1)
    assert (server.service.driver.steps, counted[1]) == (steps, calls)
    assert server.post(PLAIN, model="tiny", prompt="x", max_tokens=2).status_code == 200


def test_clients_that_leave_the_queue(server, counted, monkeypatch):
    """Those who had their turn pay for their prompts, those who had none do not."""
    queue, used = server.service.models["tiny"].queue, []
    monkeypatch.setattr(server.service.rates, "used", lambda holder, tokens: used.append(tokens))
    with standing_still(serving.engine()), contextlib.ExitStack() as clients:
        for _ in range(12):
            clients.enter_context(connection(server.port, PLAIN, LONG))
        until(lambda: queue.working == serving.SLOTS + 2 and queue.waiting == 12 - queue.working)
        clients.close()
        until(lambda: queue.waiting == 0)
        until(lambda: len(serving.engine()._cancelled) == serving.SLOTS + 2)
    assert server.idle() and counted[1] == 0
    begun, prompt = serving.SLOTS + 2, 1 + len(serving.tokenizer().encode(LONG["prompt"]))
    assert sorted(used) == [0] * (12 - begun) + [prompt] * begun


def test_a_batch_that_leaves_takes_all_of_its_prompts_along(server):
    with connection(
        server.port, PLAIN, LONG | {"prompt": ["a", "b", "c"] * 8, "stream": True}
    ) as c:
        assert c.recv(100)
    assert server.idle()


def test_an_engine_that_fails_answers_so_and_goes_on(server, monkeypatch):
    real = programs.decode

    def failing(*_):
        monkeypatch.setattr(programs, "decode", real)
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(programs, "decode", failing)
    answer = server.post(PLAIN, **LONG)
    assert answer.status_code == 500 and "RESOURCE_EXHAUSTED" in answer.json()["error"]["message"]
    monkeypatch.setattr(programs, "decode", failing)
    *_, last = server.events(CHAT, model="tiny", messages=HELLO)
    assert last["error"]["type"] == "server_error"
    assert server.post(PLAIN, model="tiny", prompt="x", max_tokens=2).status_code == 200
    assert server.idle()


def test_an_answer_that_takes_too_long(server):
    server.service.limit_s = 0.2
    try:
        with standing_still(serving.engine()):
            answer = server.post(PLAIN, **LONG)
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
            *_, last = server.events(
                CHAT, model="tiny", messages=[{"role": "user", "content": "x"}]
            )
            assert last["error"]["code"] == "timeout"
    finally:
        server.service.limit_s = 600
    assert server.idle()


def test_a_stream_that_is_silent_says_so(server, monkeypatch):
    """Comments while the engine stands still, and they are no part of an answer."""
    monkeypatch.setattr(sse, "PING_S", 0.05)
    body = LONG | {"stream": True, "max_tokens": 8}
    with standing_still(serving.engine()), connection(server.port, PLAIN, body) as client:
        silent = b""
        while silent.count(b": still working\n\n") < 3:
            silent += client.recv(1000)
    assert b"data: " not in silent
    monkeypatch.undo()
    assert server.idle()
    events = list(server.events(PLAIN, **body))
    whole = server.post(PLAIN, **LONG | {"max_tokens": 8}).json()
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == whole["choices"][0]["text"]


@pytest.mark.parametrize("drain_s", [20.0, 0.1])
def test_a_server_that_is_told_to_stop(drain_s):
    """Answers that have begun are finished, or end with an error event; none is cut off."""
    service = serving.make_service()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving.running(service, drain_s=drain_s))
        events, began = [], threading.Event()

        def listen():
            for one in server.events(PLAIN, **LONG):
                events.append(one)
                began.set()

        listener = threading.Thread(target=listen)
        kept = server.http.get("/health")  # a connection that stays open
        listener.start()
        began.wait(20)
        if drain_s < 1:
            stack.enter_context(standing_still(serving.engine()))
        server.server.handle_exit(15, None)
        listener.join(30)
        assert kept.status_code == 200 and not listener.is_alive()
        until(lambda: not server.server.server_state.connections)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5).recv(1)
    if drain_s < 1:
        assert events[-1]["error"]["code"] == "shutting_down"
    else:
        assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "length"


def test_small_writes_go_out_at_once():
    """Nagle's algorithm would hold each token of a stream up to 40 ms for an acknowledgement."""

    async def delays(listener):
        accepted = asyncio.Queue()
        server = await asyncio.start_server(lambda _, writer: accepted.put(writer), sock=listener)
        async with server:
            _, mine = await asyncio.open_connection(*listener.getsockname()[:2])
            writer = await accepted.get()
            connection = writer.get_extra_info("socket")
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            mine.close(), writer.close()
            return not told

    for host in ("127.0.0.1", "::1"):
        with contextlib.suppress(ConfigError), listen(host, 0) as listener:  # IPv6 may be missing
            assert not asyncio.run(delays(listener)), host
