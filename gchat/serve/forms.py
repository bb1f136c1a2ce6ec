"""`response_format` and forced calls of functions: both are grammars of the answer."""

from typing import Any, Literal

from pydantic import Field

from gchat.engine import grammar as grammars
from gchat.engine.grammar import Grammar
from gchat.serve.bodies import Strict

_DATA = ("const", "enum", "default", "examples")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


class JsonSchema(Strict):
    """A schema with its name."""

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form that an answer must have: any text, any JSON object, or a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """The form as a grammar; None for text.

        Raises:
            ConfigError: the schema is none.
        """
        if self.type == "text":
            return None
        if self.type == "json_object" or self.json_schema is None:
            return grammars.json_schema({"type": "object"})
        return grammars.json_schema(self.json_schema.schema_ or {})


def within(schema: Any, place: str) -> Any:
    """A whole schema as a part of another one: its references, which begin at its root, follow.

    Args:
        schema: with references such as `#/$defs/Item`, or `#` to itself.
        place: where it will stand, `#/$defs/NAME`.
    """
    if isinstance(schema, list):
        return [within(one, place) for one in schema]
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema  # with an address of its own it stays the root of what is in it
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            made[key] = place + value.removeprefix("#")
        elif key in _BY_NAME and isinstance(value, dict):
            made[key] = {name: within(one, place) for name, one in value.items()}
        else:
            made[key] = value if key in _DATA else within(value, place)
    return made
