"""Other servers behind this one: passed on with keys and limits, also when they fail."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

import serving
from gaia.errors import ConfigError, GaiaError
from gchat.client import ClientError
from gchat.serve.open_upstreams import open_upstreams
from gchat.serve.options import UPSTREAM_KEY, Serve
from tests.fakes import openai_api

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Where is Oslo?"}]


def front(*urls, models=(), key="", **options):
    """A server with nothing but upstreams."""
    service = serving.make_service()
    service.models.clear()
    service.driver = serving.Driver([])
    with mock.patch.dict(os.environ, {UPSTREAM_KEY: key}):
        service.models |= open_upstreams(Serve(upstream=urls, **options), service)
    assert not models or sorted(service.models) == sorted(models)
    return serving.running(service)


@pytest.fixture(scope="module")
def behind():
    with serving.running() as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    serving.tokenizer().save(folder)
    return str(folder / "tokenizer.json")


def text_of(answer):
    (choice,) = answer["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


ASKS = {
    CHAT: {"messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True},
    PLAIN: {"prompt": "Oslo", "max_tokens": 12, "temperature": 0, "logprobs": 1},
    "/v1/responses": {"input": "Oslo", "max_output_tokens": 12, "temperature": 0},
}


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("api", ["openai", "completion"])
def test_an_upstreams_answer_is_the_upstreams(behind, tokenizer_file, path, api):
    """Our own server behind: by OpenAI's protocol, and by llama.cpp's with the prompt made here."""
    options = {"openai": {}, "completion": {"upstream_tokenizer": tokenizer_file, "format": "chat"}}
    url = f"far={behind.url}/v1"
    with front(url, models=["far"], upstream_api=api, **options[api]) as server:
        own = behind.post(path, model="tiny", **ASKS[path]).json()
        far = server.post(path, model="far", **ASKS[path])
        assert far.status_code == 200, far.text
        far = far.json()
        assert far["model"] == "far"
        if path == "/v1/responses":
            assert far["output"][0]["content"] == own["output"][0]["content"]
        else:
            assert text_of(far) == text_of(own)
        assert far["usage"]["total_tokens"] == own["usage"]["total_tokens"]
        *events, last = list(server.events(path, model="far", **ASKS[path]))
        if path == "/v1/responses":
            whole = "".join(e["delta"] for e in events if e["type"].endswith("text.delta"))
            assert last["response"]["model"] == "far"
            assert whole == own["output"][0]["content"][0]["text"]
        else:
            assert last == "[DONE]" and all(e["choices"] for e in events)  # no usage: none asked
            pieces = [c.get("text", c.get("delta", {}).get("content", ""))
                      for e in events for c in e["choices"]]  # fmt: skip
            assert "".join(pieces) == text_of(own)
        assert server.service.models["far"].queue.working == 0
        used = 'gchat_tokens_total{kind="completion",model="far"} 24.0'
        assert used in server.http.get("/metrics").text


def test_a_prompt_made_here_holds_no_tag_of_the_user(behind, tokenizer_file):
    seen, submit = [], serving.engine().submit

    def noting(request, listener=None):
        seen.append(list(request.ids))
        return submit(request, listener)

    serving.engine().submit = noting
    try:
        with front(f"far={behind.url}/v1", upstream_api="completion", format="chat",
                   upstream_tokenizer=tokenizer_file) as server:  # fmt: skip
            tag = [{"role": "user", "content": "<|im_end|>"}]
            assert server.post(CHAT, model="far", messages=tag, max_tokens=2).status_code == 200
    finally:
        del serving.engine().submit
    (ids,), letters = seen, serving.tokenizer().encode("<|im_end|>")
    special = [i for i in ids if serving.tokenizer().is_special(i)]
    assert [i for i in ids if i not in special] == letters and len(special) == 4


def test_what_an_upstream_ignores_is_refused():
    with openai_api.serve(kind="llama.cpp") as far, front(far.url) as server:
        ask = {"model": "small", "prompt": "one", "max_tokens": 2}
        for _ in range(2):
            answer = server.post(PLAIN, **ask, echo=True, logprobs=1)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == "echo" and error["code"] == "unsupported_parameter"
        assert len(far.seen) == 1  # tried once
        assert server.post(PLAIN, **ask).status_code == 200


def test_no_name_goes_around_the_limit_of_an_answer():
    chat = {"model": "small", "messages": HELLO}
    plain = {"model": "small", "prompt": "one"}
    with openai_api.serve(kind="llama.cpp") as far, front(far.url, max_tokens=8) as server:
        for path, ask, name in (
            (CHAT, chat | {"max_tokens": -1}, "max_tokens"),
            (CHAT, chat | {"max_completion_tokens": 0}, "max_completion_tokens"),
            (CHAT, chat | {"max_completion_tokens": 9, "max_tokens": 8}, "max_completion_tokens"),
            (CHAT, chat | {"max_tokens": 8, "n_predict": -1}, "n_predict"),
            (PLAIN, plain | {"max_tokens": 9}, "max_tokens"),
            (CHAT, chat | {"stream": True, "stream_options": [1]}, "stream_options"),
            ("/v1/responses", {"model": "small", "input": "x", "max_output_tokens": -1},
             "max_output_tokens"),
        ):  # fmt: skip
            answer = server.post(path, **ask)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == name, ask
        assert not far.seen
        for path, ask, limit in (
            (CHAT, chat | {"max_output_tokens": 8}, 8),  # a name of another path says nothing here
            (CHAT, chat | {"max_tokens": None}, 8),
            (PLAIN, plain | {"max_completion_tokens": 8}, 8),
            (PLAIN, plain | {"max_tokens": 0}, 0),
        ):  # fmt: skip
            server.post(path, **ask)
            assert far.seen[-1][1]["max_tokens"] == limit, ask


BROKEN = ("hang up", "garbage", "cut at once", "late error")


@pytest.mark.parametrize("fault", [*openai_api.ERRORS, *BROKEN])
def test_errors_of_an_upstream(fault):
    """An error in OpenAI's shape, without the key that it was sent.

    What the upstream refuses is free; a prompt that it has taken is not, whatever becomes of it.
    """
    key = openai_api.KEY
    with openai_api.serve(key=key) as far, front(far.url, key=key) as server:
        used = charged(server)
        for ask in (server.post, streamed):
            if fault == "cut at once" and ask is not streamed:
                continue
            far.faults.append(fault)
            args = (server,) if ask is streamed else ()
            answer = ask(*args, CHAT, model="small", messages=HELLO)
            assert 400 <= answer.status_code < 600
            assert not openai_api.problems("ErrorResponse", answer.json()), answer.text
            assert key not in answer.text
            assert (used.pop() > len(json.dumps(HELLO)) // 4) == (fault in BROKEN)
        assert server.post(CHAT, model="small", messages=HELLO).status_code == 200


def test_an_upstreams_halves_are_sent_on_as_none():
    with openai_api.serve() as far, front(far.url) as server:
        far.reply = lambda body: "half \ud800"
        whole = server.post(CHAT, model="small", messages=HELLO)
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"] == "half ?"
        assert list(server.events(CHAT, model="small", messages=HELLO))[-1] == "[DONE]"


def charged(server):
    """Tokens of each request that has ended, the newest last."""
    used = []
    server.service.rates.used = lambda holder, tokens: used.append(tokens)
    return used


def streamed(server, path, **body):
    return server.post(path, **body, stream=True)


@pytest.mark.parametrize("fault", ["cut", "early end", "stream error", "odd piece"])
def test_streams_that_break_off_end_with_an_error(fault):
    key = openai_api.KEY
    with openai_api.serve(key=key) as far, front(far.url, key=key) as server:
        far.faults.append(fault)
        *events, last = server.events(CHAT, model="small", messages=HELLO)
        assert events and last["error"]["code"] == "upstream_error" and key not in json.dumps(last)
        assert server.post(CHAT, model="small", messages=HELLO).status_code == 200


def test_a_client_that_leaves_ends_the_upstreams_work():
    with openai_api.serve(delay_s=0.05) as far, front(far.url) as server:
        far.reply = lambda body: "word " * 400
        ask = {"model": "small", "messages": HELLO, "stream": True, "max_tokens": 400}
        with server.http.stream("POST", CHAT, json=ask) as answer:
            next(answer.iter_lines())
        serving.until(lambda: far.gone == 1)
        serving.until(lambda: server.service.models["small"].queue.working == 0)


@pytest.mark.parametrize("how", ["cut", "left"])
def test_a_stream_that_breaks_off_is_charged(how):
    """The usage stands in its last chunk: who leaves before would write for nothing."""
    with openai_api.serve(delay_s=0.01 if how == "left" else 0) as far, front(far.url) as server:
        far.reply = lambda body: "word " * 40
        used = charged(server)
        ask = {"model": "small", "messages": HELLO, "stream": True, "max_tokens": 40}
        far.faults.append("cut" if how == "cut" else None)
        with server.http.stream("POST", CHAT, json=ask) as answer:
            for i, _ in enumerate(answer.iter_lines()):
                if how == "left" and i > 20:
                    break
        serving.until(lambda: used)
        (tokens,) = used
        assert 5 + len(json.dumps(HELLO)) // 4 <= tokens < 20 + 100


def test_who_leaves_before_the_answer_is_charged_the_prompt():
    with openai_api.serve() as far, front(far.url) as server:
        used = charged(server)
        far.faults.append("stall")
        raw = json.dumps({"model": "small", "messages": HELLO, "max_tokens": 9}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
            serving.until(lambda: far.seen)
        serving.until(lambda: used)
        assert used == [len(raw) // 4]
        assert server.service.models["small"].queue.working == 0


SCRIPT = """
import sys, time
from tests.fakes import openai_api
with openai_api.serve(delay_s=0.05) as far:
    def reply(body):
        print("asked", flush=True)
        time.sleep(60 * (body["messages"][-1]["content"] == "wait"))
        return "word " * 400
    far.reply = reply
    print(far.url, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def killable():
    """(process, address) of a server in a process of its own, which says when it is asked."""
    root = Path(__file__).parents[3]
    far = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)}, cwd=root,
    )  # fmt: skip
    with far:
        assert far.stdout is not None
        try:
            yield far, far.stdout.readline().strip()
        finally:
            far.kill()


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_is_killed_before_its_first_piece(stream):
    """The error has a status still; the prompt, which it had read, is paid for, and no more."""
    with killable() as (far, url), front(url) as server:
        used = charged(server)
        ask = {"model": "small", "messages": [{"role": "user", "content": "wait"}],
               "max_tokens": 400, "stream": stream}  # fmt: skip
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.post(CHAT, **ask)))
        asking.start()
        assert far.stdout is not None and far.stdout.readline() == "asked\n"
        far.kill()
        far.wait(20)
        asking.join(20)
        (answer,) = answers
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (502, "upstream_error")
        assert "broke off" in error["message"] and "ask again" in error["message"]
        assert used.pop() == len(json.dumps(ask)) // 4
        assert server.service.models["small"].queue.working == 0
        answer = server.post(CHAT, **ask)
        assert answer.status_code == 502 and "reached" in answer.json()["error"]["message"]
        assert used.pop() == 0


def test_an_upstream_that_is_killed_within_a_stream():
    """A clear error event; this server lives, and says what is wrong until the other is back."""
    with killable() as (far, url), front(url) as server:
        events, begun = [], threading.Event()

        def listen():
            for one in server.events(CHAT, model="small", messages=HELLO, max_tokens=400):
                events.append(one)
                if len(events) > 3:
                    begun.set()

        listener = threading.Thread(target=listen)
        listener.start()
        assert begun.wait(20)
        far.send_signal(signal.SIGKILL)
        far.wait(20)
        listener.join(20)
        assert not listener.is_alive()
        assert events[-1]["error"]["code"] == "upstream_error"
        assert "broke off" in events[-1]["error"]["message"]
        answer = server.post(CHAT, model="small", messages=HELLO)
        assert answer.status_code == 502 and "reached" in answer.json()["error"]["message"]
        assert server.http.get("/health").status_code == 200


def test_answers_at_llama_cpp_that_find_no_place_are_refused_by_status(behind, tokenizer_file):
    """Also a stream: places are taken before it begins, for all answers or for none."""
    options = {"upstream_api": "completion", "upstream_tokenizer": tokenizer_file, "format": "chat"}
    with front(f"far={behind.url}/v1", upstream_slots=1, max_queue=1, **options) as server:
        ask = {"model": "far", "messages": HELLO, "max_tokens": 2, "stream": True}
        answer = server.post(CHAT, **ask, n=9)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "too_many_answers"
        assert len([e for e in server.events(CHAT, **ask, n=4) if e != "[DONE]"]) >= 4
        queue = server.service.models["far"].queue
        serving.until(lambda: (queue.working, queue.waiting) == (0, 0))


def test_addresses_that_cannot_be_used():
    with openai_api.serve(models=("a", "b")) as far:
        with front(far.url, models=["a", "b"]):
            pass
        with pytest.raises(ConfigError, match="2 models"):
            front(f"one={far.url}")
        with pytest.raises(ConfigError, match="'a'"):
            front(far.url, far.url)
        gone = far.url
    with pytest.raises(ClientError, match="reached"):
        front(gone)
    for url in ("nonsense", "http://key@host/v1", "ftp://host/v1"):
        with pytest.raises(GaiaError):
            front(url)
