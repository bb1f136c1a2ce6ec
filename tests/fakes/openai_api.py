"""A server that answers as OpenAI's API, vLLM or llama.cpp does, with errors on demand.

Each error is written as its server writes it; the source stands beside it. Answers to requests
that worked are checked against OpenAI's own schemas where ../shared/data/openai has them.
"""

import functools
import json
import re
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCHEMAS = Path(__file__).resolve().parents[3] / "shared/data/openai/schemas.json"
KEY = "sk-test-0123456789abcdefghij"
NO_SCHEMAS = "needs OpenAI's schemas in ../shared/data/openai"

# ── Errors: (status, headers, body), each as the real server sends it ───────────────────────────

ERRORS = {
    # platform.openai.com/docs/guides/error-codes; OpenAI repeats the key that it was sent, with
    # stars in the middle. Proxies repeat all of it: bespokelabsai/curator PR 141.
    "wrong key": (401, {}, {"error": {
        "message": f"Incorrect API key provided: {KEY}. You can find your API key at https://"
        "platform.openai.com/account/api-keys.",
        "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}}),
    # As seen in NVIDIA-NeMo/Guardrails issue 371; `code` is null in ayaka14732/ChatGPTAPIFree 16.
    "quota": (429, {}, {"error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota", "param": None, "code": None}}),
    # platform.openai.com/docs/guides/rate-limits
    "rate": (429, {"retry-after": "0.01"}, {"error": {
        "message": "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): "
        "Limit 3, Used 3, Requested 1. Please try again in 20s.",
        "type": "requests", "param": None, "code": "rate_limit_exceeded"}}),
    "overloaded": (503, {}, {"error": {
        "message": "The engine is currently overloaded, please try again later",
        "type": "server_error", "param": None, "code": None}}),
    # The text as in LlmKira/Openaibot issue 125.
    "server error": (500, {}, {"error": {
        "message": "The server had an error while processing your request. Sorry about that!",
        "type": "server_error", "param": None, "code": None}}),
    "no model": (404, {}, {"error": {
        "message": "The model `gpt-9` does not exist or you do not have access to it.",
        "type": "invalid_request_error", "param": None, "code": "model_not_found"}}),
    # vLLM's middleware: `error` is a text (vllm/entrypoints/openai/server_utils.py,
    # AuthenticationMiddleware).
    "vllm key": (401, {}, {"error": "Unauthorized"}),
    # vLLM: ErrorResponse of vllm/entrypoints/serve/engine/protocol.py; `code` is the HTTP status.
    "vllm too long": (400, {}, {"error": {
        "message": "This model's maximum context length is 16 tokens. However, you requested 99 "
        "tokens (50 in the messages, 49 in the completion).",
        "type": "BadRequestError", "param": None, "code": 400}}),
    # vLLM before 0.10 put the fields at the top.
    "vllm old": (400, {}, {
        "object": "error", "message": "temperature must be non-negative, got -1.0.",
        "type": "BadRequestError", "param": None, "code": 400}),
    # llama.cpp: format_error_response of tools/server/server-common.cpp; while it loads:
    "loading": (503, {}, {"error": {
        "message": "Loading model", "type": "unavailable_error", "code": 503}}),
    # llama.cpp: send_error of tools/server/server-context.cpp
    "llama.cpp too long": (400, {}, {"error": {
        "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9412, "n_ctx": 8192,
        "message": "request (9412 tokens) exceeds the available context size (8192 tokens), try "
        "increasing it"}}),
    # FastAPI's own validation (fastapi.tiangolo.com/tutorial/handling-errors)
    "fastapi": (422, {}, {"detail": [
        {"loc": ["body", "messages"], "msg": "field required", "type": "value_error.missing"}]}),
    # nginx, where nothing runs behind it
    "page": (502, {"content-type": "text/html"},
             b"<html><head><title>502 Bad Gateway</title></head></html>"),
    "moved": (308, {"location": "https://elsewhere.example/v1/chat/completions"}, b""),
}  # fmt: skip


@dataclass
class Endpoint:
    """The state of one fake.

    Attributes:
        kind: "openai", "vllm" or "llama.cpp".
        faults: what goes wrong with the next requests: a name of ERRORS, or "hang up", "cut"
            (the connection ends within a stream), "cut at once" (before its first event), "early
            end" (the stream ends in good order, but no answer is finished: a proxy whose server
            died), "stream error", "odd piece" (no chunk of OpenAI's), "stall", "garbage", "late
            error" (with status 200).
        seen: bodies of the requests that came, with their path and Authorization header.
        reply: the text that answers a body.
        delay_s: pause before each piece of a stream.
        tokens: length of answers where the request names none.
    """

    kind: str = "openai"
    models: tuple[str, ...] = ("small",)
    faults: deque = field(default_factory=deque)
    seen: list = field(default_factory=list)
    key: str | None = None
    delay_s: float = 0.0
    tokens: int = 16
    url: str = ""
    most_open: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    gone: int = 0
    """Clients that went away before the end of their stream."""
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body):
        last = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        return f"You said: {last}"


def pieces(text):
    """A text as tokens: words with the space before them, and each other letter alone."""
    return re.findall(r" ?\w+|.", text, re.DOTALL)


@functools.cache
def _schemas():
    return json.loads(SCHEMAS.read_text()) if SCHEMAS.exists() else None


def problems(name, value):
    """Violations of OpenAI's schema of this name; [] where the schemas are not at hand."""
    import jsonschema

    if _schemas() is None:
        return []
    root = {"$ref": f"#/components/schemas/{name}", **_schemas()}
    nullable = _with_nulls(root)
    return [e.message for e in jsonschema.Draft202012Validator(nullable).iter_errors(value)]


def _with_nulls(schema):
    """OpenAPI 3.0's `nullable` in the words of JSON Schema."""
    if isinstance(schema, list):
        return [_with_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _with_nulls(value) for key, value in schema.items() if key != "nullable"}
    if schema.get("nullable") is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return self._json(404, {"detail": "Not Found"})
        owner = {"openai": "system", "vllm": "vllm", "llama.cpp": "llamacpp"}[self.endpoint.kind]
        listed = [
            {"id": name, "object": "model", "created": 1, "owned_by": owner}
            for name in self.endpoint.models
        ]
        self._good("ListModelsResponse", {"object": "list", "data": listed})

    def do_POST(self):
        endpoint = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        header = self.headers.get("authorization")
        with endpoint._lock:
            endpoint.seen.append((self.path, body, header))
            endpoint._open += 1
            endpoint.most_open = max(endpoint.most_open, endpoint._open)
            fault = endpoint.faults.popleft() if endpoint.faults else None
        try:
            self._answer(body, header, fault)
        finally:
            with endpoint._lock:
                endpoint._open -= 1

    def _answer(self, body, header, fault):
        if self.endpoint.key is not None and header != f"Bearer {self.endpoint.key}":
            fault = "wrong key"
        if fault == "hang up":
            return self.close_now()
        if fault == "stall":
            self.endpoint.released.wait(30)
            return self.close_now()
        if fault == "garbage":
            return self._send(200, {}, b"<html>hello</html>")
        if fault == "late error":
            # openrouter.ai/docs/api-reference/errors: once a provider has begun, the status is 200
            # and the error stands in the body. The header stands in it as below.
            error = {"code": 502, "message": f"Provider returned error: {header}"}
            return self._send(200, {}, json.dumps({"error": error}).encode())
        if fault in ERRORS:
            status, headers, data = ERRORS[fault]
            raw = data if isinstance(data, bytes) else json.dumps(data).encode()
            return self._send(status, headers, raw)
        time.sleep(self.endpoint.delay_s)
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            return self._json(404, {"detail": "Not Found"})
        if self.endpoint.kind == "openai":
            # OpenAI refuses what it does not know; vLLM and llama.cpp ignore it.
            name = "CreateChatCompletionRequest" if chat else "CreateCompletionRequest"
            own = {"top_k", "min_p", "repetition_penalty", "structured_outputs", "grammar"}
            if own & body.keys() or (wrong := problems(name, {**body, "model": "gpt-4o"})):
                what = ", ".join(own & body.keys()) or wrong[0]
                message = f"Unrecognized request argument supplied: {what}"
                return self._json(400, {"error": {
                    "message": message, "type": "invalid_request_error",
                    "param": None, "code": None}})  # fmt: skip
        if body.get("stream"):
            return self._stream(body, chat, fault)
        return self._whole(body, chat)

    def close_now(self):
        self.close_connection = True
        self.connection.close()

    def _text(self, body):
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        limit = limit or self.endpoint.tokens
        every = pieces(self.endpoint.reply(body))
        kept = every[:limit]
        text = "".join(kept)
        for stop in body.get("stop", ()):
            if stop in text:
                return pieces(text[: text.index(stop)]), "stop"
        return kept, "length" if len(every) > limit else "stop"

    def _usage(self, body, tokens):
        asked = json.dumps(body.get("messages", body.get("prompt")))
        sizes = len(pieces(asked)), tokens * body.get("n", 1)
        names = "prompt_tokens", "completion_tokens"
        details = {"prompt_tokens_details": {"cached_tokens": 1}}
        return dict(zip(names, sizes, strict=True)) | {"total_tokens": sum(sizes)} | details

    def _logprobs(self, body, tokens, chat):
        """In the shape of chats or of completions; llama.cpp's completions have that of chats."""
        if not body.get("logprobs") and body.get("logprobs") != 0:
            return None
        count = body.get("top_logprobs", body["logprobs"] if not chat else 0)
        if chat or self.endpoint.kind == "llama.cpp":
            content = [
                {"token": t, "logprob": -0.5, "bytes": list(t.encode()), "top_logprobs": [
                    {"token": t if i == 0 else f"{i}", "logprob": -0.5 - i, "bytes": None}
                    for i in range(count)]}
                for t in tokens
            ]  # fmt: skip
            return {"content": content, "refusal": None}
        tops = [{t: -0.5, **{f"{i}": -0.5 - i for i in range(1, count)}} for t in tokens]
        offsets = [len("".join(tokens[:i])) for i in range(len(tokens))]
        return {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens),
                "top_logprobs": tops, "text_offset": offsets}  # fmt: skip

    def _whole(self, body, chat):
        tokens, finish = self._text(body)
        text, choices = "".join(tokens), []
        for index in range(body.get("n", 1)):
            one = {"index": index, "finish_reason": finish}
            one["logprobs"] = self._logprobs(body, tokens, chat)
            if chat:
                one["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                one["text"] = text
            choices.append(one)
        if chat and text.endswith("refuse"):
            choices[0]["message"] |= {"content": None, "refusal": "I can't help with that."}
        self._good(
            "CreateChatCompletionResponse" if chat else "CreateCompletionResponse",
            {
                "id": "x-1", "object": "chat.completion" if chat else "text_completion",
                "created": 1, "model": body["model"], "choices": choices,
                "usage": self._usage(body, len(tokens)),
            },
        )  # fmt: skip

    def _chunk(self, body, chat, choices, usage=None):
        chunk = {
            "id": "x-1", "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1, "model": body["model"], "choices": choices,
        }  # fmt: skip
        if usage is not None:
            chunk["usage"] = usage
        if chat:
            assert not (wrong := problems("CreateChatCompletionStreamResponse", chunk)), wrong
        # llama.cpp and vLLM write characters as they are, OpenAI escapes them.
        plain = json.dumps(chunk, ensure_ascii=self.endpoint.kind == "openai")
        return f"data: {plain}\n\n".encode()

    def _stream(self, body, chat, fault):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for part in self._parts(body, chat, fault):
                time.sleep(self.endpoint.delay_s)
                # Chunks of HTTP end anywhere, also within a character.
                for raw in (part[:7], part[7:]):
                    if raw:
                        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            if fault in ("cut", "cut at once"):
                return self.close_now()
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.endpoint.gone += 1
            self.close_connection = True

    def _parts(self, body, chat, fault):
        if fault == "cut at once":
            return
        tokens, finish = self._text(body)
        count = body.get("n", 1)
        if chat:
            first = {"role": "assistant", "content": ""}
            for index in range(count):
                yield self._chunk(
                    body, chat, [{"index": index, "delta": first, "finish_reason": None}]
                )
        yield b": a comment that keeps the connection open\n\n"  # openrouter.ai/docs, streaming
        for at, token in enumerate(tokens):
            if at == len(tokens) // 2 and fault in ("cut", "early end"):
                return
            if at == len(tokens) // 2 and fault == "odd piece":
                yield b'data: {"choices": [3]}\n\n'
            if at == len(tokens) // 2 and fault == "stream error":
                # vLLM: create_streaming_error_response of entrypoints/openai/engine/serving.py
                # The header stands in it as in bespokelabsai/curator PR 141.
                sent = self.headers.get("authorization")
                error = {"message": f"EngineCore encountered an issue: {sent}",
                         "type": "InternalServerError", "param": None, "code": 500}  # fmt: skip
                yield f"data: {json.dumps({'error': error})}\n\n".encode()
                yield b"data: [DONE]\n\n"
                return
            for index in range(count):
                one = {"index": index, "finish_reason": None}
                one |= {"delta": {"content": token}} if chat else {"text": token}
                if logprobs := self._logprobs(body, [token], chat):
                    one["logprobs"] = logprobs
                yield self._chunk(body, chat, [one])
        for index in range(count):
            one = {"index": index, "finish_reason": finish}
            yield self._chunk(body, chat, [one | ({"delta": {}} if chat else {"text": ""})])
        if (body.get("stream_options") or {}).get("include_usage"):
            # vllm-project/vllm issue 7179: one chunk without choices, before [DONE].
            yield self._chunk(body, chat, [], self._usage(body, len(tokens)))
        yield b"data: [DONE]\n\n"

    def _good(self, schema, value):
        assert not (wrong := problems(schema, value)), wrong
        self._json(200, value)

    def _json(self, status, value):
        self._send(status, {"content-type": "application/json"}, json.dumps(value).encode())

    def _send(self, status, headers, raw):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serve(kind="openai", **options):
    """A fake that listens on loopback, until the block ends."""
    endpoint = Endpoint(kind, **options)
    handler = type("Bound", (Handler,), {"endpoint": endpoint})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield endpoint
    finally:
        endpoint.released.set()
        server.shutdown()
        server.server_close()
