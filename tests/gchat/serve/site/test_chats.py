"""Conversations from question to answer: streamed, kept, branched, followed again, stopped."""

from chat_site import text_of


def test_an_answer_is_streamed_and_kept(alice):
    coming = alice.chat(content="Where is Oslo?")
    assert coming[0][1] == "start" and coming[-1][1] == "end"
    numbers = [number for number, _, _ in coming]
    assert numbers == list(range(len(coming)))
    start, end = coming[0][2], coming[-1][2]
    assert text_of(coming) == "You said: Where is Oslo?" == end["message"]["content"]
    there = alice.json("GET", f"/api/conversations/{start['conversationId']}")
    asked, answered = there["messages"]
    assert asked["content"] == "Where is Oslo?" and there["title"] == "Where is Oslo?"
    assert answered == end["message"] and answered["status"] == "done"
    assert answered["parent"] == asked["id"] and there["leaf"] == answered["id"]
    assert there["context"]["limit"] == 2048 and there["context"]["used"] > 0
