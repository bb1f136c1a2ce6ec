"""Conversations as people write them down: messages, and the rows of JSON that hold them.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    {"prompt": "Hi", "completion": "Hello."}
    {"instruction": "Add them.", "input": "2, 3", "response": "5"}         (or "output")
    {"question": "2 + 3?", "answer": "5"}

Each may have a "system" beside it. The tags around messages are `gchat.chat_format`'s.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gaia.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant")
# Names of an assistant's parts in files: ours, and nanochat's.
_PARTS: dict[str, Literal["text", "call", "output"]] = {
    "text": "text", "call": "call", "output": "output", "python": "call", "python_output": "output",
}  # fmt: skip
_TOOLS = ("python", "calculator")
_SHAPES = (
    ("prompt", ("completion",)),
    ("instruction", ("response", "output")),
    ("question", ("answer",)),
)


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's message: text, an expression for a tool, or the tool's output."""

    kind: Literal["text", "call", "output"]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str
    """Text as people read it."""
    parts: tuple[Part, ...] = ()
    """The whole of an assistant's message that called a tool; `content` is its text alone."""


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an answer: an optional system message, then user and assistant."""

    messages: tuple[Message, ...]
    unlearned: tuple[int, ...] = ()
    """Places of answers that are read but not learned ("weight": 0 in a file)."""

    @classmethod
    def from_json(cls, row: Any) -> "Conversation":
        """Reads one row of a file; a list is taken as its messages.

        Raises:
            DataError: names the field that cannot be used.
        """
        if isinstance(row, list):
            row = {"messages": row}
        if not isinstance(row, Mapping):
            raise DataError(f"the row is {_name(row)}", "write an object with messages")
        unlearned: list[int] = []
        if "messages" in row:
            messages = _messages(row["messages"], "messages", unlearned)
        else:
            messages = _pair(row, unlearned)
        if "system" in row and row["system"] not in (None, ""):
            if messages and messages[0].role == "system":
                raise DataError("system is given twice", "leave one out")
            messages.insert(0, Message("system", _text(row["system"], "system")))
            unlearned = [i + 1 for i in unlearned]
        made = cls(tuple(messages), tuple(unlearned))
        made.check()
        return made

    def check(self) -> None:
        """Raises DataError where the roles are out of order, or nothing would be learned."""
        try:
            check(self.messages)
        except ConfigError as error:
            raise DataError(error.problem, error.remedy) from None
        first = self.messages[0].role == "system"
        for i, message in enumerate(self.messages[first:], first):
            expected = "assistant" if (i - first) % 2 else "user"
            if message.role != expected:
                raise DataError(
                    f"messages[{i}].role is {message.role!r} where {expected!r} comes next",
                    "let user and assistant take turns, the user first",
                )
            if not message.content and not message.parts:
                raise DataError(f"messages[{i}].content is empty", "leave the row out")
        if self.messages[-1].role != "assistant":
            raise DataError(
                f"messages[{len(self.messages) - 1}].role is 'user' and nothing answers it",
                "end with the assistant",
            )
        answers = {i for i, message in enumerate(self.messages) if message.role == "assistant"}
        if answers <= set(self.unlearned):
            raise DataError("messages has no answer that is learned", "leave out a weight of 0")

    def to_json(self) -> dict[str, Any]:
        """The row that `from_json` reads back as this conversation."""
        messages = []
        for i, message in enumerate(self.messages):
            content: Any = message.content
            if message.parts:
                content = [{"type": part.kind, "text": part.text} for part in message.parts]
            one = {"role": message.role, "content": content}
            messages.append(one | ({"weight": 0} if i in self.unlearned else {}))
        return {"messages": messages}


def check(messages: Sequence[Message]) -> None:
    """Raises ConfigError naming the message that no conversation holds."""
    if not messages:
        raise ConfigError("messages is empty", "give at least one message")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise ConfigError(
                f"messages[{i}].role is {message.role!r}", f"use one of {', '.join(ROLES)}"
            )
        if message.role == "system" and i:
            raise ConfigError(f"messages[{i}].role is 'system'", "put the system message first")


def is_shaped(fields: Collection[str]) -> bool:
    """True where a row with these fields is written as a conversation."""
    pair = any(asked in fields and set(answers) & set(fields) for asked, answers in _SHAPES)
    return "messages" in fields or pair


def _pair(row: Mapping[str, Any], unlearned: list[int]) -> list[Message]:
    """The messages of a row that holds a question and its answer under their own names."""
    for asked, answers in _SHAPES:
        if asked not in row:
            continue
        answered = next((name for name in answers if name in row), None)
        if answered is None:
            raise DataError(f"{asked} has no {' or '.join(answers)} beside it", "add it")
        if isinstance(row[asked], list):  # conversations in two parts, as TRL has them
            both = [*row[asked], *_listed(row[answered], answered)]
            return _messages(both, f"{asked} and {answered}", unlearned)
        question = _text(row[asked], asked)
        if asked == "instruction" and row.get("input") not in (None, ""):
            question += f"\n\n{_text(row['input'], 'input')}"
        return [Message("user", question), Message("assistant", _text(row[answered], answered))]
    named = ", ".join(sorted(map(str, row))[:8]) or "no field"
    raise DataError(
        f"the row has {named}",
        "write messages, prompt and completion, instruction and response, or question and answer",
    )


def _messages(listed: Any, field: str, unlearned: list[int]) -> list[Message]:
    """Messages of a list; calls and outputs of tools become parts of the answer around them."""
    messages: list[Message] = []
    for i, one in enumerate(_listed(listed, field)):
        where = f"{field}[{i}]"
        if not isinstance(one, Mapping):
            raise DataError(f"{where} is {_name(one)}", 'write {"role": …, "content": …}')
        role = one.get("role")
        if role not in (*ROLES, "tool"):
            raise DataError(f"{where}.role is {role!r}", f"use one of {', '.join(ROLES)}, tool")
        parts = _parts(one, where)
        if role == "tool":
            parts = [Part("output", part.text) for part in parts]
            if not messages or not _ends_with_call(messages[-1]):
                raise DataError(f"{where}.role is 'tool' and nothing called it", "leave it out")
        elif role != "assistant" and any(part.kind != "text" for part in parts):
            raise DataError(f"{where} calls a tool", "let the assistant call it")
        if role == "tool" or (role == "assistant" and messages and _unanswered(messages[-1])):
            parts = [*messages.pop().parts, *parts]
            role = "assistant"
        text = "".join(part.text for part in parts if part.kind == "text")
        calls = any(part.kind != "text" for part in parts)
        if one.get("weight") == 0 and role == "assistant":
            unlearned.append(len(messages))
        messages.append(Message(str(role), text, tuple(parts) if calls else ()))
    return messages


def _parts(one: Mapping[str, Any], where: str) -> list[Part]:
    content = one.get("content")
    calls = [
        Part("call", _call(call, f"{where}.tool_calls[{i}]"))
        for i, call in enumerate(_listed(one.get("tool_calls") or [], f"{where}.tool_calls"))
    ]
    if content is None and calls:
        return calls
    if not isinstance(content, list):
        text = _text(content, f"{where}.content")
        return [*([Part("text", text)] if text or not calls else []), *calls]
    parts = []
    for i, piece in enumerate(content):
        kind = piece.get("type") if isinstance(piece, Mapping) else None
        if not isinstance(piece, Mapping) or kind not in _PARTS:
            raise DataError(
                f"{where}.content[{i}] is of type {kind!r}", f"use one of {', '.join(_PARTS)}"
            )
        parts.append(Part(_PARTS[kind], _text(piece.get("text"), f"{where}.content[{i}].text")))
    return [*parts, *calls]


def _call(call: Any, where: str) -> str:
    """The expression of a call of the calculator, as OpenAI's files write it."""
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or name not in _TOOLS:
        raise DataError(f"{where}.function.name is {name!r}", f"use one of {', '.join(_TOOLS)}")
    try:
        arguments = json.loads(_text(function.get("arguments"), f"{where}.function.arguments"))
    except ValueError:
        arguments = None
    values = list(arguments.values()) if isinstance(arguments, dict) else []
    if len(values) != 1:
        raise DataError(f"{where}.function.arguments is no JSON of one text", "give one text")
    return _text(values[0], f"{where}.function.arguments")


def _ends_with_call(message: Message) -> bool:
    return bool(message.parts) and message.parts[-1].kind in ("call", "output")


def _unanswered(message: Message) -> bool:
    """True for an answer that goes on behind a tool's output."""
    return bool(message.parts) and message.parts[-1].kind == "output"


def _listed(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{field} is {_name(value)}", "give a list")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{field} is {_name(value)}", "give a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{field} holds half a character at {error.start}", "mend it") from None
    return value


def _name(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
