"""Large bodies: one error is made, not one for each element, and the event loop goes on."""

import threading

import pytest
from pydantic import ValidationError

import serving
from gchat.serve.app import POSTS
from gchat.serve.bodies import checked
from gchat.serve.chat import ChatBody
from gchat.serve.completions import CompletionBody
from gchat.serve.errors import ApiError
from gchat.serve.llama import LlamaBody
from gchat.serve.local_model import LocalModel
from gchat.serve.responses_body import ResponsesBody
from gchat.serve.site import account_routes, admin_routes, chat_routes, conversation_routes
from gchat.serve.tokens import DetokenizeBody, TokenizeBody

MANY = 20_000
HELLO = {"role": "user", "content": "x"}
BODIES = [body for body, _ in POSTS.values()] + [
    route.body
    for routes in (account_routes, admin_routes, chat_routes, conversation_routes)
    for route in routes.ROUTES
    if route.body is not None
]
WRONG = {
    "lists for ids": (CompletionBody, {"prompt": [[]] * MANY}),
    "a late wrong item": (CompletionBody, {"prompt": ["x"] * 2000 + [3]}),
    "ids of nothing": (CompletionBody, {"prompt": [[None] * MANY] * 9}),
    "parts": (ChatBody, {"messages": [{"role": "user", "content": [{}] * 4000}]}),
    "messages": (ChatBody, {"messages": [{}] * 2000}),
    "tools": (ChatBody, {"messages": [HELLO], "tools": [{}] * 100}),
    "unknown fields": (ChatBody, {"messages": [HELLO], **{f"f{i}": 1 for i in range(MANY)}}),
    "unknown fields of messages": (ChatBody, {
        "messages": [HELLO | {f"f{i}": 1 for i in range(MANY)}] * 5}),
    "biases": (ChatBody, {"messages": [HELLO], "logit_bias": {str(i): "x" for i in range(MANY)}}),
    "labels": (ChatBody, {"messages": [HELLO], "metadata": {str(i): 1 for i in range(MANY)}}),
    "stops": (ChatBody, {"messages": [HELLO], "stop": [1] * MANY}),
    "choices": (CompletionBody, {"prompt": "x", "structured_outputs": {"choice": [1] * MANY}}),
    "items": (ResponsesBody, {"input": [{}] * 2000}),
    "llama.cpp's prompt": (LlamaBody, {"prompt": [[]] * MANY}),
    "tokens": (DetokenizeBody, {"tokens": ["x"] * MANY}),
    "messages to tokenize": (TokenizeBody, {"messages": [{}] * 2000}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_makes_few_errors(name):
    kind, body = WRONG[name]
    with pytest.raises(ValidationError) as wrong:
        kind.model_validate({"model": "tiny", **body})
    assert wrong.value.error_count() < 20


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_every_list_of_every_body_has_bounds(kind):
    """pydantic's compiled description of the body is walked."""
    left, lists = [kind.__pydantic_core_schema__], 0
    while left:
        one = left.pop()
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if isinstance(one, dict) and one.get("type") == "list":
            lists += 1
            assert one.get("fail_fast") and one.get("max_length") is not None, one
    assert lists or kind not in (ChatBody, CompletionBody, chat_routes.Chat)


def test_the_first_unknown_field_is_named_however_many_there_are():
    with pytest.raises(ApiError, match=r"^temprature is no field that") as refused:
        checked(ChatBody, {"model": "x", "messages": [HELLO], "temprature": 1,
                           **{f"f{i}": 1 for i in range(100)}})  # fmt: skip
    assert refused.value.param == "temprature"


def test_bodies_are_checked_and_tokens_told_off_the_event_loop(server, monkeypatch):
    """And no piece of a token is made that was not asked for."""
    where, told = [], []
    check, text_of = CompletionBody.model_validate, LocalModel.text_of

    def checking(data):
        where.append(threading.current_thread())
        return check(data)

    def telling(model, number):
        where.append(threading.current_thread())
        told.append(number)
        return text_of(model, number)

    monkeypatch.setattr(CompletionBody, "model_validate", checking)
    monkeypatch.setattr(LocalModel, "text_of", telling)
    server.post("/v1/completions", model="tiny", prompt=[[]] * MANY)
    plain = server.post("/tokenize", content="The fox, the fox").json()
    assert not told and plain["token_strs"] is None
    pieces = server.post("/tokenize", content="The fox, the fox", return_token_strs=True).json()
    assert "".join(pieces["token_strs"]) == "The fox, the fox"
    assert sorted(told) == sorted(set(plain["tokens"]))  # each once
    assert where and server._thread not in where


def test_pieces_by_llama_cpps_name(server):
    answer = server.post("/tokenize", content="fox Ø", with_pieces=True).json()
    assert [one["id"] for one in answer["tokens"]] == serving.tokenizer().encode("fox Ø")
    assert [195] in [one["piece"] for one in answer["tokens"]]  # half a character
