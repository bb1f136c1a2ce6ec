"""Bodies of requests: what they share, and how they are read.

Fields have OpenAI's names; those that OpenAI does not have are vLLM's. A field that this server
does not know is refused by name: an option that is silently ignored is worse than an error.
"""

import json
import math
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from gaia.errors import ConfigError
from gchat.engine import grammar as grammars
from gchat.engine.grammar import Grammar
from gchat.engine.requests import MAX_STOPS, SamplingConfig
from gchat.ranges import MAX_SEED
from gchat.serve.errors import ApiError, printable

_COLDEST = 1e-5
MAX_SAMPLES = 128
"""Answers to one prompt, as OpenAI limits them."""

MAX_IDS = 2**20
MAX_PARTS = 4096
_SMALL = 16_384  # bytes of a body that is read on the event loop: a thread would take longer

Body = TypeVar("Body", bound="Strict")


# ── Bounds ──────────────────────────────────────────────────────────────────────────────────────
# Only the first error is told. pydantic would make one for each wrong item, field and arm of a
# union: gigabytes for a body of a few megabytes.


def listed(most: int, fewest: int | None = None) -> Any:
    """The bounds of a list, which is not checked further than its first wrong item."""
    return Field(min_length=fewest, max_length=most, fail_fast=True)


def _first_wrong(*kinds: type) -> BeforeValidator:
    """Leaves of a dictionary with a value that is none of these kinds that item alone."""

    def first(given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            if type(value) not in kinds:
                return {name: value}
        return given

    return BeforeValidator(first)


class Strict(BaseModel):
    """A JSON object without unknown fields; numbers are not read out of texts."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Leaves one unknown field where there are more fields than are known."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next(name for name in given if name not in known)
        return {name: value for name, value in given.items() if name in known or name == unknown}


Texts = Annotated[list[str], listed(65_536)]
Bias = Annotated[dict[str, float], _first_wrong(int, float)]
Labels = Annotated[dict[str, str], _first_wrong(str)]


# ── Fields ──────────────────────────────────────────────────────────────────────────────────────


class Forms(Strict):
    """vLLM's field for the form of an answer; exactly one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Texts | None = None

    def grammar(self) -> Grammar:
        """The form as a grammar; ConfigError where it is none."""
        given = [value for value in (self.json_, self.regex, self.choice) if value is not None]
        if len(given) != 1:
            raise ConfigError(f"structured_outputs holds {len(given)} forms", "give one")
        if self.json_ is not None:
            return grammars.json_schema(self.json_)
        return grammars.regex(self.regex) if self.regex else grammars.choice(self.choice or [])


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Drawing(Strict):
    """The way tokens are drawn; the same for chats and completions."""

    model: str = Field(max_length=200)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Texts | None = Field(None)
    n: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    logit_bias: Bias | None = None
    structured_outputs: Forms | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Labels for the provider's own records: there is nothing that they could change here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Labels | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    def sampling(self) -> SamplingConfig:
        """Options as the engine takes them; without a seed each request draws anew."""
        return SamplingConfig(
            temperature_of(self.temperature, 1.0),
            max(0, self.top_k or 0),
            1.0 if self.top_p is None else self.top_p,
            seed_of(self.seed),
            self.min_p or 0.0,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return stops_of(self.stop)

    @property
    def samples(self) -> int:
        """Answers that are wanted."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """The stream ends with a chunk of the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def temperature_of(temperature: float | None, otherwise: float) -> float:
    """A temperature of the engine; one so low that logits would overflow is that of no draw."""
    given = otherwise if temperature is None else temperature
    return given if given >= _COLDEST else 0.0


def seed_of(seed: int | None) -> int:
    """A seed of the engine."""
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed % (MAX_SEED + 1)


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Texts that end an answer, each once.

    Raises:
        ApiError: there are too many, or one is empty.
    """
    texts = [stop] if isinstance(stop, str) else list(dict.fromkeys(stop or ()))
    if len(texts) > MAX_STOPS or "" in texts:
        raise ApiError(400, f"stop: use up to {MAX_STOPS} texts, none empty", param="stop")
    return tuple(texts)


def bias_of(given: dict[str, float] | None, vocab: int) -> dict[int, float]:
    """Additions to logits, by id.

    Raises:
        ApiError: an id is none of the model's, or an addition too large.
    """
    made: dict[int, float] = {}
    for text, value in (given or {}).items():
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < vocab):
            raise ApiError(
                400, f"logit_bias: {printable(text, 40)!r} is no id of the model; use 0 to "
                f"{vocab - 1}", param="logit_bias",
            )  # fmt: skip
        if not -100 <= value <= 100:
            raise ApiError(400, f"logit_bias: {value} for {text}; use -100 to 100",
                           param="logit_bias")  # fmt: skip
        made[int(text)] = value
    return made


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


async def read_json(request: HttpRequest) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        ApiError: it is not said to be JSON, is none, or is no object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the Content-Type is {printable(kind, 60)!r}; send application/json",
            code="unsupported_media_type",
        )  # fmt: skip
    raw = await request.body()
    return await run_in_threadpool(_parsed, raw) if len(raw) > _SMALL else _parsed(raw)


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        # From bytes json would take UTF-16 too, and halves of characters that UTF-8 does not allow.
        text = raw.decode("utf-8-sig")
        data = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if b"\\ud" in raw.lower():  # a pair of surrogates is a character, one alone is none
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError:
        raise ApiError(
            400, "the body is not UTF-8, or holds half a character", code="invalid_json"
        ) from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error))
        raise ApiError(400, f"the body is not JSON ({why})", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return value


async def read(kind: type[Body], data: dict[str, Any]) -> Body:
    """The body with its fields checked, which takes a while where it is large.

    Raises:
        ApiError: naming the first field that is wrong.
    """
    return await run_in_threadpool(checked, kind, data)


def checked(kind: type[Body], data: dict[str, Any]) -> Body:
    """The body with its fields checked.

    Raises:
        ApiError: naming the first field that is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = printable(".".join(str(part) for part in first["loc"]), 200)
        if first["type"] == "missing":
            message = f"{param} is missing"
        elif first["type"] == "extra_forbidden":
            message = f"{param} is no field that this server knows; leave it out"
        else:
            message = f"{param}: {printable(first['msg'])}"
        raise ApiError(400, message, param=param or None, code="invalid_value") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
