"""Functions that a model may call: the grammar of a forced call, and calls read out of answers."""

import json

import pytest
from pydantic import BaseModel

import serving
from gchat.engine.grammar import GrammarError, Matcher, Vocabulary
from gchat.serve.bodies import checked
from gchat.serve.chat import ChatBody, conversation, prepare
from gchat.serve.forms import within
from gchat.serve.functions import (
    END,
    START,
    Call,
    CalledFunction,
    CallReader,
    Offer,
    ToolCall,
    offer,
)
from gchat.serve.responses_body import ResponsesBody

HELLO = [{"role": "user", "content": "x"}]


def tool(name, parameters=None):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def offered(*tools, choice="required", **more) -> Offer:
    body = checked(
        ChatBody,
        {"model": "x", "messages": HELLO, "tools": [*tools], "tool_choice": choice, **more},
    )
    return offer(body.tools, body.tool_choice, single=body.parallel_tool_calls is False)


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


# ── Calls in answers ────────────────────────────────────────────────────────────────────────────


def call(name, tags=True):
    text = json.dumps({"name": name, "arguments": {}})
    return f"{START}\n{text}\n{END}" if tags else text


def read(functions, text):
    """Text and names of calls, as an answer that comes letter by letter is read."""
    reader = CallReader(functions)
    news = [one for letter in text for one in reader.add(letter)] + reader.end()
    return (
        "".join(one for one in news if isinstance(one, str)),
        [one.name for one in news if isinstance(one, Call)],
    )


def test_a_function_that_was_not_offered_is_not_called():
    functions = offered(tool("look"), choice="auto")
    assert read(functions, f"x {call('rm')} {call('look')}") == (f"x {call('rm')}", ["look"])
    assert read(functions, call("rm") + "\n") == (call("rm") + "\n", [])
    forced = offered(tool("look"))
    assert read(forced, call("rm", tags=False)) == (call("rm", tags=False), [])
    assert read(forced, call("look", tags=False)) == ("", ["look"])


def test_one_call_at_most_where_calls_may_not_be_parallel():
    single = offered(tool("look"), choice="auto", parallel_tool_calls=False)
    assert read(single, f"x {call('look')}\n{call('look')} y") == ("x", ["look"])
    # The answer ends before the tag that closes its call.
    assert read(single, f"x {call('look').removesuffix(END)}") == ("x", ["look"])
    assert "at most one function" in single.told()
    many = offered(tool("look"), choice="auto", parallel_tool_calls=True)
    assert read(many, call("look") * 2) == ("", ["look"] * 2)
    assert "one or more functions" in many.told()


def request(server, **more):
    """The request to the engine for a chat with a function."""
    body = {"model": "tiny", "messages": HELLO, "tools": [tool("look")], **more}
    return prepare(server.service.models["tiny"], checked(ChatBody, body)).request


def test_an_answer_with_one_call_at_most_ends_with_it(server):
    assert request(server).stop == ()
    assert request(server, parallel_tool_calls=False, stop="x").stop == ("x", END)
    assert request(server, parallel_tool_calls=False, tool_choice="none").stop == ()
    full = [str(i) for i in range(16)]
    assert request(server, parallel_tool_calls=False, stop=full).stop == tuple(full)
    ask = {"model": "tiny", "input": "x", "max_output_tokens": 1}
    for given, told in (({"parallel_tool_calls": False}, False), ({}, True)):
        assert server.post("/v1/responses", **ask, **given).json()["parallel_tool_calls"] is told
    body = checked(ResponsesBody, ask | {"parallel_tool_calls": False})
    assert body.chat().parallel_tool_calls is False


# ── What clients send ───────────────────────────────────────────────────────────────────────────

FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
FLAT = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}


def test_functions_and_a_form_of_the_answer_are_refused_by_name(server):
    """Under the form's grammar no offered function could be called."""
    chat = {"model": "tiny", "messages": HELLO, "tools": [tool("look")], "max_tokens": 1}
    flat = {"type": "function", **tool("look")["function"]}
    response = {"model": "tiny", "input": "x", "tools": [flat], "max_output_tokens": 1}
    for path, ask, name, form in (
        ("/v1/chat/completions", chat, "response_format", {"response_format": FORM}),
        ("/v1/chat/completions", chat, "structured_outputs",
         {"structured_outputs": {"regex": "a"}}),
        ("/v1/responses", response, "text.format", {"text": {"format": FLAT}}),
    ):  # fmt: skip
        error = server.post(path, **ask, **form).json()["error"]
        assert error["param"] == name and error["message"].startswith(f"tools and {name} exclude")
        assert server.post(path, **ask, **form, tool_choice="none").status_code == 200
    both = server.post("/v1/chat/completions", **chat, response_format=FORM, tool_choice="required")
    assert "a forced tool_choice and response_format" in both.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("/v1/chat/completions", {"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ("/v1/chat/completions", {"max_tokens": 10**6}, "max_tokens"),
        ("/v1/responses", {"max_output_tokens": 10**6}, "max_output_tokens"),
        ("/v1/responses", {"input": [
            {"role": "user", "content": "x"}, {"role": "system", "content": "late"}]}, "input"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_that_was_sent(server, path, sent, param):
    ask = {"model": "tiny", "input": "x"} if "responses" in path else {
        "model": "tiny", "messages": HELLO}  # fmt: skip
    error = server.post(path, **ask | sent).json()["error"]
    assert error["param"] == param and error["message"].startswith(param)


def test_answers_may_come_back_with_all_the_nulls_of_the_official_client(server):
    nulls = {"refusal": None, "annotations": None, "audio": None, "function_call": None,
             "reasoning_content": None, "tool_calls": None}  # fmt: skip
    ask = {"model": "tiny", "max_tokens": 1}
    for more in ({}, {"annotations": []}):
        said = [*HELLO, {"role": "assistant", "content": "y", **nulls, **more}]
        answer = server.post("/v1/chat/completions", **ask, messages=said)
        assert answer.status_code == 200, answer.text
    said[-1]["audio"] = {"id": "1"}
    answer = server.post("/v1/chat/completions", **ask, messages=said)
    assert answer.status_code == 400 and "audio" in answer.json()["error"]["param"]
    items = [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "id": None,
              "status": None, "caller": None, "namespace": None, "async_": None, "async": None},
             {"type": "message", "role": "assistant", "content": "y", "phase": None}]  # fmt: skip
    answer = server.post("/v1/responses", model="tiny", input=items, max_output_tokens=1)
    assert answer.status_code == 200, answer.text


def test_a_turn_of_several_items_is_one_message_as_in_chats():
    function = CalledFunction(name="f", arguments="{}")
    calls = [ToolCall(id=i, type="function", function=function) for i in "12"]
    outputs = [{"type": "function_call_output", "call_id": i, "output": i} for i in "12"]
    items = [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "assistant", "content": "let me see"},
        *({"type": "function_call", "call_id": i, "name": "f", "arguments": "{}"} for i in "12"),
        *outputs,
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
    ]
    body = checked(ResponsesBody, {"model": "x", "input": items, "instructions": "Be brief."})
    made = conversation(body.chat().messages, Offer())
    assert [one.role for one in made] == ["system", "user", "assistant", "user", "assistant"]
    assert made[2].content == "\n".join(["let me see", *(one.text() for one in calls)])
