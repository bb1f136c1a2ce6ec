"""Sliding windows of sentences over articles: what every record is made from."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gchat.data.languages import identity
from gchat.synth.corpus import Article

SENTENCES, STRIDE = 8, 4
_UNKNOWN = "<unk>"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Window:
    """Sentences in a row of one article."""

    article: str
    """Id of the article."""
    title: str
    number: int
    """Counted from 0 within the article."""
    start: int
    """First sentence, counted from 0 within the article."""
    sentences: tuple[str, ...]

    @property
    def id(self) -> str:
        """Article and number: "3f2a…#4"."""
        return f"{self.article}#{self.number}"

    @property
    def text(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    def to_json(self) -> dict[str, Any]:
        """The fields as a queue or file holds them."""
        return {
            "article": self.article, "title": self.title, "number": self.number,
            "start": self.start, "sentences": list(self.sentences),
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Window":
        """Reads back what `to_json` wrote."""
        return cls(
            str(row["article"]), str(row["title"]), int(row["number"]), int(row["start"]),
            tuple(row["sentences"]),
        )  # fmt: skip


def sentences(text: str, language: str = "en") -> list[str]:
    """Sentences of a text, found by sentencex (Wikimedia's, rules for 240 languages).

    White space is made plain; line ends end a sentence. Left out are lines of less than three
    words, such as headings, and sentences with a word that WikiText left out (`<unk>`). A sentence
    of less than three words in a longer line stays with the one before it, or else behind it.
    """
    segment, code = _splitter(), identity(language) or "en"
    made = []
    for line in text.splitlines():
        if line := " ".join(line.split()):
            made += _whole(part.strip() for part in segment(code, line))
    return made


def windows(
    article: Article, *, size: int = SENTENCES, stride: int = STRIDE, language: str = "en"
) -> Iterator[Window]:
    """Windows of `size` sentences, `stride` apart; the last one ends with the article.

    Every sentence lies in one at least, and in ceil(size / stride) where the article goes on.

    Raises:
        ConfigError: a number out of range.
    """
    check(size, stride)
    listed = sentences(article.text, language)
    for number, start in enumerate(range(0, len(listed), stride)):
        taken = tuple(listed[start : start + size])
        if taken:
            yield Window(article.id, article.title, number, start, taken)
        if start + size >= len(listed):
            return


def _whole(parts: Iterable[str]) -> list[str]:
    """Sentences of a line, the short ones beside their neighbours."""
    made: list[str] = []
    before = ""
    for part in parts:
        if _UNKNOWN in part or not part:
            continue
        if len(_WORD.findall(part)) >= 3:
            made.append(f"{before} {part}".strip())
            before = ""
        elif made:
            made[-1] += f" {part}"
        else:
            before = f"{before} {part}".strip()
    return made


def check(size: int, stride: int) -> None:
    """Raises ConfigError where sentences would be left out between windows."""
    if size < 1:
        raise ConfigError(f"window = {size}", "use at least 1 sentence; 8 is usual")
    if not 1 <= stride <= size:
        raise ConfigError(
            f"stride = {stride} is out of range", f"use 1 to the {size} sentences of a window"
        )


@functools.cache
def _splitter() -> Callable[[str, str], list[str]]:
    try:
        from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError:
        raise GaiaError("windows of sentences need sentencex", install("synth")) from None
    return segment
