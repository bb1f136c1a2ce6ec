"""The site over a model of its own process: counted exactly, stopped, and cut to its window."""

import asyncio

import pytest

import chains
import chat_site
import serving
from chat_site import add_user, text_of
from gchat.chat_format import format_of
from gchat.conversation import Message
from gchat.engine.tools import Tools
from gchat.serve.driver import Driver
from gchat.serve.fair_queue import FairQueue
from gchat.serve.local_model import LocalModel
from gchat.serve.metrics import Metrics
from gchat.serve.service import Service
from gchat.serve.site.asking_models import Told, answer
from tests.fakes import openai_api


@pytest.mark.slow  # it compiles a model
def test_a_run_answers_on_the_site(tmp_path):
    with openai_api.serve() as upstream:
        site = chat_site.make_site(f"sqlite:///{tmp_path}/site.db", upstream.url)
    own = serving.make_service()
    own.keys, own.rates = site.service.keys, site.quotas
    site.service = own
    own.driver.start()
    add_user(site, "alice")
    try:
        with chat_site.running(site) as place:
            alice = place.client("alice")
            sampling = {"temperature": 0, "max_tokens": 12}
            made = alice.json("POST", "/api/conversations", json={"sampling": sampling})["id"]
            coming = alice.chat(conversationId=made, content="The quick")
            end = coming[-1][2]
            assert coming[-1][1] == "end", end
            # The same question by the key of the same user, whole, and in OpenAI's words.
            key = alice.json("POST", "/api/keys", json={})["key"]
            ask = {"model": "tiny", "messages": [{"role": "user", "content": "The quick"}]}
            answer = alice.http.post("/v1/chat/completions", json=ask | sampling,
                                     headers={"Authorization": f"Bearer {key}"}).json()  # fmt: skip
            assert text_of(coming) == answer["choices"][0]["message"]["content"]
            assert end["message"]["tokens"] == answer["usage"]["completion_tokens"] == 12
            assert end["context"]["used"] > answer["usage"]["prompt_tokens"] > 2
            assert end["context"]["limit"] == serving.SEQ_LEN
            long = [{"role": role, "content": "quick brown fox " * 20}
                    for _ in range(12) for role in ("user", "assistant")]  # fmt: skip
            made = alice.json("POST", "/api/import", json={"messages": long})["id"]
            there = alice.json("GET", f"/api/conversations/{made}")
            assert there["context"]["dropped_before"] is not None
            alice.json("PATCH", f"/api/conversations/{made}", json={"sampling": sampling})
            coming = alice.chat(conversationId=made, content="The quick")
            assert coming[-1][1] == "end" and coming[-1][2]["context"]["dropped_before"]
            assert own.models["tiny"].queue.working == 0
    finally:
        own.driver.stop()


def test_what_goes_to_the_calculator_and_back_is_not_the_answers_text():
    """The page shows what /v1/chat/completions answers; the tokens count all the same."""
    said, rest = chains.chain_of("7*6")
    engine = chains.engine_that_says([*said, chains.special("output_end"), *rest])
    tokenizer = chains.tokenizer()
    service = Service({}, Driver([engine]), Metrics())
    model = LocalModel(
        "m", engine, tokenizer, format_of(tokenizer, wanted="chat"), FairQueue(2, 8),
        service.driver, service.metrics, tools=Tools(tokenizer), max_tokens=30,
    )  # fmt: skip
    told = Told()

    async def asked():
        question = [Message("user", "?")]
        pieces = answer(service, model, "user:x", question, {"temperature": 0}, told)
        return [text async for text in pieces]

    service.driver.start()
    try:
        assert "".join(asyncio.run(asked())) == "so!"
        assert told.tokens > len(said)
    finally:
        service.driver.stop()
