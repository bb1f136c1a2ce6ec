"""Functions that a model may call: the grammar of a forced call, and calls read out of answers."""

import json

import pytest
from pydantic import BaseModel

import serving
from gchat.engine.grammar import GrammarError, Matcher, Vocabulary
from gchat.serve.bodies import checked
from gchat.serve.chat import ChatBody
from gchat.serve.forms import within
from gchat.serve.functions import Offer, offer

HELLO = [{"role": "user", "content": "x"}]


def tool(name, parameters=None):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def offered(*tools, choice="required", **more) -> Offer:
    body = checked(
        ChatBody,
        {"model": "x", "messages": HELLO, "tools": [*tools], "tool_choice": choice, **more},
    )
    return offer(body.tools, body.tool_choice)


def fits(functions, name, arguments):
    """Tells whether a forced call may be this one, whole."""
    tokenizer = serving.tokenizer()
    matcher = Matcher(functions.grammar(), Vocabulary(tokenizer, tokenizer.stop_ids))
    try:
        for token in tokenizer.encode(json.dumps({"name": name, "arguments": arguments})):
            matcher.accept(token)
    except GrammarError:
        return False
    return matcher.complete


class Item(BaseModel, extra="forbid"):
    name: str
    parts: list["Item"] = []


class Order(BaseModel, extra="forbid"):
    items: list[Item]
    gift: Item | None = None


class Recipe(BaseModel, extra="forbid"):
    item: "Kind"


class Kind(BaseModel, extra="forbid"):
    grams: int


TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "n": {"$ref": "#/definitions/n"}},
    "definitions": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_forced_calls_take_schemas_with_definitions():
    """Those of pydantic, of two functions at once, and schemas that hold themselves."""
    functions = offered(
        tool("order", Order.model_json_schema()),
        tool("cook", Recipe.model_json_schema()),
        tool("plant", TREE),
        tool("rest"),
    )
    order = {"items": [{"name": "cup", "parts": [{"name": "ear", "parts": []}]}], "gift": None}
    assert fits(functions, "order", order)
    assert not fits(functions, "order", {"items": [{"grams": 3}]})
    assert fits(functions, "cook", {"item": {"grams": 3}})
    assert not fits(functions, "cook", {"item": {"name": "cup"}})
    assert fits(functions, "plant", {"left": {"left": {"n": 1}, "n": 2}, "n": 3})
    assert not fits(functions, "plant", {"left": {"left": {}, "n": 2}, "n": 3})
    assert fits(functions, "rest", {"any": ["thing"]})


@pytest.mark.parametrize(
    ("schema", "moved"),
    [
        ({"$ref": "#"}, {"$ref": "#/$defs/f"}),
        ({"properties": {"$ref": {"type": "string"}, "const": {"$ref": "#/$defs/X"}}},
         {"properties": {"$ref": {"type": "string"}, "const": {"$ref": "#/$defs/f/$defs/X"}}}),
        ({"anyOf": [{"$ref": "#/definitions/a~1b"}, True]},
         {"anyOf": [{"$ref": "#/$defs/f/definitions/a~1b"}, True]}),
        ({"const": {"$ref": "#/x"}}, {"const": {"$ref": "#/x"}}),
        ({"$id": "https://a.b/c", "items": {"$ref": "#/x"}},
         {"$id": "https://a.b/c", "items": {"$ref": "#/x"}}),
        ({"$ref": "#name"}, {"$ref": "#name"}),
    ],
)  # fmt: skip
def test_references_follow_their_schema(schema, moved):
    assert within(schema, "#/$defs/f") == moved
