"""`/v1/completions` of a run: texts and token ids to continue, with what is before them if wanted.

`echo` with `logprobs` gives the log-probability of each token of the prompt, which is what
evaluations score continuations by. The tokens are those that the caller sent: the BOS that is put
before a text is not among them, so that all of a text's tokens have a log-probability, and a list
of ids, which nothing is put before, begins with null.
"""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gaia.errors import GaiaError
from gchat.engine.requests import Request, TokenLogprob
from gchat.serve.asking import Asked, News
from gchat.serve.bodies import MAX_IDS, Drawing, bias_of, listed, read
from gchat.serve.chat import answer_limit
from gchat.serve.errors import ApiError, refused
from gchat.serve.local_model import LocalModel
from gchat.serve.logprobs import Columns
from gchat.serve.service import Service
from gchat.serve.sse import EventStream, event, while_there

MAX_PROMPTS = 2048
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], listed(MAX_IDS, fewest=1)]
Texts = Annotated[list[str], listed(MAX_PROMPTS, fewest=1)]
Lists = Annotated[list[Ids], listed(MAX_PROMPTS, fewest=1)]


class CompletionBody(Drawing):
    """A request to continue one prompt or several."""

    prompt: str | Ids | Texts | Lists
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1)
    suffix: Literal[""] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, a text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


def prepare(model: LocalModel, body: CompletionBody) -> list[Request]:
    """The requests to the engine, one for each prompt.

    Raises:
        ApiError: one cannot work.
    """
    if body.best_of is not None and body.best_of != body.samples:
        raise ApiError(400, "best_of: this server gives all n answers; leave it out",
                       param="best_of")  # fmt: skip
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens is 0; use at least 1, or echo", param="max_tokens")
    try:
        form = body.structured_outputs.grammar() if body.structured_outputs else None
        mask = model.mask(form)
        bias = bias_of(body.logit_bias, model.tokenizer.vocab_size)
        sampling = body.sampling()
        requests = []
        for prompt in body.prompts():
            ids = model.ids(prompt) if isinstance(prompt, str) else prompt
            limit = answer_limit(model, _default(body.max_tokens, 16), len(ids))
            request = Request(
                ids,
                max(1, limit),
                sampling,
                model.stop_ids,
                body.stops(),
                body.samples,
                body.logprobs,
                mask,
                bias,
                body.logprobs if body.echo else None,
            )
            request.check(model.tokenizer.vocab_size, model.seq_len)
            requests.append(request)
    except GaiaError as error:
        raise refused(error, "prompt") from None
    return requests


def _default(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


async def completions(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Continues prompts."""
    body = await read(CompletionBody, data)
    requests = await run_in_threadpool(prepare, model, body)
    asked = service.ask(http, model, requests)
    answers = _Answers(model, body, requests, asked)
    if body.stream:
        return EventStream(answers.stream(), close=asked.cancel)
    try:
        return JSONResponse(await while_there(http, answers.whole()))
    finally:
        asked.cancel()


class _Answers:
    """The answers to all prompts of a request, numbered prompt by prompt."""

    def __init__(
        self, model: LocalModel, body: CompletionBody, requests: list[Request], asked: Asked
    ) -> None:
        self._model, self._body, self._requests, self._asked = model, body, requests, asked
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"step-{model.step}",
        }
        self._prompts = [_Prompt(model, one, given) for one, given in
                         zip(requests, body.prompts(), strict=True)]  # fmt: skip
        self._columns: dict[int, Columns] = {}
        self._scored: dict[int, tuple[TokenLogprob, ...]] = {}

    def _piece(self, index: int, news: News) -> "_Piece":
        """The part of an answer that news are, the echo of the prompt with the first."""
        of_prompt = index // self._body.samples
        first = index not in self._columns
        prompt = self._prompts[of_prompt]
        if first:
            self._columns[index] = Columns(self._model, 0 if self._body.echo else len(prompt.text))
        columns = self._columns[index]
        wanted = self._body.logprobs is not None
        piece = _Piece(likely=columns.of(()) if wanted else None)
        if first and self._body.echo:
            piece.text = prompt.text
            if wanted:
                piece.add(columns.of(prompt.tokens(self._scored[of_prompt])))
        if not self._nothing:
            piece.text += news.text
            if wanted:
                piece.add(columns.of(news.logprobs))
        if news.finish is not None:
            piece.finish = "length" if self._nothing else news.finish
        return piece

    @property
    def _nothing(self) -> bool:
        """The prompt alone is wanted: the one token that the engine adds is left out."""
        return self._body.max_tokens == 0

    async def _pieces(self) -> AsyncIterator[tuple[int, "_Piece"]]:
        """Pieces of answers; those of a prompt that is scored wait until it is."""
        held: dict[int, list[tuple[int, News]]] = {}
        waiting = self._body.echo and self._body.logprobs is not None
        async for index, news in self._asked.news():
            of_prompt = index // self._body.samples
            scores = getattr(news, "prompt_logprobs", None)
            if scores is not None:
                self._scored[of_prompt] = scores
                for one in held.pop(of_prompt, ()):
                    yield one[0], self._piece(*one)
            elif waiting and of_prompt not in self._scored:
                held.setdefault(of_prompt, []).append((index, news))
            else:
                yield index, self._piece(index, news)

    async def whole(self) -> dict[str, Any]:
        """All answers, when they are there."""
        wholes: dict[int, _Piece] = {}
        async for index, piece in self._pieces():
            whole = wholes.setdefault(index, piece)
            if whole is not piece:
                whole.text += piece.text
                whole.add(piece.likely)
                whole.finish = piece.finish
        choices = [wholes[index].choice(index) for index in range(self._asked.count)]
        return self._usage({**self._head, "choices": choices})

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces of the answers as they come."""
        async for index, piece in self._pieces():
            if piece.text or piece.finish or (piece.likely and piece.likely["tokens"]):
                made = {**self._head, "choices": [piece.choice(index)]}
                yield event(made | ({"usage": None} if self._body.wants_usage else {}))
        if self._body.wants_usage:
            yield event(self._usage({**self._head, "choices": []}))

    def _usage(self, made: dict[str, Any]) -> dict[str, Any]:
        usage = self._asked.usage
        if self._nothing:
            usage.completion_tokens = 0
        return made | {"usage": usage.completions()}


class _Prompt:
    """A prompt as it is echoed."""

    def __init__(self, model: LocalModel, request: Request, given: str | list[int]) -> None:
        self._ids, self._is_text = request.ids, isinstance(given, str)
        self.text = given if isinstance(given, str) else model.tokenizer.decode(given)

    def tokens(self, scored: tuple[TokenLogprob, ...]) -> list[TokenLogprob | int]:
        """The caller's tokens: of a text without the BOS before it, else the first bare."""
        return [*scored] if self._is_text else [self._ids[0], *scored]


class _Piece:
    """A part of an answer."""

    def __init__(self, likely: dict[str, list[Any]] | None) -> None:
        self.text, self.likely = "", likely
        self.finish: str | None = None

    def add(self, likely: dict[str, list[Any]] | None) -> None:
        """Adds the log-probabilities of further tokens."""
        if self.likely is not None and likely is not None:
            for name, values in likely.items():
                self.likely[name] += values

    def choice(self, index: int) -> dict[str, Any]:
        return {
            "index": index, "text": self.text, "logprobs": self.likely,
            "finish_reason": self.finish,
        }  # fmt: skip
