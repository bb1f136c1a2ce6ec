"""A file of questions: one JSON object per line, each checked before the first is asked."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.chat_format import Message
from gchat.client import Question
from gchat.engine import grammar as grammars
from gchat.ranges import MAX_SEED

_SAMPLING = {
    "temperature": float, "top_k": int, "top_p": float, "seed": int, "min_p": float,
    "repetition_penalty": float,
}  # fmt: skip
_OTHERS = {"max_tokens": int, "n": int, "logprobs": int, "stop": list}
_FORMS = ("schema", "regex", "choice")
_KEYS = ("prompt", "messages", *_SAMPLING, *_OTHERS, *_FORMS, "id", "meta")
_NAMES = {int: "a whole number", float: "a number", str: "a text", list: "a list of texts"}


@dataclass(frozen=True)
class Line:
    """One question of a file."""

    number: int
    """Counted from 1."""
    question: Question
    id: Any = None
    """The user's own, copied to the answer."""
    meta: Any = None
    """Anything else of the user's, copied to the answer."""

    def key(self, model: str) -> str:
        """Fingerprint of what is asked of whom, by which a resumed job knows its own answers."""
        asked = json.dumps([asdict(self.question), model], sort_keys=True)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read(path: Path, defaults: Question) -> Iterator[Line]:
    """Reads questions one by one; empty lines are skipped.

    Args:
        path: of the file.
        defaults: a question whose options hold where a line has none; line i is drawn with its
            seed + i, so that equal prompts get different answers.

    Raises:
        DataError: the file cannot be read, or a line is no question; the line is named.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    yield _line(number, raw, defaults)
                except ConfigError as error:
                    raise DataError(f"{path}:{number}: {error.problem}", error.remedy) from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror})", "check it") from None


def object_of(raw: bytes, form: str) -> dict[str, Any]:
    """The JSON object of a line.

    Args:
        raw: the line, UTF-8.
        form: an object as it is wanted, for the remedy.

    Raises:
        ConfigError: it is no UTF-8, no JSON, or no object.
    """
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", "convert the file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error})", "write one JSON object per line") from None
    if not isinstance(data, dict):
        raise ConfigError("not a JSON object", f"write {form}")
    return data


def _no_number(name: str) -> None:
    """Refuses what Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


def _line(number: int, raw: bytes, defaults: Question) -> Line:
    data = object_of(raw, '{"prompt": "…"} or {"messages": […]}')
    for name in data:
        if name not in _KEYS:
            near = get_close_matches(name, _KEYS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(_KEYS)}"
            raise ConfigError(f"unknown field {name!r}", f"{remedy} Anything else goes into 'meta'")
    seed = (defaults.sampling.seed + number) % (MAX_SEED + 1)
    changes = {name: _typed(data, name, kind) for name, kind in _SAMPLING.items() if name in data}
    sampling = replace(defaults.sampling, **({"seed": seed} | changes))
    options = {name: _typed(data, name, kind) for name, kind in _OTHERS.items() if name in data}
    question = replace(
        defaults, **options, **_asked(data), **_form(data), sampling=sampling
    )  # fmt: skip
    question.check()
    return Line(number, question, data.get("id"), data.get("meta"))


def _typed(data: dict[str, Any], name: str, kind: type) -> Any:
    value = data[name]
    if kind is list:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{name} is {value!r}", f"use {_NAMES[list]}")
        return tuple(texts)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    with suppress(OverflowError):  # an integer of 400 digits
        if kind in (int, float) and number and math.isfinite(value) and kind(value) == value:
            return kind(value)
    if kind is str and isinstance(value, str):
        return value
    raise ConfigError(f"{name} is {value!r}", f"use {_NAMES[kind]}")


def _asked(data: dict[str, Any]) -> dict[str, Any]:
    """The prompt, or the messages."""
    if ("prompt" in data) == ("messages" in data):
        both = "both" if "prompt" in data else "neither"
        raise ConfigError(f"{both} of prompt and messages", "give one of them")
    if "prompt" in data:
        return {"prompt": _typed(data, "prompt", str)}
    messages = data["messages"]
    if not isinstance(messages, list):
        raise ConfigError(f"messages is a {type(messages).__name__}", "give a list")
    made = []
    for i, one in enumerate(messages):
        if not isinstance(one, dict) or not isinstance(one.get("content"), str):
            raise ConfigError(f"messages[{i}] has no text", 'write {"role": …, "content": "…"}')
        if extra := sorted(one.keys() - {"role", "content"}):
            raise ConfigError(f"messages[{i}] has an unknown field {extra[0]!r}", "leave it out")
        made.append(Message(str(one.get("role")), one["content"]))
    if made and made[-1].role == "assistant":
        raise ConfigError("the last message is the assistant's", "end with the user's")
    return {"messages": tuple(made)}


def _form(data: dict[str, Any]) -> dict[str, Any]:
    """The grammar of a line that has one."""
    given = [name for name in _FORMS if name in data]
    if not given:
        return {}
    if len(given) > 1:
        raise ConfigError(f"both {given[0]} and {given[1]}", "an answer has one form")
    if given[0] == "schema":
        return {"grammar": grammars.json_schema(data["schema"])}
    if given[0] == "regex":
        return {"grammar": grammars.regex(_typed(data, "regex", str))}
    return {"grammar": grammars.choice(_typed(data, "choice", list))}
