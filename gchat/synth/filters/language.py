"""The language of a text, by lingua and by a scan of its characters.

Profile `seed`, as the author of the WW2 model wrote it: lingua with English and Chinese, whose
confidence must be exactly 1.0, and no character of U+4E00–U+9FFF. It knows two languages: German
and katakana score 1.0 English in it, and "1944" scores 0.0.

Profile `default`: more languages, thresholds that were calibrated on texts of each length, a scan
of every script that the language is not written in, and no detector for texts that have too few
letters to tell: numbers, codes, names.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Literal

import yaml

from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gchat.data.languages import identity
from gchat.synth.filters.reason import Reason
from gchat.synth.words import words

Profile = Literal["default", "seed"]
PROFILES: tuple[Profile, ...] = ("default", "seed")
_CJK = re.compile("[\u4e00-\u9fff]")
LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ro", "tr", "id", "la", "fi", "hu")
OTHERS = ("ru", "uk", "el", "ar", "he", "hi", "th", "zh", "ja", "ko")
LANGUAGES = (*LATIN, *OTHERS)
"""Languages that profile `default` can ask for. The detector compares those of the same script: the
others are told by their letters."""
_SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK", "ar": "ARABIC", "he": "HEBREW",
    "hi": "DEVANAGARI", "th": "THAI", "zh": "CJK", "ja": "CJK HIRAGANA KATAKANA",
    "ko": "HANGUL CJK",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CODE = re.compile(r"[{}<>=;_\\|`$#@~^]|\(\)|://|\w\.\w|\w\(")
_PARTICLES = words("particles")


class Checker:
    """Tells whether texts are in one language.

    Args:
        language: code or name of the one that is wanted.
        profile: "default" or "seed".

    Raises:
        ConfigError: the profile does not know the language.
        GaiaError: lingua is not installed.
    """

    def __init__(self, language: str = "en", profile: Profile = "default") -> None:
        self.language, self.profile = identity(language), profile
        if profile not in PROFILES:
            raise ConfigError(f"profile = {profile!r}", f"use one of {', '.join(PROFILES)}")
        if profile == "seed":
            if self.language != "en":
                raise ConfigError(
                    f"profile = 'seed' with language {language!r}: it knows English only",
                    "use --profile default",
                )
            self._confidence = _detector(("en", "zh"), "en", share=False)
            return
        if self.language not in LANGUAGES:
            raise ConfigError(
                f"language = {language!r} is not among those told apart",
                f"use one of {', '.join(LANGUAGES)}",
            )
        rivals = LATIN if self.language in LATIN else (*OTHERS, "en")
        self._share = _detector(rivals, self.language, share=True)
        self._scripts = frozenset(_SCRIPTS.get(self.language, "LATIN").split()) | {"LATIN"}

    def reason(self, text: str, source: str = "") -> Reason | None:
        """Reason to drop a text that is not in the language.

        Args:
            text: of a record.
            source: what stands there word for word is not judged by its words (profile default).
        """
        if self.profile == "seed":
            return self._as_the_seed(text)
        if foreign := self.foreign(text):
            code = f"U+{ord(foreign):04X}"
            return Reason("language", f"{foreign!r} ({code}) is of another script")
        if source and text.strip() in source:  # the corpus was judged when its windows were made
            return None
        own, other = self._small_words(text)
        if other > own:
            return Reason("language", f"{other} small words of other languages, {own} of its own")
        letters = prose(text)
        if letters is None:
            return None
        share, least = self._share(letters), threshold(len(letters.split()), own)
        if share < least:
            return Reason("language", f"{self.language} is {share:.3f} as likely as the best")
        return None

    def _small_words(self, text: str) -> tuple[int, int]:
        """Small words of the language, and those that only others have."""
        given = _WORD.findall(text)
        # A capital in the middle of a text makes a name of it: "Al Green", "Temple VI".
        words = [w.lower() for i, w in enumerate(given) if i == 0 or w[0].islower()]
        own = small_words().get(self.language)
        if own is None:
            return 0, 0
        if len(given) < 3 and not any(w[0].islower() for w in given):
            return 0, 0  # a name: "Der Spiegel", "Los Angeles"
        others = small_words().items()
        foreign = frozenset[str]().union(*(w for code, w in others if code != self.language)) - own
        if all(w[0].isupper() or w in _PARTICLES for w in given):  # "Erich von dem Bach"
            words = words[:1]
        counted = [w for w in words if len(w) > 1]
        return sum(w in own for w in counted), sum(w in foreign for w in counted)

    def _as_the_seed(self, text: str) -> Reason | None:
        if match := _CJK.search(text):
            return Reason("language", f"{match[0]!r} is within U+4E00–U+9FFF")
        confidence = self._confidence(text)
        if confidence != 1.0:
            return Reason("language", f"confidence of English is {confidence:.3f}, not 1.0")
        return None

    def foreign(self, text: str) -> str | None:
        """The first letter of a script that the language is not written in.

        Greek letters that stand alone are symbols ("α particles", "5 μm").
        """
        if text.isascii():
            return None
        for match in re.finditer(r"[^\W\d_]+", text):
            for character in match[0]:
                if character.isascii():
                    continue
                script = _script(character)
                if script in self._scripts or not character.isalpha():
                    continue
                if script == "GREEK" and len(match[0]) <= 2:
                    continue
                if script in _NO_SCRIPT:
                    continue
                return character
        return None


_NO_SCRIPT = words("symbols")


@functools.cache
def _script(character: str) -> str:
    """First word of a character's name in Unicode: its script, for letters."""
    name = unicodedata.name(character, "UNKNOWN")
    if name.startswith(("HALFWIDTH", "FULLWIDTH", "IDEOGRAPHIC")):
        return "KATAKANA" if "KATAKANA" in name else "LATIN" if "LATIN" in name else "CJK"
    return name.split(" ")[0].split("-")[0] if not name.startswith("CJK") else "CJK"


def prose(text: str) -> str | None:
    """The words of a text that tell its language; None where there are too few.

    Code, and words that stand like names, are no prose: a name is at home in every language.
    """
    words = _WORD.findall(text)
    if sum(map(len, words)) < 2:
        return None
    if len(_CODE.findall(text)) * 4 > len(words):
        return None
    lower = [w for w in words if not w[0].isupper() and w not in _PARTICLES]
    unspaced = any(_script(w[0]) in ("CJK", "HIRAGANA", "KATAKANA", "THAI") for w in words)
    if not lower and not unspaced:
        return None
    return " ".join(words)


def threshold(words: int, own: int) -> float:
    """Likelihood, as a share of the likeliest language's, that a text of so many words must reach.

    Calibrated so that short answers in English pass (docs/synthesis.md has the figures).

    Args:
        words: of the text.
        own: small words of the language among them.
    """
    if own:
        return 0.01 if words < 8 else 0.05
    return 0.02 if words < 4 else 0.1 if words < 8 else 0.3


@functools.cache
def small_words() -> dict[str, frozenset[str]]:
    """Common small words by language."""
    place = files("gchat.synth") / "filters" / "function_words.yaml"
    listed = yaml.load(place.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return {code: frozenset(words.split()) for code, words in listed.items()}


@functools.cache
def _detector(codes: tuple[str, ...], wanted: str, *, share: bool) -> Callable[[str], float]:
    """Confidence in a language by lingua, or its share of the best; models are loaded once."""
    try:
        import lingua
    except ModuleNotFoundError:
        raise GaiaError("the language filter needs lingua", install("synth")) from None
    languages = [_language(lingua, code) for code in codes]
    detector: Any = lingua.LanguageDetectorBuilder.from_languages(*languages).build()
    language = _language(lingua, wanted)

    def likelihood(text: str) -> float:
        if not share:
            return detector.compute_language_confidence(text, language)
        values = detector.compute_language_confidence_values(text)
        own = next(one.value for one in values if one.language == language)
        return own / values[0].value if values[0].value else 0.0

    return likelihood


def _language(lingua: Any, code: str) -> Any:
    iso = getattr(lingua.IsoCode639_1, code.upper())
    return lingua.Language.from_iso_code_639_1(iso)
