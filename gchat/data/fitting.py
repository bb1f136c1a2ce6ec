"""Conversations that fit rows: whole, or cut between turns, each piece with an answer to learn."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gchat.chat_format import ChatFormat, Conversation, Message, Rendered


@dataclass
class Fitted:
    """Counts of what became of conversations; all add up over the units of a corpus."""

    conversations: int = 0
    whole: int = 0
    cut: int = 0
    """Conversations longer than a row of which several pieces, or a part, remained."""
    skipped: int = 0
    """Conversations of which nothing fits."""
    answers: int = 0
    """Answers that are learned."""
    answers_left_out: int = 0
    """Answers that do not fit into a row with their question."""

    def add(self, other: dict[str, Any]) -> None:
        """Adds the counts of a unit."""
        for name in asdict(self):
            setattr(self, name, getattr(self, name) + other[name])

    def sentence(self, seq_len: int) -> str:
        """What a person should know of it."""
        said = f"{self.conversations:,} conversations with {self.answers:,} answers"
        if self.cut or self.skipped:
            said += (
                f"; longer than {seq_len:,} tokens: {self.cut:,} cut between turns, "
                f"{self.skipped:,} left out, and with them {self.answers_left_out:,} answers"
            )
        return said


def fit(
    conversation: Conversation, chat_format: ChatFormat, seq_len: int, counts: Fitted
) -> list[Rendered]:
    """A conversation in pieces of at most `seq_len` ids, each with an answer that is learned.

    A conversation that is too long is cut behind an answer. The next piece begins with the system
    message and a question, and an answer that does not fit with its question is left out; so no
    answer is cut, none is learned twice, and none without what was asked.

    Args:
        conversation: with its roles in order.
        chat_format: with tags.
        seq_len: T.
        counts: told what became of it.
    """
    counts.conversations += 1
    if _least(conversation.messages, chat_format) <= seq_len:
        whole = chat_format.render(conversation)
        if len(whole.ids) <= seq_len:
            counts.whole += 1
            counts.answers += _answers(conversation)
            return [whole]
    pieces = list(_pieces(conversation, chat_format, seq_len))
    kept = sum(answers for _, answers in pieces)
    counts.cut += bool(pieces)
    counts.skipped += not pieces
    counts.answers += kept
    counts.answers_left_out += _answers(conversation) - kept
    return [piece for piece, _ in pieces]


def _pieces(
    conversation: Conversation, chat_format: ChatFormat, seq_len: int
) -> Iterator[tuple[Rendered, int]]:
    """Pieces of a long conversation, and how many answers are learned in each."""
    messages, unlearned = conversation.messages, set(conversation.unlearned)
    first = int(messages[0].role == "system")
    at = first
    while at < len(messages):
        best: tuple[Rendered, int] | None = None
        end = at
        while end < len(messages):
            part = Conversation(
                (*messages[:first], *messages[at : end + 2]),
                tuple(first + i - at for i in unlearned if at <= i < end + 2),
            )
            if _least(part.messages, chat_format) > seq_len:
                break
            if _answers(part):  # rendering refuses a conversation that teaches nothing
                made = chat_format.render(part)
                if len(made.ids) > seq_len:
                    break
                best = made, _answers(part)
            end += 2
        if best is not None:
            yield best
        at = max(end, at + 2)


def _answers(conversation: Conversation) -> int:
    """Answers of a conversation that are learned."""
    unlearned = set(conversation.unlearned)
    return sum(
        m.role == "assistant" and i not in unlearned for i, m in enumerate(conversation.messages)
    )


def _least(messages: Sequence[Message], chat_format: ChatFormat) -> int:
    """Ids that messages cannot have less of, without encoding them: one may be a whole book."""
    longest = max(1, int(chat_format.tokenizer.token_bytes().max()))
    return sum(len(message.content) // longest for message in messages)
