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
from typing import Any, Literal

from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gchat.data.languages import identity
from gchat.synth.filters.reason import Reason

Profile = Literal["default", "seed"]
PROFILES: tuple[Profile, ...] = ("default", "seed")
_CJK = re.compile("[\u4e00-\u9fff]")
LANGUAGES = (
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "hu", "ro", "tr",
    "id", "vi", "la", "ru", "uk", "el", "ar", "he", "hi", "th", "zh", "ja", "ko",
)  # fmt: skip
"""Languages that profile `default` tells apart."""
_SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK", "ar": "ARABIC", "he": "HEBREW",
    "hi": "DEVANAGARI", "th": "THAI", "zh": "CJK", "ja": "CJK HIRAGANA KATAKANA",
    "ko": "HANGUL CJK",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CODE = re.compile(r"[{}<>=;_\\|`$#@~^]|\(\)|://|\w\.\w|\w\(")
_PARTICLES = frozenset("of the and de la le von van der den di da del du in at on for to a an".split())


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
            self._confidence = _detector(("en", "zh"), "en")
            return
        if self.language not in LANGUAGES:
            raise ConfigError(
                f"language = {language!r} is not among those told apart",
                f"use one of {', '.join(LANGUAGES)}",
            )
        self._confidence = _detector(LANGUAGES, self.language)
        self._scripts = frozenset(_SCRIPTS.get(self.language, "LATIN").split()) | {"LATIN"}

    def reason(self, text: str) -> Reason | None:
        """Reason to drop a text that is not in the language."""
        if self.profile == "seed":
            return self._as_the_seed(text)
        if foreign := self.foreign(text):
            code = f"U+{ord(foreign):04X}"
            return Reason("language", f"{foreign!r} ({code}) is of another script")
        letters = prose(text)
        if letters is None:
            return None
        confidence, least = self._confidence(letters), threshold(letters)
        if confidence < least:
            return Reason(
                "language", f"confidence of {self.language} is {confidence:.3f}, below {least}"
            )
        return None

    def _as_the_seed(self, text: str) -> Reason | None:
        if match := _CJK.search(text):
            return Reason("language", f"{match[0]!r} is within U+4E00–U+9FFF")
        confidence = self._confidence(text)
        if confidence != 1.0:
            return Reason("language", f"confidence of English is {confidence:.3f}, not 1.0")
        return None

    def foreign(self, text: str) -> str | None:
        """The first letter of a script that the language is not written in.

        A Greek letter that stands alone is a symbol ("α particles").
        """
        if text.isascii():
            return None
        for match in re.finditer(r"[^\W\d_]+", text):
            for character in match[0]:
                if character.isascii():
                    continue
                script = _script(character)
                if script in self._scripts or (script == "GREEK" and len(match[0]) == 1):
                    continue
                if script in _NO_SCRIPT:
                    continue
                return character
        return None


_NO_SCRIPT = frozenset("MODIFIER SUPERSCRIPT SUBSCRIPT FEMININE MASCULINE MICRO OHM KELVIN ANGSTROM "
                       "DOUBLE-STRUCK SCRIPT MATHEMATICAL ROMAN".split())  # fmt: skip


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


def threshold(text: str) -> float:
    """Confidence that a text of so many words must reach; calibrated, see docs/synthesis.md."""
    words = len(text.split())
    if words < 4:
        return 0.005
    return 0.03 if words < 8 else 0.1


@functools.cache
def _detector(codes: tuple[str, ...], wanted: str) -> Callable[[str], float]:
    """Confidence in a language by lingua, which loads its models once."""
    try:
        import lingua
    except ModuleNotFoundError:
        raise GaiaError("the language filter needs lingua", install("synth")) from None
    languages = [_language(lingua, code) for code in codes]
    detector: Any = lingua.LanguageDetectorBuilder.from_languages(*languages).build()
    language = _language(lingua, wanted)
    return lambda text: detector.compute_language_confidence(text, language)


def _language(lingua: Any, code: str) -> Any:
    iso = getattr(lingua.IsoCode639_1, code.upper())
    return lingua.Language.from_iso_code_639_1(iso)
