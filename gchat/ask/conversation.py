"""A conversation with a model: its messages, its commands, and the answers as they are shown."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Literal

from gaia.errors import ConfigError
from gchat.chat_format import Message
from gchat.client import Answer, Client, Delta, Question, joined
from gchat.ranges import MAX_SEED

HELP = """/system TEXT       instruct the model (without TEXT: show it; /system off removes it)
/temperature T     draw with this temperature; 0 always takes the most likely token
/clear             forget the conversation, keep the instruction
/retry             ask the last question again, drawn anew
/save FILE         write the conversation as a line that `gchat generate` reads
/help              show this
/exit              end (Ctrl-D too)
//TEXT             say /TEXT to the model
Ctrl-C stops an answer; once more ends."""
_COMMANDS = ("system", "temperature", "clear", "retry", "save", "help", "exit")
_PATIENCE_S = 5.0  # that an answer may take to stop; then it is left to end by itself


class Conversation:
    """Messages so far, and the client that answers.

    Args:
        client: that is asked.
        options: a question whose options hold for all.
        system: instruction that begins the conversation, if any.
        show: takes pieces of answers.
        note: takes lines about the conversation, for people.
        brackets: show calls of tools too, in brackets.
    """

    def __init__(
        self,
        client: Client,
        options: Question,
        system: str | None,
        show: Callable[[str], None],
        note: Callable[[str], None],
        *,
        brackets: bool = True,
    ) -> None:
        self._client, self._options, self._brackets = client, options, brackets
        self._show, self._note = show, note
        self.messages: list[Message] = []
        self.cut = 0  # tokens after which the newest answer was cut; 0 where it ended by itself
        self._system = system
        self._saved: set[Path] = set()
        self._draw = 0  # /retry counts it up, and the seed with it

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────

    def ask(self, text: str) -> Answer | None:
        """Asks, and shows the answer as it grows; None where Ctrl-C stopped it.

        Raises:
            GaiaError: no answer came; the question is forgotten.
        """
        self.messages.append(Message("user", text))
        pieces: list[Delta] = []
        stopped = False
        try:
            question, gone, cut = self._client.fit(self._question())
            if gone:
                self._note(f"(the model's window is full: {gone} old messages are left out)")
            if cut:
                self._note("(the message is longer than the window: its middle is left out)")
            shown = Shown(self._show)
            try:
                for delta in in_thread(self._client, question):
                    pieces.append(delta)
                    if self._brackets or delta.kind == "text":
                        shown(delta)
            except KeyboardInterrupt:
                stopped = True
                pieces.append(Delta(finish="stopped"))
        except BaseException:
            self.messages.pop()
            raise
        answer = joined(pieces, 1, self._client.model)
        choice = answer.choices[0]
        if choice.text or choice.parts:
            self.messages.append(Message("assistant", choice.text, choice.parts))
        else:
            self.messages.pop()
        self.cut = answer.usage.completion_tokens if choice.finish == "length" else 0
        return None if stopped else answer

    def _question(self) -> Question:
        first = [] if self._system is None else [Message("system", self._system)]
        sampling = self._options.sampling
        seed = (sampling.seed + self._draw) % (MAX_SEED + 1)
        return replace(
            self._options, messages=(*first, *self.messages), sampling=replace(sampling, seed=seed)
        )

    # ── Commands ────────────────────────────────────────────────────────────────────────────────

    def command(self, line: str) -> Literal["end", "done", "answered", "stopped"]:
        """Obeys a line that begins with a slash; tells what came of it.

        Raises:
            GaiaError: it cannot be obeyed.
        """
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name not in _COMMANDS:
            near = get_close_matches(name, _COMMANDS, n=1)
            remedy = f"did you mean /{near[0]}?" if near else "/help lists them"
            raise ConfigError(f"unknown command /{name}", remedy)
        if rest and name in ("clear", "retry", "help", "exit"):
            raise ConfigError(f"/{name} takes nothing behind it", f"say /{name}")
        match name:
            case "exit":
                return "end"
            case "help":
                self._note(HELP)
            case "system":
                self._instruct(rest)
            case "temperature":
                self._heat(rest)
            case "clear":
                self.messages.clear()
                self._note("(forgotten)")
            case "retry":
                return "answered" if self._retry() else "stopped"
            case "save":
                self._save(rest)
        return "done"

    def _instruct(self, text: str) -> None:
        if not text:
            self._note(self._system or "(no instruction)")
            return
        self._system = None if text == "off" else text
        self._note("(instruction removed)" if text == "off" else "(instruction set)")

    def _heat(self, text: str) -> None:
        if not text:
            self._note(f"temperature {self._options.sampling.temperature:g}")
            return
        try:
            sampling = replace(self._options.sampling, temperature=float(text))
        except ValueError:
            raise ConfigError(f"temperature is {text!r}", "use a number, 0 or more") from None
        sampling.check()
        self._options = replace(self._options, sampling=sampling)
        self._note(f"(temperature {sampling.temperature:g})")

    def _retry(self) -> Answer | None:
        asked = [i for i, m in enumerate(self.messages) if m.role == "user"]
        if not asked:
            raise ConfigError("there is no question to ask again", "ask one")
        before, last = list(self.messages), self.messages[asked[-1]]
        del self.messages[asked[-1] :]
        if self._options.sampling.temperature == 0:
            self._note("(temperature 0 gives the same answer again)")
        self._draw += 1
        answer, kept = None, len(self.messages)
        try:
            answer = self.ask(last.content)
        finally:
            if len(self.messages) == kept:  # no new one came: the old one stays
                self.messages[:] = before
        return answer

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("/save names no file", "say /save FILE")
        path = Path(name).expanduser()
        if path.exists() and path.absolute() not in self._saved:
            raise ConfigError(f"{str(path)!r} exists", "name another file")
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        said = [{"role": m.role, "content": m.content} for m in self.messages]
        partial = path.with_name(f".{path.name}.partial")
        try:
            line = json.dumps({"messages": system + said}, ensure_ascii=False)
            partial.write_text(line + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ConfigError(
                f"cannot write {str(path)!r} ({error.strerror})", "check it"
            ) from None
        self._saved.add(path.absolute())
        self._note(f"({len(said)} messages in {path})")


@dataclass
class Shown:
    """Shows an answer, with the calls of tools in brackets: [48/2 = 24]."""

    show: Callable[[str], None]
    _kind: str = "text"

    def __call__(self, delta: Delta) -> None:
        """Shows a piece."""
        if delta.text:
            if delta.kind != self._kind:
                self._turn(delta.kind)
            self.show(delta.text)
        if delta.finish is not None:
            self._turn("text")

    def _turn(self, kind: str) -> None:
        between = {
            ("text", "call"): "[", ("call", "output"): " = ", ("call", "text"): "]",
            ("output", "text"): "]", ("output", "call"): "] [",
        }  # fmt: skip
        self.show(between.get((self._kind, kind), ""))
        self._kind = kind


def in_thread(client: Client, question: Question) -> Iterator[Delta]:
    """A stream that Ctrl-C can leave at any moment.

    The answer is computed in a thread of its own: KeyboardInterrupt reaches only the main thread,
    which waits, and never the middle of a compiled program or of the engine's bookkeeping.
    """
    news: SimpleQueue[Delta | BaseException | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        try:
            with closing(client.stream(question)) as stream:  # type: ignore[type-var]
                for delta in stream:
                    news.put(delta)
                    if stop.is_set():
                        break
            news.put(None)
        except BaseException as error:
            news.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (one := news.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        stop.set()
        thread.join(_PATIENCE_S)
