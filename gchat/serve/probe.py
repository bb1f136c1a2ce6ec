"""Fields that a server may ignore without a word: tried once, refused where they have no effect.

llama.cpp takes `echo` with `logprobs` and gives no log-probabilities of the prompt; others give one
answer whatever `n` is. Whoever asked would take what came for what was asked.
"""

from collections.abc import Callable
from typing import Any

from gchat.serve.errors import ApiError
from gchat.serve.upstream import Upstream

_WORDS = "one two three four"


def _echoed(answer: dict[str, Any]) -> bool:
    """The prompt stands before the answer, and its tokens have log-probabilities."""
    choice = answer["choices"][0]
    tokens = (choice.get("logprobs") or {}).get("token_logprobs") or ()
    return choice["text"].startswith(_WORDS) and len(tokens) > 2


def _with_logprobs(answer: dict[str, Any]) -> bool:
    likely = answer["choices"][0].get("logprobs") or {}
    return bool(likely.get("content") or likely.get("token_logprobs"))


def _two(answer: dict[str, Any]) -> bool:
    return len(answer["choices"]) == 2


Probe = tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]
COMPLETIONS: dict[str, Probe] = {
    "echo": ({"echo": True, "logprobs": 1}, _echoed),
    "logprobs": ({"logprobs": 1}, _with_logprobs),
    "n": ({"n": 2}, _two),
}
CHATS: dict[str, Probe] = {
    "logprobs": ({"logprobs": True, "top_logprobs": 1}, _with_logprobs),
    "n": ({"n": 2}, _two),
}
BY_PATH = {"completions": COMPLETIONS, "chat/completions": CHATS}


async def check(upstream: Upstream, path: str, body: dict[str, Any]) -> None:
    """Refuses a request with a field that the upstream ignores.

    Raises:
        ApiError: it does, or cannot be asked.
    """
    for name, (fields, heeds) in BY_PATH.get(path, {}).items():
        value = body.get(name)
        if value is None or value is False or (name == "n" and value == 1):
            continue
        if (path, name) not in upstream.known:
            upstream.known[path, name] = await _try(upstream, path, fields, heeds)
        if not upstream.known[path, name]:
            asked = "echo with logprobs" if name == "echo" else name
            raise ApiError(
                400, f"the upstream of {upstream.name!r} ignores {asked}; leave it out, or ask a "
                "model that heeds it", param=name, code="unsupported_parameter",
            )  # fmt: skip


async def _try(
    upstream: Upstream, path: str, fields: dict[str, Any], heeds: Callable[[dict[str, Any]], bool]
) -> bool:
    asked: dict[str, Any] = {"model": upstream.model, "max_tokens": 1, "temperature": 0, **fields}
    if path == "completions":
        asked["prompt"] = _WORDS
    else:
        asked["messages"] = [{"role": "user", "content": _WORDS}]
    try:
        answer = await upstream.address.json(f"{upstream.address.url}/{path}", asked)
        return heeds(answer)
    except ApiError as error:
        if error.status != 400:
            raise
        return False  # refused: the request would be, too
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
