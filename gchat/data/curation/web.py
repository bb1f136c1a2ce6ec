"""Rules on where a document comes from and in which language it is written.

The language is taken from the source's own field where it has one. Else it is guessed: from the
script, or, for Latin script, from the share of a language's most frequent function words. That
needs no model and is right on whole documents of the languages listed; it is no match for a trained
identifier on single sentences.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from gaia.errors import ConfigError
from gchat.data import languages
from gchat.data.curation.rules import Reason, Words

_FUNCTION_WORDS = {
    "en": "the of and to in is that for it with as was on be by this are from at have or not",
    "de": "der die und das in ist nicht ein eine zu den mit von sich auf für dem des auch als es",
    "fr": "le la les de des et est un une dans que qui pour en sur au pas par plus avec du ce",
    "es": "el la los las de que y en un una es por con para se del no su al lo como más",
    "it": "il di che la e in un una è per non del con si da i della le sono gli nel al",
    "pt": "o de que e do da em um uma para com não os no se na por mais as dos ao é",
    "nl": "de het een van en in is dat op te zijn met voor niet aan er die ook als om naar",
    "sv": "och att det i en är som på för av med den till inte har om ett men så de var",
    "da": "og at det i en er som på for af med den til ikke har om et men så de var jeg",
    "pl": "i w na z się do nie że jest to o jak za po ale od przez dla są ma był tego",
    "tr": "ve bir bu da de için ile çok olarak daha olan gibi kadar sonra ne var değil ama en",
    "ro": "și de la în a o un nu pe cu că din este mai pentru ce sau sunt care au fost",
}
_WORDS = {word: [] for line in _FUNCTION_WORDS.values() for word in line.split()}
for _language, _line in _FUNCTION_WORDS.items():
    for _word in _line.split():
        _WORDS[_word].append(_language)
_SCRIPTS = {
    "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi",
    "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th",
    "ARMENIAN": "hy", "GEORGIAN": "ka", "BENGALI": "bn", "TAMIL": "ta",
}  # fmt: skip
_LANGUAGES = sorted({*_FUNCTION_WORDS, *_SCRIPTS.values()})
_LOOKED_AT = 200  # words of a document that decide
_ADULT = re.compile(r"\b(?:porn|xxx|xvideos|xnxx|hentai|escorts?|camgirls?)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Web:
    """Rules on address and language."""

    languages: tuple[str, ...] = ()
    """Languages to keep, as en de (or eng_Latn, German); none keeps all."""
    min_language: float = 0.5
    """Minimum share of the recognised words that must belong to the language."""
    blocked_domains: str | None = None
    """File of domains (one per line) whose documents go, subdomains included."""
    adult: bool = True
    """Drop documents whose address names adult content."""

    def check(self) -> None:
        """Refuses what is no language, and a missing list of domains."""
        if unknown := [name for name in self.languages if not languages.is_language(name)]:
            raise ConfigError(
                f"languages = {unknown} unknown",
                "use ISO 639 codes, as en or eng; without a field that names the language, these "
                f"are told apart: {' '.join(_LANGUAGES)}",
            )
        if self.blocked_domains and not Path(self.blocked_domains).is_file():
            raise ConfigError(
                f"blocked_domains = {self.blocked_domains!r} is not there", "check it"
            )

    def domains(self) -> frozenset[str]:
        """The blocked domains."""
        if not self.blocked_domains:
            return frozenset()
        lines = Path(self.blocked_domains).read_text(encoding="utf-8").split("\n")
        names = (line.split("#")[0].strip().lower() for line in lines)
        return frozenset(name.removeprefix("www.") for name in names if name)

    def reason(self, d: Words, meta: dict[str, str], domains: frozenset[str]) -> Reason | None:
        """The first rule broken; documents without address or recognised language stay."""
        if url := meta.get("url"):
            if domains and _blocked(url, domains):
                return Reason("url.blocked", 1)
            if self.adult and _ADULT.search(url):
                return Reason("url.adult", 1)
        if self.languages:
            language, share = languages.identity(meta.get("language", "")), 1.0
            if not language:
                language, share = guess(d)
            wanted = frozenset(map(languages.identity, self.languages))
            if language and not languages.belongs(language, wanted):
                return Reason(f"language.{language}", share)
            if language and share < self.min_language:
                return Reason("language.mixed", share)
        return None


def _blocked(url: str, domains: frozenset[str]) -> bool:
    host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").removeprefix("www.")
    parts = host.split(".")
    return any(".".join(parts[i:]) in domains for i in range(len(parts)))


def guess(d: Words) -> tuple[str, float]:
    """The language and its share of what was recognised; ("", 0.0) where nothing was."""
    words = d.words[:_LOOKED_AT]
    script = _script("".join(words)[:400])
    if script in _SCRIPTS:
        sample = "".join(words)
        kana = script == "CJK" and any("\u3040" <= c <= "\u30ff" for c in sample[:400])
        return ("ja" if kana else _SCRIPTS[script]), 1.0
    votes: Counter[str] = Counter()
    recognised = 0
    for word in words:
        if votes_of := _WORDS.get(word.lower().strip(".,;:!?\"'()")):
            recognised += 1
            votes.update(votes_of)
    if recognised < 3:
        return "", 0.0
    language, count = min(votes.items(), key=lambda item: (-item[1], item[0]))
    return language, count / recognised


def _script(sample: str) -> str:
    """The script of most letters that are not Latin, or "" where Latin leads."""
    if sample.isascii():
        return ""
    names = Counter(
        unicodedata.name(c, "LATIN").split(" ")[0].split("-")[0] for c in sample if c.isalpha()
    )
    name, count = max(names.items(), key=lambda item: item[1], default=("LATIN", 0))
    return "" if name == "LATIN" or count * 2 < sum(names.values()) else name
