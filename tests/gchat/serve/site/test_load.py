"""Many conversations, many users at once: nothing lost or mixed; times are printed."""

import asyncio
import gc
import json
import os
import threading
import time

import httpx2
import pytest

import chat_nginx
import chat_site
import postgresql
from chat_site import PASSWORD, add_user
from gchat.serve.site import conversations, messages
from tests.fakes import openai_api

pytestmark = pytest.mark.slow
CONVERSATIONS = 10_000
LIST_ROUNDS = 300  # a p99 of fewer is the slowest one
STREAM_USERS = int(os.environ.get("GCHAT_LOAD_USERS", "200"))
STREAM_S = float(os.environ.get("GCHAT_LOAD_SECONDS", "120"))
COMMON = "the of and to in that for with as was on are by this be from at or"


def quantiles(seconds):
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99)]
    return " ".join(f"p{q} {1000 * s:.1f} ms" for q, s in zip((50, 95, 99), at, strict=True))


def fill(site, user_id, first, count):
    """Conversations of four messages, each with common words, one of a hundred, one of its own."""

    def add(c):
        for i in range(first, first + count):
            made = conversations.add(c, user_id, title=f"About topic{i % 100}")
            parent = None
            for j, role in enumerate(("user", "assistant") * 2):
                text = f"{COMMON} topic{i % 100} own{i} message {j}"
                row = {"role": role, "content": text, "parent": parent}
                (parent,) = messages.add_all(c, user_id, made, [row])
            conversations.change(c, user_id, made, leaf=parent)

    site.database.write_now(add)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/site.db"
    else:
        pytest.importorskip("psycopg")
        with postgresql.serve() as server:
            yield server.url


ASKED = {
    "list": ({}, 50), "page": ({"before": None}, 50),
    "own word": ({"search": "own4321"}, 1), "topic": ({"search": "topic42"}, 50),
    "common word": ({"search": "the"}, 50), "beginnings": ({"search": "top mes"}, 50),
    "three words": ({"search": "topic42 the own442"}, 1), "nothing": ({"search": "zzz"}, 0),
}  # fmt: skip
"""Queries of a list of conversations, and how many each must bring."""


def times_of_lists(alice):
    """Seconds that each kind of query took, LIST_ROUNDS times; answers must be right."""
    took = {name: [] for name in ASKED}
    second = alice.json("GET", "/api/conversations")["next"]
    # Full collections of this process, which asks, would be taken for the server's waits.
    gc.collect(), gc.freeze()
    for _ in range(LIST_ROUNDS):
        for name, (params, count) in ASKED.items():
            given = {"before": second} if "before" in params else params
            began = time.perf_counter()
            items = alice.json("GET", "/api/conversations", params=given)["items"]
            took[name].append(time.perf_counter() - began)
            assert len(items) == count, name
    gc.unfreeze()
    return took


def test_lists_and_searches_of_ten_thousand_conversations_under_writes(
    address, upstream, tmp_path, capsys
):
    """The server is a process of its own, so that nobody but it makes its users wait."""
    site = chat_site.make_site(address, upstream.url)
    users = [add_user(site, name) for name in ("alice", "bob")]
    for first in range(0, CONVERSATIONS, 500):
        fill(site, users[0].id, first, 500)
    fill(site, users[1].id, 0, 1000)
    site.database.close(), site.passwords.close()
    options = ("--upstream", upstream.url)
    with chat_nginx.web(tmp_path / "web", *options, database=address) as (port, _, _):
        alice, bob = (chat_site.Client(f"http://127.0.0.1:{port}") for _ in range(2))
        alice.login("alice"), bob.login("bob")
        written, stop = [], threading.Event()

        def write():
            while not stop.is_set():
                written.append(bob.chat(content="the topic7 is written now")[-1][1])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            took = times_of_lists(alice)
        finally:
            stop.set()
            writer.join()
        alice.close(), bob.close()
    assert set(written) == {"end"}
    with capsys.disabled():
        kind = address.partition(":")[0]
        print(f"\n{kind}, {CONVERSATIONS} conversations a user, {len(written)} answers beside it, "
              f"{LIST_ROUNDS} of each kind")  # fmt: skip
        for name, seconds in took.items():
            print(f"  {name:12} {quantiles(seconds)} most {1000 * max(seconds):.1f} ms")


async def _follow(url, name, end, counts, waits):
    """One user: logs in and asks until the time is over; what comes back must be his own."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        page = await http.get("/login")
        csrf = page.text.split('name="csrf-token" content="')[1].split('"')[0]
        headers = {"X-CSRF-Token": csrf}
        body = {"name": name, "password": PASSWORD}
        # So many logins at once from one address wait for one another.
        while (
            login := await http.post("/api/login", json=body, headers=headers)
        ).status_code != 200:
            assert login.status_code == 429
            await asyncio.sleep(int(login.headers["retry-after"]))
        headers = {"X-CSRF-Token": login.json()["csrf"]}
        asked, made = [], None
        while time.monotonic() < end:
            content = f"{name} asks {len(asked)} and waits for it to come back whole"
            body = {"content": content} | ({} if made is None else {"conversationId": made})
            text, began, last = [], time.perf_counter(), None
            async with http.stream("POST", "/api/chat", json=body, headers=headers) as response:
                assert response.status_code == 200, await response.aread()
                event = ""
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        event = line[7:]
                    elif line.startswith("data: ") and event in ("start", "delta", "end", "error"):
                        data = json.loads(line[6:])
                        if event == "start":
                            made = data["conversationId"]
                        elif event == "delta":
                            waits.append(time.perf_counter() - (last or began))
                            last = time.perf_counter()
                            text.append(data["text"])
            assert event == "end" and "".join(text) == f"You said: {content}"
            asked.append(content)
        there = (await http.get(f"/api/conversations/{made}")).json()
        kept = [message["content"] for message in there["messages"]]
        assert kept == [text for one in asked for text in (one, f"You said: {one}")]
        counts.append(len(asked))


def test_two_hundred_users_stream_for_two_minutes(address, capsys):
    """On a fake upstream that says a word every 50 ms; each user's history is his own and whole."""
    with openai_api.serve() as upstream:
        upstream.delay_s = 0.05
        site = chat_site.make_site(address, upstream.url, context=1 << 20)
        for model in site.service.models.values():
            model.address.queue = type(model.queue)(STREAM_USERS, STREAM_USERS)
        for i in range(STREAM_USERS):
            add_user(site, f"user{i}")
        counts, waits = [], []
        with chat_site.running(site) as place:

            async def all_users():
                end = time.monotonic() + STREAM_S
                await asyncio.gather(
                    *(_follow(place.url, f"user{i}", end, counts, waits)
                      for i in range(STREAM_USERS))
                )  # fmt: skip

            asyncio.run(all_users())
    assert len(counts) == STREAM_USERS
    with capsys.disabled():
        print(f"\n{address.partition(':')[0]}: {STREAM_USERS} users, {STREAM_S:g} s: {sum(counts)} "
              f"answers, {len(waits)} pieces, wait for a piece {quantiles(waits)}")  # fmt: skip
