"""Halves of characters, as bytes and as escapes: refused or carried along, never a 500."""

import json

import pytest

from gchat.engine import grammar as grammars
from gchat.serve.functions import Call, CalledFunction, CallReader, Function, Offer, ToolCall
from tests.fakes import openai_api

HALF = b"\xed\xa0\x80"  # U+D800 as UTF-8 would have it, had it one
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "HALF"}}
PLACES = {
    "a label": ("/v1/responses", {"input": "x", "user": "HALF"}),
    "an input": ("/v1/responses", {"input": "HALF"}),
    "an item": ("/v1/responses", {"input": [{"role": "user", "content": "HALF"}]}),
    "a model": ("/v1/chat/completions", {"model": "HALF"}),
    "a message": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "HALF"}]}),
    "a field": ("/v1/chat/completions", {"HALF": 1}),
    "a tool": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [
        {"type": "function", "function": {"name": "f", "description": "HALF"}}]}),
    "a schema": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"const": "HALF"}}}}),
    "a prompt": ("/v1/completions", {"prompt": "HALF"}),
    "a stop": ("/v1/completions", {"prompt": "x", "stop": "HALF"}),
    "a text to encode": ("/tokenize", {"content": "HALF"}),
    "llama.cpp's prompt": ("/completion", {"prompt": "HALF"}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("half", [HALF, b"\\ud800", b"\\uDFFF", b"\xff"])
def test_half_a_character_is_refused_in_every_body(server, place, half):
    path, body = PLACES[place]
    raw = json.dumps({"model": "tiny"} | body).encode().replace(b"HALF", half)
    answer = server.http.post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert not openai_api.problems("ErrorResponse", answer.json())
    assert error["code"] == "invalid_json" and "UTF-8" in error["message"]


def test_json_is_utf_8_and_may_begin_with_its_mark(server):
    raw = json.dumps({"content": "東京"})
    for encoded, status in ((raw.encode("utf-8-sig"), 200), (raw.encode("utf-16"), 400)):
        headers = {"content-type": "application/json"}
        answer = server.http.post("/tokenize", content=encoded, headers=headers)
        assert answer.status_code == status, answer.text


def test_json_within_json_may_hold_halves(server):
    """Escapes in the arguments of a call before, and in a schema that is a text."""
    half = r'{"city": "\ud800"}'
    call = CALL | {"function": {"name": "f", "arguments": half}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    ask = {"model": "tiny", "max_tokens": 1}
    answer = server.post("/v1/chat/completions", **ask, messages=said)
    assert answer.status_code == 200, answer.text
    written = ToolCall(id="1", type="function",
                       function=CalledFunction(name="f", arguments=half)).text()  # fmt: skip
    assert r"\ud800" in written and written.encode()
    form = {"json": r'{"const": "\ud800"}'}
    answer = server.post("/v1/completions", **ask, prompt="x", structured_outputs=form)
    assert answer.status_code == 400, answer.text


def test_what_is_nested_deeply_is_no_error_of_the_server(server):
    """Also within texts that are JSON, which the body's own reader does not look into."""
    deep, ask = '{"a":' * 990 + "1" + "}" * 990, {"model": "tiny", "max_tokens": 1}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
        CALL | {"function": {"name": "f", "arguments": deep}}]}]  # fmt: skip
    schema = json.loads('{"properties":{"a":' * 150 + "{}" + "}}" * 150)
    for path, body in (
        ("/v1/chat/completions", {"messages": said}),
        ("/v1/completions", {"prompt": "x", "structured_outputs": {"json": deep}}),
        ("/v1/completions", {"prompt": "x", "structured_outputs": {"json": schema}}),
    ):
        answer = server.post(path, **ask, **body)
        assert answer.status_code == 400, answer.text  # too long, or no schema that can be used


def test_a_call_with_half_a_character_can_be_sent():
    """Models write escapes, and not always both halves."""
    reader = CallReader(Offer((Function(name="f"),), forced=True))
    escaped = r'{"a": "\ud83d", "b": "\u00d8"}'
    for given, arguments in ((r'{"a": "\ud83d", "b": "Ø"}', escaped), (r'"\ud83d"', "?")):
        reader.add(f'{{"name": "f", "arguments": {given}}}')
        (call,) = reader.end()
        assert isinstance(call, Call) and call.arguments == arguments
        assert json.dumps(call.body(), ensure_ascii=False).encode()


@pytest.mark.parametrize("text", ["{", r'"\ud800"', r'{"const": "\ud800"}', "[" * 100_000])
def test_a_text_that_is_no_schema_is_refused_in_a_line(text):
    with pytest.raises(grammars.ConfigError) as refused:
        grammars.json_schema(text)
    assert "\n" not in str(refused.value)
