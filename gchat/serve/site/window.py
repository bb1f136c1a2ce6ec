"""The part of a conversation that a model reads: system prompt and newest turns, as many as fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gchat.conversation import Message
from gchat.serve.site.faults import Fault

Row = dict[str, Any]
_BYTES_PER_TOKEN = 3  # of models behind other servers; a little too few, so that prompts fit
_AROUND = 8  # tokens of the tags around a message, at most


@dataclass(frozen=True)
class Fitted:
    """A prompt.

    Attributes:
        messages: that the model reads.
        used: tokens of them.
        limit: tokens that the model reads with its answer; None where nobody knows.
        dropped_before: id of the first message that is read, where older ones are not.
        answer: tokens that are left for the answer; 0 where nobody knows.
    """

    messages: list[Message]
    used: int
    limit: int | None
    dropped_before: str | None
    answer: int

    def context(self) -> dict[str, Any]:
        """The numbers of the context meter."""
        return {"used": self.used, "limit": self.limit, "dropped_before": self.dropped_before}


def fit(
    model: Any, limit: int | None, system: str, rows: Sequence[Row], answer: int | None = None
) -> Fitted:
    """The prompt of a branch that ends with a user's message, or with an answer (for the meter).

    Args:
        model: of `gchat.serve`; one with a tokenizer counts exactly.
        limit: tokens of prompt and answer together.
        system: the system prompt; empty for none.
        rows: the branch, oldest first.
        answer: tokens that the answer may have; a quarter of the limit when left out.

    Raises:
        Fault: the last turn alone is too long.
    """
    if limit is None:
        made = _messages(system, rows)
        return Fitted(made, count(model, made), None, None, answer or 0)
    reserve = min(answer or limit // 4, limit // 2)
    guess, last = _guess(model, limit - reserve, system, rows), _last_turn(rows)
    starts = [guess, *(i for i in range(guess + 1, last + 1) if rows[i]["role"] == "user")]
    low, high = 0, len(starts) - 1  # the first start from which all fits; else the last turn
    while low < high:
        middle = (low + high) // 2
        if count(model, _messages(system, rows[starts[middle] :])) <= limit - reserve:
            high = middle
        else:
            low = middle + 1
    first = starts[low]
    made = _messages(system, rows[first:])
    used = count(model, made)
    if used >= limit:
        raise Fault(
            413, f"the message is too long: with it the model would read {used:,} tokens, and it "
            f"reads {limit:,} with its answer", "content",
        )  # fmt: skip
    dropped = rows[first]["id"] if first else None
    return Fitted(made, used, limit, dropped, min(limit - used, answer or limit))


def _messages(system: str, rows: Sequence[Row]) -> list[Message]:
    """Messages in turns: answers that never came to anything are left out."""
    made = [Message("system", system)] if system else []
    for row in rows:
        if not row["content"].strip():
            continue
        if made and made[-1].role == row["role"]:
            made[-1] = Message(row["role"], f"{made[-1].content}\n\n{row['content']}")
        else:
            made.append(Message(row["role"], row["content"]))
    return made


def count(model: Any, messages: Sequence[Message]) -> int:
    """Tokens of a prompt; an estimate where the model is behind another server."""
    if not messages:
        return 0
    form = getattr(model, "chat_format", None)
    if form is None:
        return sum(_estimate(one.content) for one in messages)
    if messages[-1].role == "assistant":
        # What is drawn so far, and the beginning of what would be drawn next.
        return len(form.prompt([*messages, Message("user", "")]))
    return len(form.prompt(messages))


def _estimate(text: str) -> int:
    return len(text.encode()) // _BYTES_PER_TOKEN + _AROUND


def _guess(model: Any, room: int, system: str, rows: Sequence[Row]) -> int:
    """The first turn that is certainly needed to be looked at: long conversations are cut cheaply.

    A token has at most some bytes, so that what is beyond many times the room can't fit.
    """
    longest = 16 if getattr(model, "chat_format", None) else _BYTES_PER_TOKEN
    left = room * longest - len(system.encode())
    first, last = len(rows), _last_turn(rows)
    while first > 0 and left > 0:
        first -= 1
        left -= len(rows[first]["content"].encode())
    while first and rows[first - 1]["role"] == "user":
        first -= 1
    return min(first, last)


def _last_turn(rows: Sequence[Row]) -> int:
    for i in range(len(rows) - 1, 0, -1):
        if rows[i]["role"] == "user":
            return i
    return 0
