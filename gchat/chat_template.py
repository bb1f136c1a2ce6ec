"""The chat template of an imported model: Jinja, rendered as transformers renders it.

A template makes one text of a conversation, and in that text a user's `<|im_end|>` looks like the
tag. So a name of a special token inside a message is broken by a mark before rendering; the text is
cut at the names that are still whole, and the marks are taken out of the rest.

Where an answer lies follows from what is rendered for the messages before it: the text that would
prompt for the answer must be how the whole begins, or the model would be trained on prompts that it
is never given.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gaia.errors import ConfigError
from gaia.extras import install
from gchat.conversation import Message
from gchat.tokenizer import Tokenizer

_DEFAULT_SYSTEM = re.compile(
    r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n", re.DOTALL
)
_MARKS = range(0xE000, 0xF8FF)  # private use: the first that no message holds is taken


class Piece(NamedTuple):
    """A stretch of a rendered conversation."""

    ids: list[int]
    place: int
    """Place of the message that it belongs to, the one before an answer for what lies between."""
    answer: bool
    """True for an answer's text and the token that ends it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template of one tokenizer.

    Args:
        text: Jinja.
        tokenizer: of the model.
    """

    text: str
    tokenizer: Tokenizer

    def pieces(self, messages: Sequence[Message], *, prompts: bool = False) -> list[Piece]:
        """A conversation in stretches, header and answer in turn.

        Args:
            messages: of the conversation.
            prompts: end with what begins an answer.

        Raises:
            ConfigError: the template cannot render it, or does not end answers.
            Forgets: it writes what stands before an answer otherwise once the answer is there.
        """
        mark = _unused(messages)
        whole = self._text(messages, mark, prompts=prompts)
        pieces, at = [], 0
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._text(messages[:k], mark, prompts=True)
            if not whole.startswith(prompt) or len(prompt) < at:
                raise Forgets(
                    "the model's chat template writes what stands before "
                    f"messages[{k}] otherwise once that is there",
                    _REMEDY,
                )
            end = self._end(whole, len(prompt))
            header, answer = self._two(whole[at : len(prompt)], whole[len(prompt) : end], mark)
            pieces += [Piece(header, max(0, k - 1), False), Piece(answer, k, True)]
            at = end
        if rest := self._ids(whole[at:], mark):
            pieces.append(Piece(rest, len(messages) - 1, False))
        return pieces

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        Raises:
            ConfigError: the template cannot render it.
        """
        try:
            pieces = self.pieces(messages, prompts=True)
        except Forgets:  # of earlier answers: a prompt is what the template says now
            mark = _unused(messages)
            return self._ids(self._text(messages, mark, prompts=True), mark)
        return [i for piece in pieces for i in piece.ids]

    def end_id(self) -> int:
        """Id of the token that ends an answer; ConfigError where the template cannot be used."""
        pieces = self.pieces([Message("user", "?"), Message("assistant", "!")])
        return next(piece.ids[-1] for piece in pieces if piece.answer)

    def default_system(self) -> str | None:
        """The system message that the template adds by itself, for a template like ChatML."""
        probe = self.rendered([Message("user", "?")], prompts=False)
        match = re.match(
            r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n", probe, re.S
        )
        return match[1] if match else None

    def rendered(self, messages: Sequence[Message], *, prompts: bool) -> str:
        """The text of a conversation, as transformers renders it.

        Args:
            messages: of which an answer's calls of tools are left out.
            prompts: end with what begins an answer.

        Raises:
            ConfigError: the template cannot render them.
        """
        import jinja2

        tokens = {"bos_token": self._name(self.tokenizer.bos_id)}
        ends = [i for i in self.tokenizer.stop_ids if i != self.tokenizer.bos_id]
        tokens["eos_token"] = self._name(ends[0]) if ends else tokens["bos_token"]
        rows = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return _compiled(self.text).render(
                messages=rows, add_generation_prompt=prompts, tools=None, documents=None, **tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"the model's chat template fails ({reason})", _REMEDY) from None

    def _text(self, messages: Sequence[Message], mark: str, *, prompts: bool) -> str:
        guarded = [Message(m.role, self._guarded(m.content, mark)) for m in messages]
        return self.rendered(guarded, prompts=prompts)

    def _name(self, number: int) -> str:
        return self.tokenizer.decode([number])

    @functools.cached_property
    def _specials(self) -> re.Pattern[str]:
        names = sorted(self.tokenizer.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    def _guarded(self, text: str, mark: str) -> str:
        """A text in which no special token's name is whole, nor begun at its end."""
        text = self._specials.sub(lambda name: name[0][0] + mark + name[0][1:], text)
        for name in self.tokenizer.specials:
            for n in range(len(name) - 1, 0, -1):
                if text.endswith(name[:n]):
                    return f"{text[: len(text) - n + 1]}{mark}{text[len(text) - n + 1 :]}"
        return text

    def _end(self, whole: str, start: int) -> int:
        """Place behind the special token that ends the answer which begins at `start`."""
        for name in self._specials.finditer(whole, start):
            if self.tokenizer.specials[name[0]] in self.tokenizer.stop_ids:
                return name.end()
        raise ConfigError("the model's chat template ends no answer with a token", _REMEDY)

    def _ids(self, text: str, mark: str) -> list[int]:
        """Ids of a rendered stretch: specials where names are whole."""
        ids, at = [], 0
        for name in self._specials.finditer(text):
            ids += self._encoded(text[at : name.start()], mark)
            ids.append(self.tokenizer.specials[name[0]])
            at = name.end()
        return ids + self._encoded(text[at:], mark)

    def _encoded(self, text: str, mark: str) -> list[int]:
        return self.tokenizer.encode(text.replace(mark, "")) if text else []

    def _two(self, header: str, answer: str, mark: str) -> tuple[list[int], list[int]]:
        """Ids of both, joined as one text where that leaves the header's own ids as they are."""
        first, both = self._ids(header, mark), self._ids(header + answer, mark)
        if both[: len(first)] == first:
            return first, both[len(first) :]
        return first, self._ids(answer, mark)


class Forgets(ConfigError):
    """A template that renders earlier messages otherwise once later ones are there."""


_REMEDY = "use --format text, or --format chat with tags of the tokenizer"


def _unused(messages: Sequence[Message]) -> str:
    """A character that no message holds."""
    held = set().union(*(message.content for message in messages)) if messages else set()
    return next(chr(code) for code in _MARKS if chr(code) not in held)


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    """The template; whitespace, filters and tags as in transformers' `apply_chat_template`.

    `strftime_now` is left undefined, as templates provide for: a conversation has the same ids on
    every day.
    """
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise ConfigError(
            "the chat template of an imported model needs jinja2", install("import")
        ) from None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"the model's chat template is damaged ({reason})", _REMEDY) from None


def _generation() -> type:
    """The tag `{% generation %}`, which marks answers for transformers and changes no text."""
    from jinja2 import nodes, parser
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
