"""llama.cpp's `/completion`: {"prompt", "stream", "n_predict"} in, its own events out.

Fields and defaults are those of llama.cpp's server (tools/server/README.md): temperature 0.8,
top-k 40, top-p 0.95, min-p 0.05, and no limit of the answer but the model's window.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gaia.errors import GaiaError
from gchat.engine import grammar as grammars
from gchat.engine.requests import Request, SamplingConfig
from gchat.serve.asking import Asked, News
from gchat.serve.bodies import (
    MAX_IDS,
    Bias,
    Strict,
    Texts,
    bias_of,
    listed,
    read,
    seed_of,
    stops_of,
    temperature_of,
)
from gchat.serve.chat import answer_limit
from gchat.serve.errors import ApiError, refused
from gchat.serve.local_model import LocalModel
from gchat.serve.service import Service
from gchat.serve.sse import EventStream, event, while_there

Id = Annotated[int, Field(ge=0, lt=2**31)]


class LlamaBody(Strict):
    """A prompt to continue: a text, or ids and texts in turn."""

    prompt: str | Annotated[list[Id | str], listed(MAX_IDS, fewest=1)]
    model: str | None = None
    n_predict: int | None = Field(None, ge=-1)
    stream: bool | None = None
    stop: str | Texts | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_last_n: int | None = Field(None, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n_probs: int | None = Field(None, ge=0, le=20)
    json_schema: dict[str, Any] | None = None
    logit_bias: Bias | None = None
    cache_prompt: bool | None = None
    return_tokens: bool | None = None

    def request(self, model: LocalModel) -> Request:
        """The request to the engine.

        Raises:
            ApiError: it cannot work.
        """
        ids: list[int] = []
        parts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:  # BOS before a text that begins the prompt, as llama.cpp does
                ids += model.ids(part) if i == 0 else model.tokenizer.encode(part)
        last = _given(self.repeat_last_n, -1)
        if -1 < last < model.seq_len and _given(self.repeat_penalty, 1) != 1:
            raise ApiError(
                400, f"repeat_last_n is {self.repeat_last_n}; this server looks at all tokens, "
                "which is -1", param="repeat_last_n",
            )  # fmt: skip
        wanted = None if self.n_predict in (None, -1) else self.n_predict
        limit = answer_limit(model, wanted, len(ids), "n_predict")
        sampling = SamplingConfig(
            temperature_of(self.temperature, 0.8),
            max(0, _given(self.top_k, 40)),
            _given(self.top_p, 0.95),
            seed_of(None if self.seed == -1 else self.seed),
            _given(self.min_p, 0.05),
            _given(self.repeat_penalty, 1.0),
        )
        try:
            form = None if self.json_schema is None else grammars.json_schema(self.json_schema)
            request = Request(
                ids, max(1, limit), sampling, model.stop_ids, stops_of(self.stop), 1,
                self.n_probs or None, model.mask(form),
                bias_of(self.logit_bias, model.tokenizer.vocab_size),
            )  # fmt: skip
            request.check(model.tokenizer.vocab_size, model.seq_len)
        except GaiaError as error:
            raise refused(error) from None
        return request


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


async def completion(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Continues a prompt."""
    body = await read(LlamaBody, data)
    if body.n_predict == 0:
        raise ApiError(400, "n_predict is 0; use at least 1, or -1", param="n_predict")
    request = await run_in_threadpool(body.request, model)
    asked = service.ask(http, model, [request])
    answer = _Answer(model, body, request, asked)
    if body.stream:
        return EventStream(answer.stream(), b"", close=asked.cancel)
    try:
        return JSONResponse(await while_there(http, answer.whole()))
    finally:
        asked.cancel()


class _Answer:
    """One answer in llama.cpp's words."""

    def __init__(self, model: LocalModel, body: LlamaBody, request: Request, asked: Asked) -> None:
        self._model, self._body, self._request, self._asked = model, body, request, asked

    def _facts(self) -> dict[str, Any]:
        usage = self._asked.usage
        return {
            "index": 0,
            "id_slot": -1,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
        }

    def _end(self, news: News) -> dict[str, Any]:
        word = news.stopped_by if isinstance(news.stopped_by, str) else ""
        kind = "limit" if news.finish == "length" else "word" if word else "eos"
        return {
            **self._facts(),
            "model": self._model.name,
            "stop": True,
            "stop_type": kind,
            "stopping_word": word,
            "truncated": False,
            "tokens_cached": self._asked.usage.cached_tokens,
            "prompt": self._model.tokenizer.decode(self._request.ids),
        }

    def _probabilities(self, news: News) -> list[dict[str, Any]]:
        def one(number: int, logprob: float) -> dict[str, Any]:
            raw = self._model.bytes_of(number)
            text = raw.decode("utf-8", "replace")
            return {"id": number, "token": text, "bytes": list(raw), "logprob": logprob}

        return [
            {**one(token.id, token.logprob), "top_logprobs": [one(*pair) for pair in token.top]}
            for token in news.logprobs
        ]

    async def whole(self) -> dict[str, Any]:
        """The answer, when it is there."""
        text: list[str] = []
        ids: list[int] = []
        likely: list[dict[str, Any]] = []
        end: dict[str, Any] = {}
        async for _, news in self._asked.news():
            text.append(news.text)
            ids += news.ids
            likely += self._probabilities(news)
            if news.finish is not None:
                end = self._end(news)
        made = {**end, "content": "".join(text), "tokens": ids if self._body.return_tokens else []}
        return made | ({"completion_probabilities": likely} if self._body.n_probs else {})

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces of the answer as they come, the last one with `stop` true."""
        async for _, news in self._asked.news():
            made: dict[str, Any] = {"content": news.text, "tokens": list(news.ids)}
            if self._body.n_probs and news.logprobs:
                made["completion_probabilities"] = self._probabilities(news)
            if news.finish is None:
                if news.text or news.ids:
                    yield event({**self._facts(), **made, "stop": False})
                continue
            if news.text or news.ids:
                yield event({**self._facts(), **made, "stop": False})
            yield event({**self._end(news), "content": "", "tokens": []})
