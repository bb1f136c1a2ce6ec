"""The split by source, before anything is made: whole articles, and phrasings of trained facts.

An article is held out with everything that repeats it: copies, and articles that share a tenth of
their sentences. A window of a trained article that holds a sentence of a held-out one is dropped.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gaia.errors import ConfigError
from gchat.synth.corpus import Article
from gchat.synth.windows import Window, sentences

Part = Literal["train", "heldout_article", "heldout_phrasing"]
PARTS: tuple[Part, ...] = ("train", "heldout_article", "heldout_phrasing")
_SHARED = 0.1
_MIN_WORDS = 6
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Split:
    """Articles and styles that training never sees."""

    articles: frozenset[str]
    """Ids of held-out articles."""
    styles: frozenset[str]
    """Names of held-out styles: in windows of trained articles they ask what others teach."""
    sentences: frozenset[int]
    """Hashes of the sentences of held-out articles."""

    def part(self, window: Window, style: str) -> Part:
        """The part that a record belongs to."""
        if window.article in self.articles:
            return "heldout_article"
        return "heldout_phrasing" if style in self.styles else "train"

    def leaks(self, window: Window) -> bool:
        """True for a window of a trained article that holds a sentence of a held-out one."""
        if window.article in self.articles:
            return False
        return any(h in self.sentences for s in window.sentences if (h := _hash(s)) is not None)


def split(
    articles: Sequence[Article],
    styles: Sequence[str],
    *,
    heldout: float,
    heldout_styles: float,
    seed: int = 0,
    language: str = "en",
) -> Split:
    """Chooses by hashes of (seed, id), so that an article's side does not depend on the others'.

    Args:
        articles: of the corpus.
        styles: names of all styles, or of phrasings.
        heldout: share of the articles.
        heldout_styles: share of the styles.
        seed: of the choice.
        language: of the articles, for their sentences.

    Raises:
        ConfigError: a share out of range, or nothing would be left to train on.
    """
    for name, share in (("heldout", heldout), ("heldout_styles", heldout_styles)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} = {share} is out of range", "use a share of 0 to below 1")
    hashed = {a.id: _hashes(a, language) for a in articles}
    groups = _groups(hashed)
    chosen: set[str] = set()
    if heldout:
        wanted = max(1, round(heldout * len(articles)))
        for group in sorted(groups, key=lambda ids: _rank(seed, min(ids))):
            if len(chosen) >= wanted:
                break
            chosen |= group
        if len(chosen) == len(articles):
            raise ConfigError(
                f"heldout = {heldout} of {len(articles)} articles leaves none to train on",
                "give more articles, or --heldout 0",
            )
    count = 0 if not heldout_styles else max(1, round(heldout_styles * len(styles)))
    ranked = sorted(styles, key=lambda name: _rank(seed, name))
    return Split(
        frozenset(chosen),
        frozenset(ranked[:count]),
        frozenset().union(*(hashed[a] for a in chosen)) if chosen else frozenset(),
    )


def _groups(hashed: dict[str, frozenset[int]]) -> list[set[str]]:
    """Articles that repeat one another, joined."""
    holders: dict[int, list[str]] = {}
    for article, hashes in hashed.items():
        for one in hashes:
            holders.setdefault(one, []).append(article)
    root = {article: article for article in hashed}

    def find(article: str) -> str:
        while root[article] != article:
            root[article] = root[root[article]]
            article = root[article]
        return article

    shared: Counter[tuple[str, str]] = Counter()
    for ids in holders.values():
        if 1 < len(ids) <= 50:  # what more of them hold is a formula, no copy
            first, *others = ids
            shared.update((first, other) for other in others)
    for (a, b), count in shared.items():
        if count >= _SHARED * min(len(hashed[a]), len(hashed[b])):
            root[find(b)] = find(a)
    groups: dict[str, set[str]] = {}
    for article in hashed:
        groups.setdefault(find(article), set()).add(article)
    return list(groups.values())


def _hashes(article: Article, language: str) -> frozenset[int]:
    made = (_hash(sentence) for sentence in sentences(article.text, language))
    return frozenset(one for one in made if one is not None)


def _hash(sentence: str) -> int | None:
    """64 bits of a sentence, case and marks aside; None for one too short to tell anything."""
    words = _WORD.findall(sentence.lower())
    if len(words) < _MIN_WORDS:
        return None
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()


def parts(names: Iterable[str]) -> dict[str, int]:
    """Number of records of each part, all parts named."""
    counted = Counter(names)
    return {part: counted.get(part, 0) for part in PARTS}
