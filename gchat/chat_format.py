"""Conversations as ids: the special tokens around each message, and none out of a user's text.

<|bos|><|user_start|>Hello<|user_end|><|assistant_start|>          our own tokenizers
<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n          ChatML, of imported models
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gaia.errors import ConfigError, DataError
from gchat.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's message: text, an expression for a tool, or the tool's output."""

    kind: Literal["text", "call", "output"]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str
    """Text as people read it."""
    parts: tuple[Part, ...] = ()
    """The whole of an assistant's message that called a tool; `content` is its text alone."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...]

    @classmethod
    def from_json(cls, row: dict) -> "Conversation":
        """The conversation of a row with `messages`, as OpenAI writes them.

        Raises:
            DataError: naming the field that is missing or wrong.
        """
        listed = row.get("messages")
        if not isinstance(listed, list):
            raise DataError(f"'messages' is {type(listed).__name__}, not a list", "mend the file")
        messages = []
        for i, one in enumerate(listed):
            if not isinstance(one, dict) or not isinstance(one.get("content"), str):
                raise DataError(f"'messages[{i}].content' is no text", "mend the file")
            messages.append(Message(str(one.get("role")), one["content"]))
        check(messages)
        return cls(tuple(messages))


@dataclass(frozen=True)
class ChatFormat:
    """The way a tokenizer's model reads a conversation.

    Attributes:
        kind: "native", "chatml", or "text": no tags, one text that goes on.
        end_id: id that ends an assistant's message; None for "text".
        trained: the model was trained on it, as far as the tokenizer tells.
    """

    tokenizer: Tokenizer
    kind: Literal["native", "chatml", "text"]
    end_id: int | None
    trained: bool

    def message(self, message: Message) -> list[int]:
        """Ids of one message, with the tags around it."""
        encode, special = self.tokenizer.encode, self.tokenizer.special
        if self.kind == "text":
            return encode(message.content + "\n" * (message.role != "user"))
        if self.kind == "chatml":
            start, end = special("<|im_start|>"), special("<|im_end|>")
            body = encode(f"{message.role}\n{message.content}")
            return [start, *body, end, *encode("\n")]
        inner: list[int] = []
        for part in message.parts or (Part("text", message.content),):
            if part.kind == "text":
                inner += encode(part.text)
            else:
                name = "python" if part.kind == "call" else "output"
                inner += [special(f"{name}_start"), *encode(part.text), special(f"{name}_end")]
        return [special(f"{message.role}_start"), *inner, special(f"{message.role}_end")]

    def frame(self, role: str) -> int:
        """Tokens before a message's text; those behind it are no more."""
        if self.kind == "text":
            return 0
        return 1 if self.kind == "native" else 1 + len(self.tokenizer.encode(f"{role}\n"))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        Raises:
            ConfigError: there is no message, a role is unknown, or a system message is not first.
        """
        check(messages)
        if self.kind == "native" and "<|system_start|>" not in self.tokenizer.specials:
            messages = _merged(messages)  # the tokenizer is of version 1
        ids = [] if self.kind == "chatml" else [self.tokenizer.bos_id]
        for message in messages:
            ids += self.message(message)
        return ids + self.opening()

    def opening(self) -> list[int]:
        """Ids that begin an assistant's message."""
        if self.kind == "text":
            return []
        if self.kind == "native":
            return [self.tokenizer.special("assistant_start")]
        return [self.tokenizer.special("<|im_start|>"), *self.tokenizer.encode("assistant\n")]


def format_of(
    tokenizer: Tokenizer, *, wanted: Literal["auto", "chat", "text"] = "auto"
) -> ChatFormat:
    """The format for a tokenizer.

    Args:
        tokenizer: of the model.
        wanted: "chat" takes the tags that the tokenizer has, "text" takes none, "auto" takes those
            that the model was trained on. A run that `gchat train` made has seen no conversation.

    Raises:
        ConfigError: "chat" is wanted, and the tokenizer has no tags.
    """
    own, chatml = "<|assistant_end|>" in tokenizer.specials, "<|im_end|>" in tokenizer.specials
    trained = chatml and not own
    if wanted == "text" or (wanted == "auto" and not trained):
        return ChatFormat(tokenizer, "text", None, trained)
    if own:
        return ChatFormat(tokenizer, "native", tokenizer.special("assistant_end"), trained)
    if chatml:
        return ChatFormat(tokenizer, "chatml", tokenizer.special("<|im_end|>"), trained)
    raise ConfigError("the tokenizer has no tags for conversations", "use the format `text`")


def check(messages: Sequence[Message]) -> None:
    """Raises ConfigError naming the message that no conversation holds."""
    if not messages:
        raise ConfigError("messages is empty", "give at least one message")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise ConfigError(
                f"messages[{i}].role is {message.role!r}", f"use one of {', '.join(ROLES)}"
            )
        if message.role == "system" and i:
            raise ConfigError(f"messages[{i}].role is 'system'", "put the system message first")


def _merged(messages: Sequence[Message]) -> list[Message]:
    """A system message becomes the beginning of the first question."""
    first, *rest = messages
    if first.role != "system":
        return list(messages)
    if not rest:
        return [Message("user", first.content)]
    return [Message(rest[0].role, f"{first.content}\n\n{rest[0].content}"), *rest[1:]]
