"""Pieces that must be single tokens (years, months, terms), as ordinary merges of a BPE.

Terms are single tokens alone and after a space, years alone: the split pattern never gives a number
the space before it.

Two things are needed. The split pattern must let a piece through whole: letters pass anyway, but
`1944` would be cut into `19` and `44` and `Pearl Harbor` at the space, so those get alternatives of
their own in front. And the merges must lead to the piece: its parts under the merges learned so far
are joined from the left, each new pair at the end of the ranks. Nothing else changes: what was a
merge stays one, decoding gives back every text, and other programs that know only merges and a
pattern agree.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence

from gaia.errors import ConfigError

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_MAX_PIECES = 20_000
_LETTERS = re.compile(r"[^\W\d_]+")


def years(given: str) -> tuple[str, ...]:
    """Every year of a range such as "1900-1949".

    Raises:
        ConfigError: no range of four-digit years.
    """
    match = re.fullmatch(r"(\d{4})-(\d{4})", given)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"years = {given!r} is no range", "write e.g. 1900-1949")
    return tuple(f"{year:04d}" for year in range(int(match[1]), int(match[2]) + 1))


def read(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Years and terms that a list of texts asks for: `1900-1949`, `months`, and terms themselves.

    Raises:
        ConfigError: no range of years.
    """
    years_wanted: list[str] = []
    terms: list[str] = []
    for text in texts:
        if re.fullmatch(r"\d{4}-\d{4}", text):
            years_wanted += years(text)
        else:
            terms += MONTHS if text == "months" else [text]
    return tuple(dict.fromkeys(years_wanted)), tuple(dict.fromkeys(terms))


def pieces(years_wanted: Sequence[str], terms: Iterable[str]) -> list[str]:
    """Pieces that must become one token: years as they are, terms alone and after a space.

    Raises:
        ConfigError: an empty or absurd list of terms.
    """
    wanted = dict.fromkeys(years_wanted)
    for term in terms:
        if term != term.strip() or not term or "\n" in term or len(term) > 60:
            raise ConfigError(f"term {term!r} cannot be a token", "give words without outer spaces")
        wanted |= dict.fromkeys((term, f" {term}"))
    if len(wanted) > _MAX_PIECES:
        raise ConfigError(f"{len(wanted)} forced pieces are too many", f"use up to {_MAX_PIECES}")
    return list(wanted)


def pattern(base: str, years_wanted: Sequence[str], terms: Iterable[str]) -> str:
    """The split pattern with alternatives for what `base` would cut."""
    parts = []
    if years_wanted:
        parts.append(rf"(?<!\p{{N}})(?:{_any_of(years_wanted)})(?!\p{{N}})")
    # The longest first: an alternation takes the first that fits.
    cut = sorted({t for t in terms if not _LETTERS.fullmatch(t)}, key=lambda t: (-len(t), t))
    if cut:
        # Not inside a longer word or number; a space before belongs to it.
        escaped = "|".join(re.escape(term).replace(r"\ ", " ") for term in cut)
        parts.append(rf"(?: |(?<![\p{{L}}\p{{N}}]))(?:{escaped})(?![\p{{L}}\p{{N}}])")
    return "|".join([*parts, base])


def matcher(years_wanted: Sequence[str], terms: Iterable[str]) -> str:
    """All forced pieces as a pattern of Python's `re`, for a codec that does not split by one.

    It finds them where `pattern` lets them through: years not inside a longer number, terms not
    inside a longer word, with the space before them.
    """
    parts = []
    if years_wanted:
        number = _numbers()
        parts.append(rf"(?<!{number})(?:{_any_of(years_wanted)})(?!{number})")
    longest = sorted(set(terms), key=lambda t: (-len(t), t))
    if longest:
        escaped = "|".join(re.escape(term) for term in longest)
        parts.append(rf"(?: |(?<![^\W_]))(?:{escaped})(?![^\W_])")
    return "|".join(parts)


def _numbers() -> str:
    r"""The characters of \p{N}, which `re` does not know, as a class."""
    points = [i for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] == "N"]
    starts = [p for p, before in zip(points, [-2, *points], strict=False) if p != before + 1]
    ends = [p for p, after in zip(points, [*points[1:], -2], strict=True) if after != p + 1]
    spans = zip(starts, ends, strict=True)
    return "[" + "".join(f"{chr(a)}-{chr(b)}" if a < b else chr(a) for a, b in spans) + "]"


def _any_of(years_wanted: Sequence[str]) -> str:
    """Years as a pattern, by decades where all ten are there: 19[0-4]\\d."""
    wanted = set(years_wanted)
    decades = sorted({year[:3] for year in wanted})
    whole = [d for d in decades if all(f"{d}{i}" in wanted for i in range(10))]
    parts = [rf"{decade}\d" for decade in whole]
    return "|".join([*parts, *sorted(year for year in wanted if year[:3] not in whole)])


def inject(ranks: dict[bytes, int], wanted: Iterable[str]) -> dict[bytes, int]:
    """The ranks with merges at their end that lead to every wanted piece."""
    grown = dict(ranks)
    for piece in wanted:
        parts = apply(piece.encode(), grown)
        while len(parts) > 1:
            joined = parts[0] + parts[1]
            grown.setdefault(joined, len(grown))
            parts = apply(piece.encode(), grown)
    return grown


def apply(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding of one piece: the lowest rank first, from the left."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [ranks.get(parts[i] + parts[i + 1]) for i in range(len(parts) - 1)]
        known = [(rank, i) for i, rank in enumerate(pairs) if rank is not None]
        if not known:
            break
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
