"""`/v1/chat/completions` of a run: conversations in, answers out, whole or as they grow."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gaia.errors import GaiaError
from gchat.chat_format import Message
from gchat.engine.grammar import Grammar
from gchat.engine.requests import MAX_STOPS, Request
from gchat.serve import logprobs
from gchat.serve.asking import Asked, News, said
from gchat.serve.bodies import MAX_PARTS, Drawing, Strict, bias_of, listed, read
from gchat.serve.errors import ApiError, refused
from gchat.serve.forms import ResponseFormat
from gchat.serve.functions import START, Call, CallReader, Offer, Tool, ToolCall, ToolChoice, offer
from gchat.serve.local_model import LocalModel
from gchat.serve.service import Service
from gchat.serve.sse import EventStream, event, while_there

MAX_MESSAGES = 2048
MAX_TOOLS = 128


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], listed(MAX_PARTS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], listed(MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    # What the official client writes of an answer that it sends back: nothing is in them.
    annotations: Annotated[list[Any], listed(0)] | None = None
    audio: None = None
    function_call: None = None
    reasoning: None = None
    reasoning_content: None = None

    @model_validator(mode="after")
    def _whole(self) -> "ChatMessage":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant's messages have tool_calls")
        return self

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


Messages = Annotated[list[ChatMessage], listed(MAX_MESSAGES, fewest=1)]


class ChatBody(Drawing):
    """A request for the next message of a conversation."""

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], listed(MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], listed(8)] | None = None

    @property
    def likelihoods(self) -> int | None:
        """Alternatives per token, None where no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True)
class Prepared:
    """A conversation as the engine takes it."""

    request: Request
    offer: Offer


def conversation(messages: list[ChatMessage], functions: Offer) -> list[Message]:
    """The messages in the three roles that models are trained on.

    Raises:
        ApiError: an instruction comes later than the first messages.
    """
    instructions: list[str] = []
    made: list[Message] = []
    for i, one in enumerate(messages):
        if one.role in ("system", "developer"):
            if made:
                raise ApiError(400, f"messages[{i}].role is {one.role!r}; put it first",
                               param=f"messages.{i}.role")  # fmt: skip
            instructions.append(one.text)
        elif one.role == "tool":
            text = f"<tool_response>\n{one.text}\n</tool_response>"
            if i and messages[i - 1].role == "tool":
                text = f"{made.pop().content}\n{text}"
            made.append(Message("user", text))
        else:
            calls = [call.text() for call in one.tool_calls or ()]
            made.append(Message(one.role, "\n".join([*([one.text] if one.text else []), *calls])))
    if told := functions.told():
        instructions.append(told)
    return [*([Message("system", "\n\n".join(instructions))] if instructions else []), *made]


def prepare(model: LocalModel, body: ChatBody) -> Prepared:
    """The request to the engine; takes a while for long conversations and new grammars.

    Raises:
        ApiError: it cannot work.
    """
    functions = offer(body.tools, body.tool_choice, single=body.parallel_tool_calls is False)
    messages = conversation(body.messages, functions)
    try:
        ids = model.chat_format.prompt(messages)
        if functions.forced:
            ids = ids + model.tokenizer.encode(f"{START}\n")
        limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        stops = body.stops()
        if len(stops) < MAX_STOPS:  # else what follows the only call is written, and left out
            stops = tuple(dict.fromkeys((*stops, *functions.stops)))
        request = Request(
            ids,
            answer_limit(model, getattr(body, limit), len(ids), limit),
            body.sampling(),
            model.stop_ids,
            stops,
            body.samples,
            body.likelihoods,
            model.mask(_form(body, functions)),
            logit_bias=bias_of(body.logit_bias, model.tokenizer.vocab_size),
        )
        request.check(model.tokenizer.padded_vocab_size, model.seq_len)
    except GaiaError as error:
        raise refused(error) from None
    return Prepared(request, functions)


def _form(body: ChatBody, functions: Offer) -> Grammar | None:
    """The grammar that the answer must follow.

    Raises:
        ApiError: two are asked for, or one under which no offered function can be called.
    """
    fields = {
        "a forced tool_choice": functions,
        "response_format": body.response_format,
        "structured_outputs": body.structured_outputs,
    }
    given = {name: field.grammar() for name, field in fields.items() if field is not None}
    forms = {name: form for name, form in given.items() if form is not None}
    if len(forms) > 1:
        raise ApiError(400, f"{' and '.join(forms)} exclude one another; leave all but one out")
    for name, form in forms.items():
        if functions.functions and not functions.forced:
            raise ApiError(
                400, f"tools and {name} exclude one another, since an answer of that form calls "
                "nothing; leave one out, or set tool_choice to none", param=name,
                code="invalid_value",
            )  # fmt: skip
        return form
    return None


def answer_limit(
    model: LocalModel, wanted: int | None, prompt: int, param: str = "max_tokens"
) -> int:
    """Tokens that an answer may have.

    Raises:
        ApiError: more are wanted than an answer may have, or the prompt leaves no room.
    """
    if wanted is not None and wanted > model.max_tokens:
        raise ApiError(400, f"{param} is {wanted}; an answer has at most {model.max_tokens} tokens",
                       param=param, code="invalid_value")  # fmt: skip
    if prompt >= model.seq_len:
        raise ApiError(
            400, f"the prompt has {prompt} tokens, and the model reads {model.seq_len} with the "
            "answer; shorten it", code="context_length_exceeded",
        )  # fmt: skip
    return model.max_tokens if wanted is None else wanted


async def chat(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Answers a conversation."""
    body = await read(ChatBody, data)
    prepared = await run_in_threadpool(prepare, model, body)
    asked = service.ask(http, model, [prepared.request], calculator=not prepared.offer.functions)
    answers = _Answers(model, body, prepared.offer, asked)
    if body.stream:
        return EventStream(answers.stream(), close=asked.cancel)
    try:
        return JSONResponse(await while_there(http, answers.whole()))
    finally:
        asked.cancel()


class _Answers:
    """The answers to one conversation, in OpenAI's words."""

    def __init__(self, model: LocalModel, body: ChatBody, functions: Offer, asked: Asked) -> None:
        self._model, self._body, self._asked = model, body, asked
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"step-{model.step}",
        }
        self._readers = [CallReader(functions) for _ in range(asked.count)]
        self._called = [0] * asked.count

    def _read(self, index: int, news: News) -> tuple[list[str | Call], str | None]:
        """Pieces of an answer, and its end where this is it."""
        reader = self._readers[index]
        pieces = reader.add(said(news))
        if news.finish is not None:
            pieces = pieces + reader.end()
        self._called[index] += sum(isinstance(piece, Call) for piece in pieces)
        finish: str | None = news.finish
        if finish == "stop" and self._called[index]:
            finish = "tool_calls"
        return pieces, finish

    async def whole(self) -> dict[str, Any]:
        """All answers, when they are there."""
        count = self._asked.count
        texts: list[list[str]] = [[] for _ in range(count)]
        calls: list[list[Call]] = [[] for _ in range(count)]
        tokens: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        ends: list[str | None] = [None] * count
        async for index, news in self._asked.news():
            pieces, finish = self._read(index, news)
            texts[index] += [piece for piece in pieces if isinstance(piece, str)]
            calls[index] += [piece for piece in pieces if isinstance(piece, Call)]
            tokens[index] += logprobs.of_chat(self._model, news.logprobs)
            ends[index] = finish or ends[index]
        choices = []
        for index in range(count):
            message: dict[str, Any] = {
                "role": "assistant", "content": "".join(texts[index]), "refusal": None
            }  # fmt: skip
            if calls[index]:
                message["content"] = message["content"] or None
                message["tool_calls"] = [call.body() for call in calls[index]]
            likely = {"content": tokens[index], "refusal": None} if self._body.logprobs else None
            choices.append(
                {"index": index, "message": message, "logprobs": likely,
                 "finish_reason": ends[index]}
            )  # fmt: skip
        usage = self._asked.usage.completions()
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces of the answers as they come."""
        for index in range(self._asked.count):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, news in self._asked.news():
            pieces, finish = self._read(index, news)
            likely = None
            if self._body.logprobs and news.logprobs:
                likely = logprobs.of_chat(self._model, news.logprobs)
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            if text or likely:
                yield self._chunk(index, {"content": text}, likely)
            calls = [piece for piece in pieces if isinstance(piece, Call)]
            first = self._called[index] - len(calls)
            for number, call in enumerate(calls, first):
                yield self._chunk(index, {"tool_calls": [{"index": number, **call.body()}]})
            if finish is not None:
                yield self._chunk(index, {}, finish=finish)
        if self._body.wants_usage:
            yield event(self._bare([]) | {"usage": self._asked.usage.completions()})

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        likely: list[dict[str, Any]] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish}
        choice["logprobs"] = None if likely is None else {"content": likely, "refusal": None}
        made = self._bare([choice])
        if self._body.wants_usage:
            made["usage"] = None
        return event(made)

    def _bare(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}
