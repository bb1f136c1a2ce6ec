"""Conversations as ids: the special tokens around each message, and none out of a user's text.

<|bos|><|user_start|>Hello<|user_end|><|assistant_start|>          our own tokenizers
<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n          ChatML
a model's own template (gchat.chat_template)                       imported models

Learned are answers: their text, their calls of tools, and the token that ends them. Read only are
headers, other people's messages and what a tool put out.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.chat_jinja import chatml, native
from gchat.chat_template import ChatTemplate
from gchat.conversation import ROLES, Conversation, Message, Part, check
from gchat.tokenizer import Tokenizer

__all__ = ["ROLES", "ChatFormat", "Conversation", "Message", "Part", "Rendered", "Span", "check",
           "format_of", "read_format", "write_format"]  # fmt: skip
Kind = Literal["native", "chatml", "text", "imported"]
Wanted = Literal["auto", "chat", "native", "chatml", "text"]
CHAT = "chat.json"
"""File of a run that was trained on conversations: the kind of its format."""
CHAT_TEMPLATE = "chat_template.jinja"
"""File of a run whose model brought a chat template."""


class Span(NamedTuple):
    """Ids of a rendered conversation that belong together."""

    role: str
    """"system", "user", "assistant", "tool" for its output, or "" for what begins every text."""
    start: int
    end: int
    trained: bool
    """True for an answer's text, its calls of tools and its end; False for headers too."""
    message: int
    """Place among the messages."""


class Rendered(NamedTuple):
    """A conversation as ids; `mask[i]` tells whether id i is a target that is learned."""

    ids: list[int]
    mask: list[bool]
    spans: tuple[Span, ...]


class _Piece(NamedTuple):
    ids: list[int]
    role: str
    trained: bool
    message: int


@dataclass(frozen=True)
class ChatFormat:
    """The way a tokenizer's model reads a conversation.

    Attributes:
        kind: "native", "chatml", "imported" (the model's own template), or "text": no tags, one
            text that goes on.
        end_id: id that ends an assistant's message; None for "text".
        trained: the model was trained on it, as far as its files tell.
        template: of "imported".
    """

    tokenizer: Tokenizer
    kind: Kind
    end_id: int | None
    trained: bool
    template: ChatTemplate | None = None

    # ── Training ────────────────────────────────────────────────────────────────────────────────

    def render(self, conversation: Conversation) -> Rendered:
        """Ids of a conversation, which of them are learned, and where its messages lie.

        The prompt of each answer is the beginning of the ids, so a model is trained on what it is
        asked. Text that looks like a tag stays text.

        Raises:
            ConfigError: the kind is "text", which has no end of a message; or the model's template
                cannot render it.
            DataError: roles are out of order.
        """
        conversation.check()
        if self.kind == "text":
            raise ConfigError("the format text has no end of a message", "use --format chat")
        pieces = self._imported if self.kind == "imported" else self._tagged
        ids: list[int] = []
        mask: list[bool] = []
        spans: list[Span] = []
        unlearned = set(conversation.unlearned)
        for piece in pieces(conversation.messages):
            if not piece.ids:
                continue
            trained = piece.trained and piece.message not in unlearned
            end = len(ids) + len(piece.ids)
            spans.append(Span(piece.role, len(ids), end, trained, piece.message))
            ids += piece.ids
            mask += [trained] * len(piece.ids)
        return Rendered(ids, mask, tuple(spans))

    def _tagged(self, messages: Sequence[Message]) -> list[_Piece]:
        pieces = [_Piece(self._beginning, "", False, 0)]
        shift = 0
        if self._merges and messages[0].role == "system":
            messages, shift = _merged(messages), 1
        for i, message in enumerate(messages):
            pieces += [piece._replace(message=i + shift) for piece in self._pieces(message)]
        return pieces

    def _imported(self, messages: Sequence[Message]) -> list[_Piece]:
        assert self.template is not None
        return [
            _Piece(ids, messages[place].role, answer, place)
            for ids, place, answer in self.template.pieces(messages)
        ]

    def _pieces(self, message: Message) -> list[_Piece]:
        """One message with the tags around it."""
        encode, special, role = self.tokenizer.encode, self.tokenizer.special, message.role
        answer = role == "assistant"
        if self.kind == "chatml":
            # As one text where the header's ids stay as they are: so the model was trained.
            head = encode(f"{role}\n")
            both = encode(f"{role}\n{message.content}")
            body = both[len(head) :] if both[: len(head)] == head else encode(message.content)
            return [
                _Piece([special("<|im_start|>"), *head], role, False, 0),
                _Piece([*body, special("<|im_end|>")], role, answer, 0),
                _Piece(encode("\n"), role, False, 0),
            ]
        pieces = [_Piece([special(f"{role}_start")], role, False, 0)]
        for part in message.parts or (Part("text", message.content),):
            if part.kind == "text":
                pieces.append(_Piece(encode(part.text), role, answer, 0))
                continue
            call = part.kind == "call"
            name = "python" if call else "output"
            tagged = [special(f"{name}_start"), *encode(part.text), special(f"{name}_end")]
            pieces.append(_Piece(tagged, role if call else "tool", answer and call, 0))
        return [*pieces, _Piece([special(f"{role}_end")], role, answer, 0)]

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────

    def message(self, message: Message) -> list[int]:
        """Ids of one message, with the tags around it; its text alone where a template has them."""
        if self.kind in ("text", "imported"):
            ends = "\n" if self.kind == "text" and message.role != "user" else ""
            return self.tokenizer.encode(message.content + ends)
        return [i for piece in self._pieces(message) for i in piece.ids]

    def frame(self, role: str) -> int:
        """Tokens before a message's text; those behind it are no more."""
        if self.kind in ("text", "imported"):
            return 0
        return 1 if self.kind == "native" else 1 + len(self.tokenizer.encode(f"{role}\n"))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        Raises:
            ConfigError: there is no message, a role is unknown, or a system message is not first.
        """
        check(messages)
        if self.template is not None:
            return self.template.prompt(messages)
        if self._merges:
            messages = _merged(messages)
        ids = list(self._beginning)
        for message in messages:
            ids += self.message(message)
        return ids + self.opening()

    def opening(self) -> list[int]:
        """Ids that begin an assistant's message; none where only a whole template tells."""
        if self.kind in ("text", "imported"):
            return []
        if self.kind == "native":
            return [self.tokenizer.special("assistant_start")]
        return [self.tokenizer.special("<|im_start|>"), *self.tokenizer.encode("assistant\n")]

    def parse(self, ids: Sequence[int]) -> Message:
        """The assistant's message of the ids behind a prompt, up to its end or to their own."""
        stops = {*self.tokenizer.stop_ids, self.end_id}
        special = self.tokenizer.specials
        opens = {special.get("<|python_start|>"): "call", special.get("<|output_start|>"): "output"}
        closes = {special.get("<|python_end|>"), special.get("<|output_end|>")}
        parts: list[Part] = []
        held: list[int] = []
        kind: Literal["text", "call", "output"] = "text"

        def close() -> None:
            if held:
                parts.append(Part(kind, self.tokenizer.decode(held)))
                held.clear()

        for i in map(int, ids):
            if i in stops:
                break
            if self.kind == "native" and (i in opens or i in closes):
                close()
                kind = "call" if opens.get(i) == "call" else "output" if i in opens else "text"
            else:
                held.append(i)
        close()
        text = "".join(part.text for part in parts if part.kind == "text")
        called = any(part.kind != "text" for part in parts)
        return Message("assistant", text, tuple(parts) if called else ())

    def jinja(self, *, generation: bool = True) -> str:
        """The chat template for other programs, which renders what `render` does.

        Args:
            generation: put answers into `{% generation %}`, from which transformers makes a mask
                that equals ours.

        Raises:
            ConfigError: the kind is "text".
        """
        if self.kind == "text":
            raise ConfigError("the format text has no chat template", "use --format chat")
        if self.kind == "native":
            return native(merges=self._merges, generation=generation)
        if self.template is None:
            begins = self.tokenizer.decode(self._beginning) if self._beginning else ""
            return chatml(begins, None, generation=generation)
        own = self.template.text
        if not generation or "{% generation" in own or "{%- generation" in own:
            return own
        # A template without the blocks: ours stands in for it where it renders the same.
        marked = chatml("", self.template.default_system(), generation=True)
        return marked if _same(self.template, ChatTemplate(marked, self.tokenizer)) else own

    @functools.cached_property
    def _beginning(self) -> list[int]:
        """Ids before the first message; an imported model without a template has none."""
        own = "<|user_start|>" in self.tokenizer.specials
        return [self.tokenizer.bos_id] if own or self.kind == "text" else []

    @functools.cached_property
    def _merges(self) -> bool:
        """True where a system message has no tags: those of version 1 had none."""
        return self.kind == "native" and "<|system_start|>" not in self.tokenizer.specials


def format_of(tokenizer: Tokenizer, *, wanted: Wanted = "auto") -> ChatFormat:
    """The format for a tokenizer, whatever its model's files say (`read_format` reads those).

    Args:
        tokenizer: of the model.
        wanted: "chat" takes the tags that the tokenizer has, "native" and "chatml" those, "text"
            takes none, "auto" takes those that the model was trained on. A run that `gchat train`
            made has seen no conversation.

    Raises:
        ConfigError: tags are wanted that the tokenizer lacks.
    """
    own, tagged = "<|assistant_end|>" in tokenizer.specials, "<|im_end|>" in tokenizer.specials
    trained = tagged and not own
    if wanted == "text" or (wanted == "auto" and not trained):
        return ChatFormat(tokenizer, "text", None, trained)
    if own and wanted != "chatml":
        return ChatFormat(tokenizer, "native", tokenizer.special("assistant_end"), trained)
    if tagged and wanted != "native":
        return ChatFormat(tokenizer, "chatml", tokenizer.special("<|im_end|>"), trained)
    raise ConfigError(
        f"the tokenizer has no tags for conversations{f' ({wanted})' * (wanted != 'chat')}",
        "use the format `text`",
    )


def read_format(folder: str | Path, tokenizer: Tokenizer, *, wanted: Wanted = "auto") -> ChatFormat:
    """The format of a run: that it was trained on, or that its model brought.

    Args:
        folder: of the run.
        tokenizer: of the run.
        wanted: as in `format_of`; "auto" and "chat" take what the folder says first.

    Raises:
        ConfigError: tags are wanted that the tokenizer lacks.
        DataError: the folder's chat.json is damaged.
    """
    if wanted not in ("auto", "chat"):
        return format_of(tokenizer, wanted=wanted)
    kind = _stored_kind(Path(folder) / CHAT)
    template = Path(folder) / CHAT_TEMPLATE
    if kind in ("native", "chatml"):
        made = format_of(tokenizer, wanted=kind)
        return ChatFormat(tokenizer, made.kind, made.end_id, trained=True)
    if kind in (None, "imported") and template.is_file():
        made = ChatTemplate(template.read_text(encoding="utf-8"), tokenizer)
        try:
            end = made.end_id()
        except ConfigError:
            if kind == "imported":
                raise
        else:
            return ChatFormat(tokenizer, "imported", end, trained=True, template=made)
    return format_of(tokenizer, wanted=wanted)


def write_format(folder: str | Path, chat_format: ChatFormat) -> None:
    """Says in a run's folder that it is trained on conversations of this format."""
    if chat_format.template is not None:
        storage.write_text(Path(folder) / CHAT_TEMPLATE, chat_format.template.text)
    storage.write_text(Path(folder) / CHAT, json.dumps({"kind": chat_format.kind}) + "\n")


def _stored_kind(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind not in ("native", "chatml", "imported"):
        raise DataError(f"{path} is damaged", 'write {"kind": "native"}, "chatml" or "imported"')
    return kind


def _same(one: ChatTemplate, other: ChatTemplate) -> bool:
    """True where both render conversations of every shape to the same text."""
    system, user, answer = (Message(role, f" <{role}>\n ") for role in ROLES)
    shapes = ([user], [user, answer], [system, user], [system, user, answer, user, answer])
    try:
        return all(
            one.rendered(shape, prompts=prompts) == other.rendered(shape, prompts=prompts)
            for shape in shapes
            for prompts in (False, True)
        )
    except ConfigError:
        return False


def _merged(messages: Sequence[Message]) -> list[Message]:
    """A system message becomes the beginning of the first question."""
    first, *rest = messages
    if first.role != "system":
        return list(messages)
    if not rest:
        return [Message("user", first.content)]
    return [Message(rest[0].role, f"{first.content}\n\n{rest[0].content}"), *rest[1:]]
