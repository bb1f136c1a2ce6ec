"""Identity conversations written by a model behind an endpoint, each checked before it is kept.

A conversation of the templates gives the model its subject and its first message; it is asked for
one in its own words. What is kept lies beside the file until that is written, so a second run pays
only for the rest. One that is no conversation, leaves the name out, names it where nobody asked, or
takes a phrasing that is held out for evaluation, is asked for again, three times in all; then the
one of the templates stands in its place.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from gaia.errors import ConfigError, DataError, GaiaError
from gaia.writer_lock import WriterLock
from gchat.chat_format import Conversation, Message
from gchat.client import Answer, Client, Question
from gchat.data.progress import progress_bar
from gchat.engine.requests import SamplingConfig
from gchat.evals.identity import holds
from gchat.synth.identity import Row, check_held_out
from gchat.synth.persona import Persona

_TIMES = 3
_MOODS = ("curious", "in a hurry", "polite", "suspicious", "playful", "sloppy at typing", "formal")


class Asking:
    """The conversations of one file.

    Args:
        persona: whom they are about.
        rows: of the templates.
        out: the file, which is not written here.
        client: of the model.
    """

    def __init__(self, persona: Persona, rows: Sequence[Row], out: Path, client: Client) -> None:
        self._persona, self._rows, self._client = persona, rows, client
        self._partial = out.with_name(f".{out.name}.asked")
        self._rejected = 0

    def run(self) -> tuple[list[Row], int]:
        """All rows, and how many answers were of no use.

        Raises:
            ConfigError, ClientError: the endpoint cannot be asked any more; what it wrote is kept.
        """
        lock = self._partial.with_name(f"{self._partial.name}.lock")
        with WriterLock(lock, f"conversations in {self._partial}"):
            done = self._read()
            with (
                open(self._partial, "ab") as file,
                progress_bar("conversations", len(self._rows), None, "") as bar,
            ):
                bar.update(len(done))
                for attempt in range(_TIMES):
                    todo = [i for i in range(len(self._rows)) if i not in done]
                    for i, row in self._asked(todo, attempt):
                        line = {"key": self._key(i), "i": i, **row.conversation.to_json()}
                        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                        file.flush()
                        os.fsync(file.fileno())
                        done[i] = row
                        bar.update(1)
        return [done.get(i, row) for i, row in enumerate(self._rows)], self._rejected

    def forget(self) -> None:
        """Removes what lies beside the file, once the file itself is written."""
        with suppress(OSError):
            self._partial.unlink()

    def _asked(self, todo: Sequence[int], attempt: int) -> Iterator[tuple[int, Row]]:
        """Usable answers as they come."""
        if not todo:
            return
        for index, answer in self._client.batch(self._question(i, attempt) for i in todo):
            i = todo[index]
            if isinstance(answer, GaiaError):
                if isinstance(answer, ConfigError) or getattr(answer, "fatal", False):
                    raise answer
                self._rejected += 1
                continue
            row = self._usable(i, answer)
            if row is None:
                self._rejected += 1
            else:
                yield i, row

    def _question(self, i: int, attempt: int) -> Question:
        row, persona = self._rows[i], self._persona
        draw = random.Random(f"{i} {attempt}")
        sample = json.dumps(row.conversation.to_json()["messages"], ensure_ascii=False)
        rule = (
            f"The user asks about the assistant, and its answer says {persona.name}."
            if row.about_itself
            else f"It is about anything else; the assistant never says its name {persona.name}."
        )
        facts = "\n".join(f"{key}: {value}" for key, value in asdict(persona).items())
        return Question(
            messages=(
                Message("system", "You write training conversations. Answer with JSON alone."),
                Message(
                    "user",
                    f"Facts about the assistant:\n{facts}\n\nWrite a new conversation like this "
                    f"one, in other words and in the same language:\n{sample}\n\n{rule} The user "
                    f"is {draw.choice(_MOODS)}. State no facts that are not given. Format: "
                    '{"messages": [{"role": "user", "content": "…"}, '
                    '{"role": "assistant", "content": "…"}]}',
                ),
            ),
            max_tokens=600,
            sampling=SamplingConfig(temperature=1.0, seed=i * _TIMES + attempt),
        )

    def _usable(self, i: int, answer: Answer) -> Row | None:
        """The conversation of an answer; None where it breaks a rule."""
        text, wanted = answer.text, self._rows[i]
        try:
            fields = json.loads(text[text.index("{") : text.rindex("}") + 1])
            made = Row(Conversation.from_json(fields), wanted.about_itself, wanted.category)
            check_held_out(self._persona, [made])
        except (ValueError, RecursionError, DataError):
            return None
        said = [m.content for m in made.conversation.messages if m.role == "assistant"]
        named = any(holds(content, self._persona.name) for content in said)
        return made if named == wanted.about_itself else None

    def _key(self, i: int) -> str:
        asked = [asdict(self._question(i, 0)), self._client.model]
        return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def _read(self) -> dict[int, Row]:
        """Conversations that an interrupted run left; those of other options are not taken."""
        done: dict[int, Row] = {}
        if not self._partial.exists():
            return done
        kept = []
        for raw in self._partial.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError, DataError):  # torn by a kill
                line = json.loads(raw)
                i = int(line["i"])
                if i < len(self._rows) and line["key"] == self._key(i):
                    row = self._rows[i]
                    done[i] = Row(Conversation.from_json(line), row.about_itself, row.category)
                    kept.append(raw)
        self._partial.write_bytes(b"".join(kept))
        return done
