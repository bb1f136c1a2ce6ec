"""Quality rules on one document: the families that Gopher, C4 and FineWeb published.

Each family is a frozen dataclass of thresholds whose `reason` gives the name of the first rule that
a document breaks, with the value that broke it. C4 also edits: it drops lines.

Gopher: Rae et al. 2021, arXiv:2112.11446, table A1. C4: Raffel et al. 2020, arXiv:1910.10683,
section 2.2. FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.6 (which also left out C4's
demand that every line end in punctuation; so do we, unless it is asked for).
"""

import dataclasses
import re
from collections import Counter
from typing import NamedTuple

from gchat.data.curation import scripts

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "▪", "●", "○", "- ", "* ", "– ")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


class Reason(NamedTuple):
    """Reason to leave a document out."""

    rule: str
    value: float


class Words(NamedTuple):
    """A document and what several rules look at."""

    text: str
    words: list[str]
    lines: list[str]
    """Lines that are not blank, stripped."""
    unspaced: bool = False
    """The words are mostly of a script without spaces between them."""

    @classmethod
    def of(cls, text: str) -> "Words":
        """Splits at white space (scripts without spaces by length) and at line ends."""
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        words, unspaced = scripts.words(text)
        return cls(text, words, lines, unspaced)


@dataclasses.dataclass(frozen=True)
class Gopher:
    """Gopher's quality rules."""

    min_words: int = 50
    """Minimum number of words of a document."""
    max_words: int = 100_000
    """Maximum number of words of a document."""
    min_word_length: float = 3.0
    """Minimum mean characters of a word."""
    max_word_length: float = 10.0
    """Maximum mean characters of a word."""
    max_symbols: float = 0.1
    """Maximum number of # or ellipses per word."""
    max_bullet_lines: float = 0.9
    """Maximum share of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Maximum share of lines that end in an ellipsis."""
    min_alphabetic: float = 0.8
    """Minimum share of words with a letter in them."""
    min_stop_words: int = 2
    """Minimum of the, be, to, of, and, that, have, with that occur (0 for other languages)."""

    def reason(self, d: Words) -> Reason | None:
        """The first rule broken."""
        count = len(d.words)
        if count < self.min_words:
            return Reason("gopher.min_words", count)
        if count > self.max_words:
            return Reason("gopher.max_words", count)
        mean = sum(map(len, d.words)) / count
        if mean < self.min_word_length and not d.unspaced:
            return Reason("gopher.min_word_length", mean)
        if mean > self.max_word_length:
            return Reason("gopher.max_word_length", mean)
        hashes = d.text.count("#") / count
        ellipses = (d.text.count("...") + d.text.count("…")) / count
        if max(hashes, ellipses) > self.max_symbols:
            return Reason("gopher.max_symbols", max(hashes, ellipses))
        return self._of_lines(d) or self._of_words(d, count)

    def _of_lines(self, d: Words) -> Reason | None:
        bullets = sum(line.startswith(_BULLETS) for line in d.lines) / len(d.lines)
        if bullets > self.max_bullet_lines:
            return Reason("gopher.max_bullet_lines", bullets)
        ellipses = sum(line.endswith(("...", "…")) for line in d.lines) / len(d.lines)
        if ellipses > self.max_ellipsis_lines:
            return Reason("gopher.max_ellipsis_lines", ellipses)
        return None

    def _of_words(self, d: Words, count: int) -> Reason | None:
        # isalpha() of the whole word is the common case, and ten times as fast as a search.
        plain = sum(map(str.isalpha, d.words))
        if plain < self.min_alphabetic * count:
            letters = sum(any(map(str.isalpha, w)) for w in d.words if not w.isalpha()) + plain
            if letters < self.min_alphabetic * count:
                return Reason("gopher.min_alphabetic", letters / count)
        if self.min_stop_words:
            present = len(STOP_WORDS.intersection(map(str.lower, d.words)))
            if present < self.min_stop_words:
                return Reason("gopher.min_stop_words", present)
        return None


@dataclasses.dataclass(frozen=True)
class C4:
    """C4's rules; lines that break one are dropped before the document is judged."""

    min_line_words: int = 3
    """Shorter lines are dropped."""
    max_word_chars: int = 1000
    """Lines with a longer word are dropped."""
    terminal_punctuation: bool = False
    """Drop lines that do not end a sentence (FineWeb found it to cost too much)."""
    curly_brackets: bool = True
    """Drop documents with a {: more likely code than prose."""
    min_sentences: int = 5
    """Minimum number of sentences after lines were dropped."""

    def edited(self, text: str) -> tuple[str, Counter[str]]:
        """The text without its bad lines, and how many each rule took."""
        kept = []
        taken: Counter[str] = Counter()
        for line in text.split("\n"):
            stripped = line.strip()
            if not stripped:
                kept.append("")
            elif rule := self._line(stripped):
                taken[rule] += 1
            else:
                kept.append(_CITATION.sub("", stripped) if "[" in stripped else stripped)
        if not taken:
            return "\n".join(kept).strip(), taken
        return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip(), taken

    def _line(self, line: str) -> str | None:
        lower = line.lower()
        words = scripts.words(line)[0]
        if len(words) < self.min_line_words:
            return "c4.short_line"
        if len(line) > self.max_word_chars and max(map(len, words)) > self.max_word_chars:
            return "c4.long_word"
        if self.terminal_punctuation and not scripts.ends_sentence(line):
            return "c4.no_punctuation"
        if "javascript" in lower:
            return "c4.javascript"
        if any(phrase in lower for phrase in _POLICY):
            return "c4.policy"
        return None

    def reason(self, d: Words) -> Reason | None:
        """The first rule that the edited document breaks."""
        if not d.lines:
            return Reason("c4.empty", 0)
        if "lorem ipsum" in d.text.lower():
            return Reason("c4.lorem_ipsum", 1)
        if self.curly_brackets and "{" in d.text:
            return Reason("c4.curly_brackets", d.text.count("{"))
        if self.min_sentences:
            sentences = scripts.count_sentences(d.text)
            if sentences < self.min_sentences:
                return Reason("c4.min_sentences", sentences)
        return None


@dataclasses.dataclass(frozen=True)
class FineWeb:
    """FineWeb's own rules."""

    min_punctuated_lines: float = 0.12
    """Minimum share of lines that end in punctuation."""
    max_short_lines: float = 0.67
    """Maximum share of lines of at most 30 characters."""
    short_line_chars: int = 30
    """Characters up to which a line is short."""
    max_duplicate_chars: float = 0.01
    """Maximum share of characters in lines that came before."""
    max_newlines: float = 0.3
    """Maximum number of line ends per word."""

    def reason(self, d: Words) -> Reason | None:
        """The first rule broken."""
        count = len(d.lines)
        if not count:
            return Reason("fineweb.empty", 0)
        punctuated = sum(map(scripts.ends_sentence, d.lines)) / count
        if punctuated < self.min_punctuated_lines:
            return Reason("fineweb.min_punctuated_lines", punctuated)
        short = sum(len(line) <= self.short_line_chars for line in d.lines) / count
        if short > self.max_short_lines:
            return Reason("fineweb.max_short_lines", short)
        repeated = _repeated_chars(d.lines) / max(1, sum(map(len, d.lines)))
        if repeated > self.max_duplicate_chars:
            return Reason("fineweb.max_duplicate_chars", repeated)
        newlines = d.text.count("\n") / max(1, len(d.words))
        if newlines > self.max_newlines:
            return Reason("fineweb.max_newlines", newlines)
        return None


def _repeated_chars(items: list[str]) -> int:
    """Characters of the items that came before."""
    if len(set(items)) == len(items):
        return 0
    return sum((n - 1) * len(item) for item, n in Counter(items).items())


def repeated_shares(items: list[str]) -> tuple[float, float]:
    """Share of the items that came before, and of their characters."""
    if not items:
        return 0.0, 0.0
    different = len(set(items))
    if different == len(items):
        return 0.0, 0.0
    chars = sum(map(len, items))
    return 1 - different / len(items), _repeated_chars(items) / max(1, chars)
