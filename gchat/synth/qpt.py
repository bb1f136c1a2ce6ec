"""Q-PT: passages of raw text as answers to varied questions, so that a chat model learns them.

A passage stays as it is; only the answer is learned (`gchat data chat`). What is asked about is the
passage's title where there is one, else its heading, else the name that it mentions most, else its
first words. Source: the domain models that are trained on questions in place of continued
pretraining; their phrasings were not published, these 28 are our own (qpt.yaml).
"""

import collections
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gaia.errors import ConfigError
from gchat.chat_format import Conversation, Message
from gchat.data.sources import text
from gchat.data.sources.unit import Row, Tally
from gchat.synth.identity import texts

_HEADING = re.compile(r"\A#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_CAPITAL = r"[A-Z][\w'’-]+"
# Words with a capital, but not the first of a sentence or line.
_NAME = re.compile(
    rf"(?<![.!?:\"“] )(?<!\A)(?<!\n)\b({_CAPITAL}(?: (?:of |the |de |von )?{_CAPITAL})*)"
)
# Behind a mark that stands after a small letter or digit, so not in "U.S. Army".
_END = re.compile(r"(?<=[a-z0-9)\]\"”'][.!?])[\"”']?\s+|\n{2,}")
_TOPIC_CHARS = 60


@dataclass(frozen=True)
class Passage:
    """A stretch of text, and what it is about."""

    text: str
    topic: str


def phrasings() -> list[tuple[str, str]]:
    """Style and template of each of the 28 phrasings."""
    return [(style, text) for style, given in texts("qpt").items() for text in given]


class Documents:
    """Documents of files, folders and globs, with their titles.

    Raises:
        DataError: an input is not there, or empty.
        ConfigError: a file of another kind was named.
    """

    def __init__(self, inputs: Sequence[str], text_column: str = "text", max_bad: int = 0) -> None:
        if max_bad < 0:
            raise ConfigError(f"max_bad = {max_bad} is negative", "use 0 or more")
        self._listed = [text.corpus(path, text_column=text_column) for path in inputs]
        self._tally = Tally(max_bad=max_bad)

    @property
    def bad(self) -> int:
        """Documents that could not be read, so far."""
        return self._tally.bad

    def rows(self) -> Iterator[Row]:
        """Reads them in order; whole files of .txt and .md are cut as `gchat data prepare` does."""
        for corpus in self._listed:
            for unit in corpus.units:
                yield from unit.read(self._tally)


def pairs(
    rows: Iterator[Row], *, seed: int = 0, chars: int = 1500, per_passage: int = 1
) -> Iterator[dict[str, Any]]:
    """Rows of the file: each passage as the answer to `per_passage` different questions.

    Args:
        rows: documents.
        seed: of the choice of phrasings.
        chars: a document is cut into passages of about so many characters, at ends of sentences.
        per_passage: questions to each passage, 1 to 28.

    Raises:
        ConfigError: a number out of range.
    """
    known = phrasings()
    if not 1 <= per_passage <= len(known):
        raise ConfigError(f"per_passage = {per_passage}", f"use 1 to {len(known)}")
    if chars < 50:
        raise ConfigError(f"passage_chars = {chars} is too small", "use at least 50")
    draw = random.Random(f"qpt {seed}")
    for row in rows:
        for passage in passages(row, chars):
            for style, template in draw.sample(known, per_passage):
                question = Message("user", template.replace("{topic}", passage.topic))
                answer = Message("assistant", passage.text)
                yield Conversation((question, answer)).to_json() | {
                    "style": style,
                    "topic": passage.topic,
                    "file": row.meta.get("file", ""),
                }


def passages(row: Row, chars: int) -> Iterator[Passage]:
    """A document cut at ends of sentences and paragraphs, never inside of one."""
    title = " ".join(row.meta.get("title", "").split())
    body = row.text.strip()
    if not title and (heading := _HEADING.match(body)):
        title = heading[1].strip()
        body = body[heading.end() :].strip() or body
    at = 0
    ends = [*(match.end() for match in _END.finditer(body)), len(body)]
    for i, end in enumerate(ends):
        following = ends[i + 1] if i + 1 < len(ends) else None
        if following is not None and following - at <= chars:
            continue
        passage = body[at:end].strip()
        at = end
        if len(re.findall(r"\w+", passage)) >= 5:
            yield Passage(passage, title or topic_of(passage))


def topic_of(passage: str) -> str:
    """The name that a passage mentions most, or its first words."""
    names = collections.Counter(name for name in _NAME.findall(passage) if len(name) > 2)
    if names:
        name, _ = max(names.items(), key=lambda one: (one[1], len(one[0])))
        if len(name) <= _TOPIC_CHARS:
            return name
    words = passage.split()[:6]
    return '"' + " ".join(words)[:_TOPIC_CHARS].rstrip(" .,;:") + '"'
