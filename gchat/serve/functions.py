"""Functions that a model may call: how they are told to it, and how its calls are read.

The text is that of Hermes and Qwen, which models without special tokens of their own follow best:
`<tools>` with one JSON per line in the system message, `<tool_call>{"name": …, "arguments": …}
</tool_call>` in the answer, `<tool_response>` for what came of it. A forced call is a grammar, so
that any model can be made to call.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from gchat.engine import grammar as grammars
from gchat.engine.grammar import Grammar
from gchat.serve.bodies import Strict
from gchat.serve.errors import ApiError
from gchat.serve.forms import within

START, END = "<tool_call>", "</tool_call>"


class Function(Strict):
    """A function as it is offered."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A function in the list of tools."""

    type: Literal["function"]
    function: Function


class Named(Strict):
    """The name of a function that must be called."""

    name: str


class Choice(Strict):
    """A function that must be called."""

    type: Literal["function"]
    function: Named


ToolChoice = Literal["none", "auto", "required"] | Choice


class CalledFunction(Strict):
    """A call in an earlier message."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call in an earlier message, with its id."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def text(self) -> str:
        """The call as the model wrote it."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        call = {"name": self.function.name, "arguments": arguments}
        return f"{START}\n{_json(call)}\n{END}"


@dataclass(frozen=True)
class Call:
    """A call that the model made."""

    name: str
    arguments: str
    """JSON."""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def body(self) -> dict[str, Any]:
        """The call as chats have it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Offer:
    """The functions that one answer may call, and whether it must."""

    functions: tuple[Function, ...] = ()
    forced: bool = False
    """The answer is one call and nothing else."""
    single: bool = False
    """The answer has at most one call, and ends with it."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer: nothing follows the only call that it may have."""
        return (END,) if self.single and self.functions and not self.forced else ()

    def told(self) -> str:
        """The text that tells the model of them; empty where there are none."""
        if not self.functions:
            return ""
        lines = "\n".join(
            json.dumps(
                {"type": "function", "function": one.model_dump(exclude_none=True)},
                ensure_ascii=False,
            )
            for one in self.functions
        )
        many = "at most one function" if self.single else "one or more functions"
        return (
            f"# Tools\n\nYou may call {many} to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
            f"{lines}\n</tools>\n\nFor each function call, return a json object with function name "
            f"and arguments within {START}{END} XML tags:\n{START}\n"
            f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{END}'
        )

    def grammar(self) -> Grammar | None:
        """The form of a forced call."""
        if not self.forced:
            return None
        # A function's references are to its own root, so each root gets a place and a name.
        roots = {f"call{i}": one.parameters for i, one in enumerate(self.functions)}
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": one.name},
                    "arguments": {"$ref": f"#/$defs/{root}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for one, root in zip(self.functions, roots, strict=True)
        ]
        moved = {
            root: within(parameters or {"type": "object"}, f"#/$defs/{root}")
            for root, parameters in roots.items()
        }
        return grammars.json_schema({"$defs": moved, "anyOf": calls})


def offer(tools: Sequence[Tool] | None, choice: ToolChoice | None, single: bool = False) -> Offer:
    """The offer that `tools` and `tool_choice` come to.

    Args:
        tools: functions that the answer may call.
        choice: whether it must, and which.
        single: it may call one at most.

    Raises:
        ApiError: a function must be called that is not offered.
    """
    functions = tuple(tool.function for tool in tools or ())
    if choice is None or choice in ("auto", "none"):
        return Offer(functions if choice != "none" else (), single=single)
    if not functions:
        raise ApiError(400, "tool_choice asks for a call, and tools is empty", param="tool_choice")
    if isinstance(choice, Choice):
        name = choice.function.name
        functions = tuple(one for one in functions if one.name == name)
        if not functions:
            raise ApiError(400, "tool_choice names a function that tools does not have",
                           param="tool_choice")  # fmt: skip
    return Offer(functions, forced=True, single=single)


class CallReader:
    """Tells calls from text while an answer grows; white space before a call is no text.

    What calls a function that is not offered is text: whoever runs calls must not meet it.

    Args:
        offer: a forced call is all of the answer; without functions all of it is text.
    """

    def __init__(self, offer: Offer) -> None:
        self._forced, self._single = offer.forced, offer.single
        self._names = {one.name for one in offer.functions}
        self._held, self._called = "", False

    def add(self, text: str) -> list[str | Call]:
        """Takes text; gives what of it is certain: pieces of text, and calls that are complete."""
        if not self._names:
            return [text] if text else []
        if self._over:
            return []
        self._held += text
        return [] if self._forced else self._taken()

    def end(self) -> list[str | Call]:
        """The rest, when nothing follows; a call that broke off stays text."""
        held, self._held = self._held, ""
        if not held or self._over or (self._called and held.isspace()):
            return []
        return [self._call(held if self._forced else held.lstrip().removeprefix(START)) or held]

    @property
    def _over(self) -> bool:
        """Nothing follows the only call."""
        return self._called and self._single

    def _taken(self) -> list[str | Call]:
        news: list[str | Call] = []
        while True:
            at = self._held.find(START)
            if at < 0:
                keep = next(
                    (n for n in range(len(START) - 1, 0, -1) if self._held.endswith(START[:n])), 0
                )
                sure, self._held = _split(self._held, len(self._held) - keep)
                sure, self._held = sure.rstrip(), sure[len(sure.rstrip()) :] + self._held
                return news + ([sure] if sure else [])
            if sure := self._held[:at].rstrip():
                news.append(sure)
            self._held = self._held[len(sure) :]  # with the space before it: it may be no call
            end = self._held.find(END)
            if end < 0:
                return news
            whole, self._held = _split(self._held, end + len(END))
            call = self._call(whole.lstrip().removeprefix(START).removesuffix(END))
            news.append(call or whole)
            if self._over:
                return news

    def _call(self, text: str) -> Call | None:
        call = _call(text)
        if call is None or call.name not in self._names:
            return None
        self._called = True
        return call


def _split(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]


def _call(text: str) -> Call | None:
    """The call in a text; None where it is none."""
    try:
        data = json.loads(text)
        name, arguments = data["name"], data.get("arguments", {})
        arguments = arguments if isinstance(arguments, str) else _json(arguments)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str):
        return None
    return Call(name, arguments.encode("utf-8", "replace").decode())


def _json(value: Any) -> str:
    """JSON with characters as they are, but for halves of them, which UTF-8 cannot hold."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
