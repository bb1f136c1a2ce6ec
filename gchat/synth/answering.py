"""Answers to the questions of a queue: one item, one question of a model."""

import json
from collections.abc import Callable
from typing import Any

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.chat_format import Message
from gchat.client import Client, Question, Usage
from gchat.engine.grammar import json_schema
from gchat.engine.requests import SamplingConfig
from gchat.queue import Failed
from gchat.synth import making
from gchat.synth.failures import failed


def make_do(
    client: Client, price: Callable[[Usage], float] = lambda usage: 0.0
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The work of one item: payload to result, of `gchat synth generate` or a question.

    A question's payload holds "messages" ([{"role", "content"}, …]), and as it likes "max_tokens",
    "temperature", "seed" and "schema", a JSON schema of the answer; other fields are labels. A
    result holds "text" ("answer" too, read by the schema), "finish", "model", "tokens" and "cost".

    Args:
        client: of the model.
        price: US dollars of an answer's tokens.
    """
    records = making.make_do(client, price)

    def do(payload: dict[str, Any]) -> dict[str, Any]:
        if "window" in payload:  # of `gchat synth generate`
            return records(payload)
        question = _question(payload)
        try:
            answer = client.complete(question)
        except GaiaError as error:
            raise failed(error) from None
        cost = price(answer.usage)
        choice = answer.choices[0]
        result: dict[str, Any] = {"text": choice.text, "finish": choice.finish}
        if choice.finish not in ("stop", "length"):
            raise Failed(f"answer ended by {choice.finish}", cost=cost)
        if "schema" in payload:
            result["answer"] = _read(choice.text, payload["schema"], cost)
        tokens = [answer.usage.prompt_tokens, answer.usage.completion_tokens]
        return result | {"model": answer.model, "tokens": tokens, "cost": cost}

    return do


def _question(payload: dict[str, Any]) -> Question:
    try:
        messages = tuple(Message(one["role"], one["content"]) for one in payload["messages"])
        sampling = SamplingConfig(
            temperature=float(payload.get("temperature", 0.7)), seed=int(payload.get("seed", 0))
        )
        schema = payload.get("schema")
        question = Question(
            messages=messages,
            max_tokens=int(payload.get("max_tokens", 300)),
            sampling=sampling,
            grammar=None if schema is None else json_schema(schema),
        )
        question.check()
    except (KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        text = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise Failed(f"payload: {text}", retry=False) from None
    return question


def _read(text: str, schema: Any, cost: float) -> Any:
    """The answer as JSON; endpoints that ignore a schema answer with anything."""
    try:
        value = json.loads(text)
    except ValueError:
        raise Failed("schema: the answer is not JSON", cost=cost) from None
    needed = schema.get("required", ()) if isinstance(schema, dict) else ()
    missing = [name for name in needed if not isinstance(value, dict) or name not in value]
    if missing:
        raise Failed(f"schema: the answer lacks {', '.join(missing)}", cost=cost)
    return value
