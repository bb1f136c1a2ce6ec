"""`response_format` and forced calls of functions: both are grammars of the answer."""

from typing import Any, Literal

from pydantic import Field

from gchat.engine import grammar as grammars
from gchat.engine.grammar import Grammar
from gchat.serve.bodies import Strict


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
