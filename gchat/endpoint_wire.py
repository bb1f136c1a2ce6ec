"""OpenAI's protocol in JSON: requests, answers, streams and errors, of OpenAI, vLLM and llama.cpp.

Pure functions; `gchat.endpoint_client` sends and receives. The servers differ in the names of what
OpenAI does not have, and in defaults that would cut the distribution behind one's back: llama.cpp
takes top-k 40, top-p 0.95 and min-p 0.05 where a request says nothing, vLLM what the model's
generation_config.json says. So they are told everything.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from gaia.errors import ConfigError
from gchat.chat_format import Message
from gchat.client import Answer, Choice, ClientError, Delta, Question, Token, Usage
from gchat.engine.requests import SamplingConfig

Kind = Literal["openai", "vllm", "llama.cpp"]
_OWNERS: dict[str, Kind] = {"vllm": "vllm", "llamacpp": "llama.cpp", "gchat": "vllm"}
"""Servers by `owned_by` in their list of models."""
_ALL = 65_536
_PENALTY: dict[str, str] = {"vllm": "repetition_penalty", "llama.cpp": "repeat_penalty"}


def kind_of(owner: str) -> Kind:
    """The server that calls itself `owner` in its list of models."""
    return _OWNERS.get(owner, "openai")


@dataclass(frozen=True)
class Sent:
    """A request: path below the base address, and JSON body."""

    path: str
    body: dict[str, Any]


def request(question: Question, kind: Kind, model: str, *, stream: bool) -> Sent:
    """The request that asks a question.

    Raises:
        ConfigError: the server has no such option, and would ignore or refuse it.
    """
    sampling = question.sampling
    body: dict[str, Any] = {
        "model": model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "n": question.n,
    }
    if question.prompt is not None:
        path = "completions"
        body |= {"prompt": question.prompt, "max_tokens": question.max_tokens}
        if question.logprobs is not None:
            body["logprobs"] = question.logprobs
    else:
        path = "chat/completions"
        # OpenAI's newer models refuse max_tokens; the others have always known it.
        limit = "max_completion_tokens" if kind == "openai" else "max_tokens"
        body |= {"messages": [_message(m) for m in question.messages], limit: question.max_tokens}
        if question.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": question.logprobs}
    if question.stop:
        body["stop"] = list(question.stop)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Sent(path, body | _own(sampling, kind) | _form(question, kind))


def _message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _own(sampling: SamplingConfig, kind: Kind) -> dict[str, Any]:
    """Fields that OpenAI does not have."""
    if kind != "openai":
        own = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        own[_PENALTY[kind]] = sampling.repetition_penalty
        # llama.cpp looks at the last 64 tokens only, unless told. Its server refuses -1 (all of
        # them) since 2026, and a number beyond its window is taken.
        penalty = kind == "llama.cpp" and sampling.repetition_penalty != 1
        return own | ({"repeat_last_n": _ALL} if penalty else {})
    defaults = SamplingConfig()
    for name in ("top_k", "min_p", "repetition_penalty"):
        if getattr(sampling, name) != getattr(defaults, name):
            raise ConfigError(
                f"{name} is {getattr(sampling, name)}, and OpenAI's protocol has no such field",
                f"leave it out, or say --server vllm or llama.cpp (both have {name})",
            )
    return {}


def _form(question: Question, kind: Kind) -> dict[str, Any]:
    """Fields that ask for a form of the answer."""
    grammar = question.grammar
    if grammar is None:
        return {}
    if grammar.kind == "json":
        schema = json.loads(grammar.text)
        if kind == "openai" and question.prompt is not None:
            raise ConfigError("OpenAI's completions take no schema", "ask with messages")
        if kind == "llama.cpp" and question.prompt is not None:
            return {"json_schema": schema}
        named = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if kind == "vllm":
        value = json.loads(grammar.text) if grammar.kind == "choice" else grammar.text
        return {"structured_outputs": {grammar.kind: value}}
    if kind == "llama.cpp" and grammar.kind == "choice":
        texts = " | ".join(
            json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text)
        )
        return {"grammar": f"root ::= {texts}"}
    raise ConfigError(f"{kind} takes no {grammar.kind}", "give a JSON schema, or ask vLLM")


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────


def answer(data: Any, question: Question, model: str) -> Answer:
    """The answer in a body.

    Raises:
        ClientError: it is not one, or holds fewer answers than were asked for.
    """
    try:
        raw = sorted(data["choices"], key=lambda choice: choice.get("index", 0))
        choices = tuple(_choice(one) for one in raw)
        usage = _usage(data.get("usage")) or Usage()
        model = data.get("model") or model
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClientError(
            f"the endpoint's answer is not OpenAI's ({type(error).__name__}: {error})",
            "check --endpoint: it ends in /v1 as a rule",
        ) from None
    if len(choices) != question.n:
        raise ClientError(
            f"{question.n} answers were asked for, and the endpoint gave {len(choices)}",
            "ask with n 1",
        )
    return Answer(choices, usage, model)


def _choice(raw: dict[str, Any]) -> Choice:
    message = raw.get("message")
    text = raw["text"] if message is None else message.get("content")
    finish = raw.get("finish_reason") or "stop"
    if text is None:  # OpenAI: the model refused, and says why beside it
        text, finish = (message or {}).get("refusal") or "", "refusal"
    return Choice(text, finish, _tokens(raw.get("logprobs")))


def _tokens(raw: dict[str, Any] | None) -> tuple[Token, ...]:
    """Log-probabilities in the shape of chats, or that of completions."""
    if not raw:
        return ()
    if raw.get("content") is not None:  # chats; llama.cpp's completions too
        return tuple(
            Token(
                one["token"],
                float(one["logprob"]),
                tuple((top["token"], float(top["logprob"])) for top in one.get("top_logprobs", ())),
            )
            for one in raw["content"]
        )
    tokens = raw.get("tokens") or ()
    tops = raw.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        Token(token, float(logprob), tuple(sorted((top or {}).items(), key=lambda pair: -pair[1])))
        for token, logprob, top in zip(tokens, raw["token_logprobs"], tops, strict=True)
    )


def _usage(raw: dict[str, Any] | None) -> Usage | None:
    if not raw:
        return None
    details = raw.get("prompt_tokens_details") or {}
    return Usage(
        int(raw.get("prompt_tokens") or 0),
        int(raw.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
    )


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events.

    Lines end in LF or CR LF and nothing else: JSON may hold U+2028 or U+0085, which `splitlines`
    would cut at. Lines that begin with a colon are comments, sent to keep a connection open.
    """
    buffer, data = b"", list[bytes]()
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data).decode()
                data = []
    if data or buffer.startswith(b"data:"):  # the end stands for the empty line
        yield b"\n".join([*data, buffer[5:].removeprefix(b" ").strip()]).decode().strip()


def deltas(data: Iterable[str]) -> Iterator[Delta]:
    """News in the events of a stream, up to `[DONE]` or its end.

    Raises:
        ClientError: the server reports an error in the stream, or sends what is none of it.
    """
    for one in data:
        if one == "[DONE]":
            return
        try:
            chunk = json.loads(one)
            if "error" in chunk:
                raise ClientError(
                    f"the endpoint broke off: {problem(one.encode())[0]}", "ask again"
                )
            usage = _usage(chunk.get("usage"))
            for raw in chunk["choices"]:
                content = raw["delta"].get("content") if "delta" in raw else raw["text"]
                tokens, finish = _tokens(raw.get("logprobs")), raw.get("finish_reason")
                if content or tokens or finish:
                    yield Delta(raw["index"], content or "", "text", finish, tokens)
            if usage is not None:  # in a chunk of its own without choices, or in each one
                yield Delta(usage=usage)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ClientError(
                f"the endpoint's stream is not OpenAI's ({type(error).__name__}: {error})",
                "check --endpoint",
            ) from None


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────


def problem(body: bytes) -> tuple[str, str]:
    """Message and code of an error body: OpenAI's, vLLM's, llama.cpp's, FastAPI's, or a page."""
    try:
        data = json.loads(body)
    except ValueError:
        return " ".join(body[:200].decode(errors="replace").split()), ""
    if not isinstance(data, dict):
        return str(data)[:300], ""
    error = data.get("error", data)
    if not isinstance(error, dict):
        return str(error)[:300], ""
    message = error.get("message") or error.get("detail") or json.dumps(error)
    return " ".join(str(message).split())[:500], str(error.get("code") or error.get("type") or "")
