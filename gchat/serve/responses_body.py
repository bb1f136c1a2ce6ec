"""The body of `/v1/responses`, and the same question as a body of a chat."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from gchat.serve.bodies import MAX_IDS, MAX_PARTS, Labels, Strict, checked, listed
from gchat.serve.chat import MAX_MESSAGES, MAX_TOOLS, ChatBody


class Part(Strict):
    """A piece of a message."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], listed(0)] | None = None
    logprobs: Annotated[list[Any], listed(MAX_IDS)] | None = None


class Message(Strict):
    """A message of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], listed(MAX_PARTS)]
    id: str | None = None
    status: str | None = None
    phase: None = None

    def chat(self) -> dict[str, Any]:
        """The message as chats have it."""
        whole = self.content
        text = whole if isinstance(whole, str) else "".join(part.text for part in whole)
        return {"role": self.role, "content": text}


class FunctionCall(Strict):
    """A call that the model made before."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    # What the official client writes of a call that it sends back: nothing is in them.
    caller: None = None
    namespace: None = None
    async_: None = None
    aliased_async: None = Field(None, alias="async")

    def chat(self) -> dict[str, Any]:
        """The call as a message of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class FunctionOutput(Strict):
    """The output of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None

    def chat(self) -> dict[str, Any]:
        """The output as a message of a chat."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}


class FunctionTool(Strict):
    """A function that may be called."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Strict):
    """A function that must be called."""

    type: Literal["function"]
    name: str


class Format(Strict):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Text(Strict):
    """Options of the text."""

    format: Format | None = None


def _joined(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat, where a turn's text and its calls are one message."""
    made: list[dict[str, Any]] = []
    for one in messages:
        if not made or not made[-1]["role"] == one["role"] == "assistant":
            made.append(dict(one))
            continue
        last = made[-1]
        texts = [text for text in (last["content"], one["content"]) if text]
        last["content"] = "\n".join(texts)
        last["tool_calls"] = last.get("tool_calls", []) + one.get("tool_calls", [])
    return made


class ResponsesBody(Strict):
    """A request for a response."""

    model: str = Field(max_length=200)
    input: str | Annotated[list[Message | FunctionCall | FunctionOutput], listed(MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    text: Text | None = None
    tools: Annotated[list[FunctionTool], listed(MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    # Nothing is kept: each request holds the whole conversation.
    store: bool | None = None
    previous_response_id: None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    user: str | None = None
    metadata: Labels | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def chat(self) -> ChatBody:
        """The same question as a chat.

        Raises:
            ApiError: it is none.
        """
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += _joined(item.chat() for item in self.input)
        data: dict[str, Any] = {
            "model": self.model, "messages": messages, "temperature": self.temperature,
            "top_p": self.top_p, "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
        }  # fmt: skip
        if self.tools:
            data["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"})}
                for tool in self.tools
            ]
        choice = self.tool_choice
        if isinstance(choice, Choice):
            data["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            data["tool_choice"] = choice
        form = self.text.format if self.text else None
        if form is not None:
            wanted: dict[str, Any] = {"type": form.type}
            if form.type == "json_schema":
                wanted["json_schema"] = {
                    "name": form.name or "answer", "schema": form.schema_
                }  # fmt: skip
            data["response_format"] = wanted
        return checked(ChatBody, data)
