"""One answer and those who follow it: what is rendered when, and what who falls behind is given."""

import asyncio
import json
import threading

import pytest

from chat_site import apply
from gchat.serve.site import answers, markdown
from gchat.serve.site.answers import Answer, Answers


def test_html_that_waits_is_shown_though_no_more_text_comes(monkeypatch):
    """Rendering took long: the next piece waits for its turn, and not for a third piece."""
    now, plain = [0.0], markdown._blocks

    def slow(text):
        now[0] += 0.01
        return plain(text)

    monkeypatch.setattr(markdown, "_blocks", slow)

    async def follow():
        answer = Answer("user", "conversation", "message", markdown.Growing(lambda: now[0]))
        answer.saved(1, "one")
        answer.saved(2, " two")
        seen = []
        async for event in answer.follow(0):
            seen.append(json.loads(event.partition(b"data: ")[2]))
            if len(seen) == 2:
                now[0] = 1.0  # now it is due
            if len(seen) == 3:
                break
        answer.saved(3, " three")
        answer.end("end", {})
        await asyncio.sleep(2 * (answer._growing.wait_s or 0))
        return seen, [event async for event in answer.follow(3)]

    seen, rest = asyncio.run(asyncio.wait_for(follow(), 30))
    assert [(one["text"], one["n"]) for one in seen] == [("one", 1), (" two", 2), ("", 2)]
    assert [one["html"] for one in seen] == [["<p>one</p>\n"], [], [" two</p>\n"]]
    assert [event.split(b"\n")[1] for event in rest] == [b"event: delta", b"event: end"]


def test_a_long_rendering_holds_nobody_up(monkeypatch):
    """It ends only when the event loop has gone on; what comes meanwhile is in the next one."""
    begun, gone_on, plain = threading.Event(), threading.Event(), markdown._blocks

    def slow(text):
        if "two" in text:
            begun.set()
            assert gone_on.wait(30), "the event loop waits for it"
        return plain(text)

    monkeypatch.setattr(markdown, "_blocks", slow)

    async def follow():
        growing = markdown.Growing()
        answer = Answer("user", "conversation", "message", growing)
        answer.saved(1, "one")
        growing.cost_s = 1.0  # as if it were long
        answer.saved(2, " two")
        while not begun.is_set():
            await asyncio.sleep(0.001)
        answer.saved(3, " three")
        gone_on.set()
        shown, numbers = [], []
        async for event in answer.follow(0):
            change = json.loads(event.partition(b"data: ")[2])
            shown = apply(shown, change)
            numbers.append(change["n"])
            if "three" in "".join(shown):
                return shown, numbers

    shown, numbers = asyncio.run(asyncio.wait_for(follow(), 60))
    assert shown == ["<p>one two three</p>\n"] and numbers == [1, 2, 3, 3, 3]


def test_a_reader_who_falls_behind_is_given_the_whole(monkeypatch):
    """Between two events that are read more are written than are kept, again and again."""
    monkeypatch.setattr(answers, "_KEPT", 1000)

    async def read():
        answer = Answer("user", "conversation", "message", markdown.Growing(lambda: 0.0))
        states, shown, wholes = {}, [], 0

        def write(pieces):
            for _ in range(pieces):
                n = len(states) + 1
                answer.saved(n, f"word{n}\n\n")
                states[n] = list(answer._growing.blocks)

        write(1)
        async for event in answer.follow(0):
            number, name, data = (line.partition(b": ")[2] for line in event.split(b"\n")[:3])
            if name == b"end":
                assert int(number) == len(states) + 1
                return wholes, len(states)
            change = json.loads(data)
            wholes += change["n"] > 1 and change["from"] == 0
            shown = apply(shown, change)
            assert shown == states[int(number)]
            if len(states) < 300:
                write(50 if len(states) % 100 < 52 else 1)
            elif not answer.over:
                answer.end("end", {})

    wholes, written = asyncio.run(asyncio.wait_for(read(), 60))
    assert wholes >= 3 and written >= 300


def test_an_event_that_cannot_be_told_takes_no_place_for_good():
    """Whatever fails at the end of an answer, its user may ask again."""

    class Saved:
        def end(self, row, told):
            told(None)

    async def write(one):
        one.show("sources", ["\ud83d"])
        return
        yield

    async def shown(user_id, message_id):
        return {"message": object()}  # no JSON

    async def one():
        running = Answers(Saved(), markdown.Growing, shown)
        running.begin("user", "conversation", "message", write)
        (task,) = running._tasks
        with pytest.raises(TypeError):
            await task
        return running

    running = asyncio.run(one())
    assert not running.running and not running.errors
