"""`gchat chat`: a conversation in the terminal, one question, or a question from a pipe."""

import contextlib
import json
import sys
import unicodedata
from dataclasses import dataclass
from typing import Any

from gaia.errors import ConfigError, GaiaError
from gchat.ask.conversation import Conversation
from gchat.ask.options import Drawing, Model
from gchat.client import Answer, Client, Question

_PROMPT = "> "


@dataclass(frozen=True)
class Chat(Drawing, Model):
    """Talk with a trained run, or with an OpenAI-compatible endpoint.

    gchat chat --run runs/cpu                          a conversation; /help lists its commands
    gchat chat --run runs/cpu -p "Who are you?"        one question
    git diff | gchat chat --endpoint http://127.0.0.1:8000/v1 --system "Review this."
    """

    prompt: str | None = None
    """Question to ask, once (-p)."""
    system: str | None = None
    """Instruction that begins the conversation."""
    json: bool = False
    """Print the answer to one question as a JSON object."""

    def chat(self) -> None:
        """Runs it; standard input that is no terminal is the question."""
        options = Question(
            prompt="", max_tokens=self.max_tokens, sampling=self.sampling(),
            stop=self.stop, grammar=self.grammar(),
        )  # fmt: skip
        options.check()
        options = Question(**{**vars(options), "prompt": None})
        question = self._question()
        if self.json and question is None:
            raise ConfigError("--json is given without a question", "add -p TEXT, or pipe one in")
        client = self.open()
        try:
            client.check(Question(**{**vars(options), "prompt": "."}))
            if question is None:
                Terminal(client, options, self.system).run()
            else:
                self._answer_once(client, options, question)
        finally:
            client.close()

    def _question(self) -> str | None:
        """The one question that there is; None for a conversation."""
        if self.prompt is None and sys.stdin is not None and sys.stdin.isatty():
            return None
        if self.prompt is not None:
            text, source = self.prompt, "-p"
        else:
            raw = sys.stdin.buffer.read() if sys.stdin is not None else b""
            text, source = raw.decode("utf-8", "replace"), "standard input"
        if not text.strip():
            raise ConfigError(f"the question from {source} is empty", "ask something")
        return text

    def _answer_once(self, client: Client, options: Question, question: str) -> None:
        show = _quiet if self.json else _write
        conversation = Conversation(client, options, self.system, show, _remark, brackets=False)
        _say_untrained(client)
        answer = conversation.ask(question)
        if answer is None:
            raise KeyboardInterrupt
        if self.json:
            print(json.dumps(_as_json(answer)))
            return
        if not answer.text.endswith("\n"):
            print()
        _say_cut(conversation)


def _as_json(answer: Answer) -> dict[str, Any]:
    choice, usage = answer.choices[0], answer.usage
    parts = [{"kind": part.kind, "text": part.text} for part in choice.parts]
    return {
        "text": choice.text,
        "finish": choice.finish,
        **({"parts": parts} if parts else {}),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "model": answer.model,
    }


class Terminal:
    """A conversation with someone at a terminal."""

    def __init__(self, client: Client, options: Question, system: str | None) -> None:
        self._client = client
        self._conversation = Conversation(client, options, system, _write, _remark)

    def run(self) -> None:
        """Reads lines until /exit, the end of the input, or the second Ctrl-C."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() edits lines and keeps a history with it)
        _remark(f"{self._client.model}; /help lists the commands")
        _say_untrained(self._client)
        interrupted = False
        while True:
            try:
                line = _clean(input(_PROMPT)).strip()
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted = True
                _remark("(Ctrl-C once more, or /exit, ends)")
                continue
            except (EOFError, OSError):  # Ctrl-D, or the terminal is gone
                with contextlib.suppress(OSError):
                    print()
                return
            if not line:
                continue
            interrupted = False
            try:
                outcome = self._obey(line)
            except GaiaError as error:
                _remark(f"gchat chat: {error}")
                continue
            if outcome == "end":
                return
            if outcome != "done":
                print()
                _say_cut(self._conversation)
            if interrupted := outcome == "stopped":
                _remark("(stopped; Ctrl-C once more ends)")

    def _obey(self, line: str) -> str:
        """Takes a line; tells what came of it, as `Conversation.command` does."""
        if line.startswith("/") and not line.startswith("//"):
            return self._conversation.command(line)
        answer = self._conversation.ask(line[1:] if line.startswith("//") else line)
        return "stopped" if answer is None else "answered"


def _say_untrained(client: Client) -> None:
    if not client.converses:
        _remark(
            f"{client.model} has not been trained on conversations: it goes on with the text "
            "(--format chat puts tags around messages all the same)"
        )


def _say_cut(conversation: Conversation) -> None:
    if conversation.cut:
        _remark(f"(cut at {conversation.cut} tokens: --max-tokens)")


def _write(text: str) -> None:
    sys.stdout.write(_printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _quiet(text: str) -> None:
    """Shows nothing."""


def _remark(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """Text that cannot command a terminal: a model may have learned escape sequences."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def _clean(line: str) -> str:
    """A typed line without halves of characters."""
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
