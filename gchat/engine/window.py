"""Conversations that outgrow the model's positions: which messages stay.

A pure function over lengths; the command line, a server and synthesis use the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gaia.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """A message as the model reads it."""

    role: str
    """"system", "user", "assistant" or "tool"."""
    tokens: int
    """Its length, with the special tokens around it."""
    frame: int = 0
    """Tokens of these at its beginning and end that a cut must keep, at each side."""


@dataclass(frozen=True)
class Kept:
    """The messages that fit."""

    messages: tuple[int, ...]
    """Indices of the messages that stay, ascending."""
    cut: tuple[int, int, int] | None = None
    """(message, first, last): its tokens first … last - 1 go, since the last turn is too long."""
    dropped: int = 0
    """Messages that went."""

    @property
    def truncated(self) -> bool:
        """True where anything went: users are to be told."""
        return bool(self.dropped or self.cut)


def fit(spans: Sequence[Span], limit: int) -> Kept:
    """The messages that fit into `limit` tokens: the oldest turns go first.

    A turn is a user's message and all up to the next one; it stays whole or goes whole. A system
    prompt at the beginning stays, and so does the last turn. Where these two are too long
    together, the middle of the longest message of the last turn is cut.

    Raises:
        ConfigError: the system prompt leaves no room, or there is no message.
    """
    if not spans:
        raise ConfigError("a conversation has no messages", "give at least one")
    system = tuple(range(next((i for i, s in enumerate(spans) if s.role != "system"), len(spans))))
    starts = [i for i, s in enumerate(spans) if i >= len(system) and s.role == "user"]
    starts = sorted({len(system), *starts} - {len(spans)})
    room = limit - sum(spans[i].tokens for i in system)
    if room < 1 or not starts:
        if not starts and room >= 0:
            return Kept(system)
        raise ConfigError(
            f"the system prompt has {limit - room} tokens, and {limit} is the limit", "shorten it"
        )
    first = starts[-1]
    for start in reversed(starts):
        if sum(s.tokens for s in spans[start:]) > room:
            break
        first = start
    kept = (*system, *range(first, len(spans)))
    over = sum(s.tokens for s in spans[first:]) - room
    cut = _cut(spans, first, over) if over > 0 else None
    return Kept(kept, cut, len(spans) - len(kept))


def _cut(spans: Sequence[Span], first: int, over: int) -> tuple[int, int, int]:
    longest = max(range(first, len(spans)), key=lambda i: spans[i].tokens - 2 * spans[i].frame)
    span = spans[longest]
    if span.tokens - 2 * span.frame < over:
        raise ConfigError(
            f"the last question is {over} tokens too long, and no message of it can lose so many",
            "shorten it",
        )
    begin = span.frame + (span.tokens - 2 * span.frame - over + 1) // 2
    return longest, begin, begin + over
