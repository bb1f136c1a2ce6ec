"""Conversations from question to answer: streamed, kept, branched, followed again, stopped."""

import threading
import time

import pytest

import chat_site
from chat_site import add_user, text_of
from gchat.serve.site.answers import MOST_RUNNING


def shown(client, conversation_id):
    return client.json("GET", f"/api/conversations/{conversation_id}")


def contents(there):
    return [message["content"] for message in there["messages"]]


@pytest.fixture
def slow(upstream):
    """An upstream that takes its time, with a long answer."""
    upstream.delay_s = 0.02
    upstream.reply = lambda body: " ".join(f"word{i}" for i in range(16))
    yield upstream
    upstream.delay_s = 0.0
    del upstream.reply


def test_an_answer_is_streamed_and_kept(alice):
    coming = alice.chat(content="Where is Oslo?")
    assert coming[0][1] == "start" and coming[-1][1] == "end"
    numbers = [number for number, _, _ in coming]
    assert numbers == list(range(len(coming)))
    start, end = coming[0][2], coming[-1][2]
    assert text_of(coming) == "You said: Where is Oslo?" == end["message"]["content"]
    there = shown(alice, start["conversationId"])
    asked, answered = there["messages"]
    assert asked["content"] == "Where is Oslo?" and there["title"] == "Where is Oslo?"
    assert answered == end["message"] and answered["status"] == "done"
    assert answered["parent"] == asked["id"] and there["leaf"] == answered["id"]
    assert there["context"]["limit"] == 2048 and there["context"]["used"] > 0
    assert alice.json("GET", "/api/models")["items"] == [
        {"id": "small", "context": 2048, "default": True}
    ]


def test_answers_at_once_are_few_also_when_all_are_asked_for_together(alice, slow):
    statuses = []

    def ask(client=alice):
        with client.http.stream("POST", "/api/chat", json={"content": "one"},
                                headers={"X-CSRF-Token": client.csrf}) as answer:  # fmt: skip
            statuses.append(answer.status_code)
            answer.read()

    threads = [threading.Thread(target=ask) for _ in range(3 * MOST_RUNNING)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(statuses) == [200] * MOST_RUNNING + [429] * 2 * MOST_RUNNING
    assert alice.chat(content="the places are free again")[-1][1] == "end"


def test_branches_by_edit_and_regenerate(alice, upstream):
    first = alice.chat(content="one")
    made, answer = first[0][2]["conversationId"], first[-1][2]["message"]
    second = alice.chat(conversationId=made, content="two")[-1][2]["message"]
    edited = alice.chat(conversationId=made, content="zwei", parent=answer["id"])
    assert contents(shown(alice, made)) == ["one", "You said: one", "zwei", "You said: zwei"]
    fork = shown(alice, made)["messages"][2]
    assert len(fork["siblings"]) == 2 and fork["id"] == edited[0][2]["userMessage"]["id"]
    again = alice.chat(conversationId=made, regenerate=answer["id"])
    assert again[0][2]["userMessage"] is None
    assert again[-1][2]["message"]["siblings"][0] == answer["id"]
    assert contents(shown(alice, made)) == ["one", "You said: one"]
    # Back to the first branch: the newest end below the message that is named.
    back = alice.json("PATCH", f"/api/conversations/{made}", json={"leaf": answer["id"]})
    assert contents(back)[-1] == "You said: zwei"
    back = alice.json("PATCH", f"/api/conversations/{made}", json={"leaf": second["id"]})
    assert contents(back) == ["one", "You said: one", "two", "You said: two"]
    asked = upstream.seen[-1][1]["messages"]
    assert [m["content"] for m in asked] == ["one"]  # regenerating reads what is above alone
    root = alice.chat(conversationId=made, content="uno", parent=None)
    assert len(root[0][2]["userMessage"]["siblings"]) == 2
    assert contents(shown(alice, made)) == ["uno", "You said: uno"]


def test_stale_tabs_and_wrong_wishes_get_a_line(alice, bob):
    made = alice.chat(content="one")[0][2]["conversationId"]
    other = alice.chat(content="two")
    user = shown(alice, made)["messages"][0]["id"]
    for body, status in (
        ({"conversationId": made, "content": "x", "parent": "gone"}, 409),
        ({"conversationId": made, "content": "x", "parent": user}, 409),
        ({"conversationId": made, "content": "x", "parent": other[-1][2]["message"]["id"]}, 409),
        ({"conversationId": made, "regenerate": other[-1][2]["message"]["id"]}, 404),
        ({"content": "x", "parent": user}, 400),
        ({"content": "   "}, 400),
        ({"content": "x", "model": "none"}, 409),
        ({"content": "x", "search": True}, 400),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
        ({}, 400),
    ):
        answer = alice.post("/api/chat", **body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.json()["error"]["message"] and "\n" not in answer.text
    assert contents(shown(alice, made)) == ["one", "You said: one"]


def test_messages_as_the_protocol_of_others_has_them(alice, upstream):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
             {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]  # fmt: skip
    made = alice.chat(messages=turns)[0][2]["conversationId"]
    assert upstream.seen[-1][1]["messages"] == turns
    there = shown(alice, made)
    assert contents(there) == ["a", "b", "c", "You said: c"] and there["system"] == "Be brief."
    alice.json("PATCH", f"/api/conversations/{made}",
               json={"sampling": {"temperature": 0.5, "max_tokens": 3}, "system": ""})  # fmt: skip
    assert len(alice.chat(conversationId=made, content="d")[-1][2]["message"]["content"]) < 10
    sent = upstream.seen[-1][1]
    assert sent["temperature"] == 0.5 and sent["max_tokens"] == 3
    assert sent["messages"][0]["role"] == "user"


def test_a_running_answer_is_followed_by_every_tab(place, alice, bob, slow):
    tabs = [place.client("alice") for _ in range(2)]
    slow.delay_s = 0.06  # the answer must not have ended when the second question comes
    with alice.stream("POST", "/api/chat", content="long") as coming:
        _, _, start = next(coming)
        message = start["message"]["id"]
        seen = [next(coming) for _ in range(3)]
        busy = tabs[0].post("/api/chat", conversationId=start["conversationId"], content="x")
        assert busy.status_code == 409
        with tabs[0].stream("GET", f"/api/stream/{message}") as again:
            _, name, whole = next(again)
            assert name == "delta" and whole["text"].startswith(text_of(seen)[:10])
            texts = [whole["text"], text_of(again)]
    # The first tab has gone: the answer goes on, and a tab that comes back misses nothing.
    full = " ".join(f"word{i}" for i in range(16))
    assert "".join(texts) == full
    with tabs[1].stream("GET", f"/api/stream/{message}",
                        headers={"Last-Event-ID": str(seen[0][0])}) as again:  # fmt: skip
        assert [(name, data["message"]["content"]) for _, name, data in again] == [("end", full)]
    assert bob.get(f"/api/stream/{message}").status_code == 404
    there = shown(alice, start["conversationId"])
    assert contents(there) == ["long", full]
    for tab in tabs:
        tab.close()


def test_a_tab_that_comes_back_gets_what_it_missed(place, alice, slow):
    with alice.stream("POST", "/api/chat", content="long") as coming:
        start = next(coming)[2]
        seen = [next(coming) for _ in range(2)]
    time.sleep(0.1)
    path = f"/api/stream/{start['message']['id']}"
    with alice.stream("GET", path, headers={"Last-Event-ID": str(seen[-1][0])}) as again:
        rest = list(again)
    assert [number for number, _, _ in rest] == list(range(3, 3 + len(rest)))
    assert text_of(seen) + text_of(rest) == rest[-1][2]["message"]["content"]


def test_what_no_database_stores_is_shown_as_such(alice, upstream):
    upstream.reply = lambda body: "a\x00b\ud800c\U0001f600"
    coming = alice.chat(content="x")
    del upstream.reply
    assert coming[-1][1] == "end" and text_of(coming) == "a\ufffdb?c\U0001f600"
    long = "".join(f"{i:064d} " for i in range(30_000))
    made = alice.json("POST", "/api/import", json={"messages": [{"role": "user", "content": long}]})
    found = alice.json("GET", "/api/conversations", params={"search": f"{5:064d}"})["items"]
    assert [one["id"] for one in found] == [made["id"]]


def test_stop_keeps_what_was_written(alice, slow):
    with alice.stream("POST", "/api/chat", content="long") as coming:
        message = next(coming)[2]["message"]["id"]
        next(coming)
        done = []
        stop = threading.Thread(
            target=lambda: done.append(alice.post("/api/stop", message=message).json())
        )
        stop.start()
        rest = list(coming)
        stop.join()
    assert rest[-1][1] == "end" and rest[-1][2]["message"]["status"] == "stopped"
    assert done == [{"stopped": True}]
    assert alice.post("/api/stop", message=message).json() == {"stopped": False}
    kept = rest[-1][2]["message"]["content"]
    assert kept and kept != " ".join(f"word{i}" for i in range(16))
    until = time.monotonic() + 10
    while not slow.gone and time.monotonic() < until:
        time.sleep(0.01)
    assert slow.gone  # the upstream was told, too


@pytest.mark.parametrize("fault", ["cut", "early end", "stream error", "overloaded", "garbage"])
def test_an_upstream_that_fails_leaves_what_it_wrote(alice, upstream, fault):
    # The site's server may ask once whether the upstream heeds a field; the fault is for the chat.
    upstream.faults.append(fault)
    coming = alice.chat(content="four words are here")
    upstream.faults.clear()
    assert coming[-1][1] == "error"
    saved = coming[-1][2]["saved"]
    assert saved["status"] == "failed" and saved["content"] == text_of(coming)
    assert saved["error"] == coming[-1][2]["message"] != ""
    made = coming[0][2]["conversationId"]
    assert shown(alice, made)["messages"][-1] == saved
    again = alice.chat(conversationId=made, regenerate=saved["id"])
    assert again[-1][1] == "end"
    assert len(shown(alice, made)["messages"][-1]["siblings"]) == 2


def test_the_oldest_turns_are_dropped_with_a_mark(alice, upstream):
    turns = [{"role": role, "content": f"{i} " + "word " * 200}
             for i in range(8) for role in ("user", "assistant")]  # fmt: skip
    made = alice.json("POST", "/api/import", json={"messages": turns, "system": "Be brief."})["id"]
    coming = alice.chat(conversationId=made, content="and now?")
    sent = upstream.seen[-1][1]["messages"]
    context = coming[-1][2]["context"]
    there = shown(alice, made)
    first = next(m for m in there["messages"] if m["id"] == context["dropped_before"])
    assert sent[0]["content"] == "Be brief." and sent[-1]["content"] == "and now?"
    assert first["role"] == "user" and sent[1]["content"] == first["content"]
    assert 3 < len(sent) < 17 and context["used"] <= context["limit"] == 2048
    assert there["context"] == context


def test_exports_come_back_and_shares_show_what_was_shared(alice, bob, visitor):
    first = alice.chat(content="one")
    made = first[0][2]["conversationId"]
    alice.chat(conversationId=made, regenerate=first[-1][2]["message"]["id"])
    alice.chat(conversationId=made, content="two")
    url = alice.json("POST", f"/api/conversations/{made}/share")["url"]
    alice.chat(conversationId=made, content="not shared")
    page = visitor.http.get(url).text
    assert "You said: two" in page and "not shared" not in page
    exported = alice.json("GET", f"/api/conversations/{made}/export")
    assert len(exported["messages"]) == 7
    copy = bob.json("POST", "/api/import", json=exported)["id"]
    again = bob.json("GET", f"/api/conversations/{copy}/export")

    def plain(one):
        places = {message["id"]: i for i, message in enumerate(one["messages"])}
        rows = [{**m, "id": places[m["id"]], "parent": places.get(m["parent"])}
                for m in one["messages"]]  # fmt: skip
        return {**one, "leaf": places[one["leaf"]], "messages": rows}

    assert plain(again) == plain(exported)
    text = alice.get(f"/api/conversations/{made}/export?format=markdown").text
    assert text.startswith("# one\n\n## User\n\none\n\n## Assistant\n\nYou said: one\n")
    newer = bob.post("/api/import", **(exported | {"version": 2}))
    assert newer.status_code == 400 and "version" in newer.json()["error"]["message"]


def test_sources_go_with_an_answer_wherever_it_goes(alice, bob, visitor):
    pages = [{"n": 1, "title": "<b>One", "url": "https://a.example/one?x=1&y=2"},
             {"n": 2, "title": "http://b.example/", "url": "http://b.example/"}]  # fmt: skip
    turns = [{"role": "user", "content": "one?"},
             {"role": "assistant", "content": "one [1]", "sources": pages}]  # fmt: skip
    made = alice.json("POST", "/api/import", json={"messages": turns})["id"]
    exported = alice.json("GET", f"/api/conversations/{made}/export")
    copy = bob.json("POST", "/api/import", json=exported)["id"]
    assert shown(bob, copy)["messages"][-1]["sources"] == pages
    text = bob.get(f"/api/conversations/{copy}/export?format=markdown").text
    assert "1. <b>One <https://a.example/one?x=1&y=2>\n2. http://b.example/" in text
    page = visitor.http.get(alice.json("POST", f"/api/conversations/{made}/share")["url"]).text
    assert 'href="https://a.example/one?x=1&amp;y=2"' in page and "&lt;b&gt;One" in page
    for wrong in ("javascript:alert(1)", "//evil.example", "", "https:///x"):
        turns[1]["sources"] = [{"title": "x", "url": wrong}]
        assert alice.post("/api/import", messages=turns).status_code == 400, wrong


def test_search_finds_words_of_all_scripts(alice, bob):
    texts = {"Straße nach Köln": "koln", "三菱電機の洗濯機": "洗濯", "Naïve café": "CAFE naive",
             "hyphen-ated words": "hyphen ated", "beginnings": "begin"}  # fmt: skip
    for text in texts:
        turns = [{"role": "user", "content": text}]
        alice.json("POST", "/api/import", json={"title": "t", "messages": turns})
    for text, query in texts.items():
        items = alice.json("GET", "/api/conversations", params={"search": query})["items"]
        assert [shown(alice, one["id"])["messages"][0]["content"] for one in items] == [text]
        assert bob.json("GET", "/api/conversations", params={"search": query})["items"] == []
    assert alice.json("GET", "/api/conversations", params={"search": "koln cafe"})["items"] == []
    assert alice.json("GET", "/api/conversations", params={"search": "機電"})["items"] == []


def test_lists_in_pages_pinned_first(place):
    add_user(place.site, "lena")
    lena = place.client("lena")
    ids = [lena.json("POST", "/api/conversations", json={"title": f"t{i}"})["id"] for i in range(7)]
    lena.patch(f"/api/conversations/{ids[2]}", pinned=True)
    seen, before = [], ""
    while before is not None:
        page = lena.json("GET", f"/api/conversations?limit=3&before={before}")
        seen += [one["id"] for one in page["items"]]
        before = page["next"]
    assert seen == [ids[2], *(i for i in reversed(ids) if i != ids[2])]
    assert lena.delete(f"/api/conversations/{ids[2]}").status_code == 200
    assert lena.get(f"/api/conversations/{ids[2]}").status_code == 404


def test_quotas_and_keys_of_users(place, root):
    user = add_user(place.site, "karl")
    karl = place.client("karl")
    key = karl.json("POST", "/api/keys", json={"name": "laptop"})
    bearer = {"Authorization": f"Bearer {key['key']}"}
    ask = {"model": "small", "messages": [{"role": "user", "content": "hello there"}]}
    anybody = chat_site.Client(place.url)
    answer = anybody.http.post("/v1/chat/completions", json=ask, headers=bearer)
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hello there"

    def used():
        return karl.json("GET", "/api/keys")["items"][0]["last_used"]

    chat_site.until(lambda: used() is not None)  # it is noted beside the request
    assert used() >= key["created_at"]
    assert anybody.http.post("/v1/chat/completions", json=ask).status_code == 401
    # A session's cookie is no key: another site could use it.
    assert karl.http.post("/v1/chat/completions", json=ask).status_code == 401
    assert root.patch(f"/api/admin/users/{user.id}", quota=5).status_code == 200
    assert anybody.http.post("/v1/chat/completions", json=ask, headers=bearer).status_code == 429
    refused = karl.post("/api/chat", content="x")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert karl.delete(f"/api/keys/{key['id']}").status_code == 200
    assert anybody.http.get("/v1/models", headers=bearer).status_code == 401
    anybody.close()
