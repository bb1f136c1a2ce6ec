"""Names and passwords that people may choose.

No two names may look alike: a name's skeleton maps letters of other scripts, and digits, to the
Latin letters they are taken for (after Unicode Technical Standard 39; the letters that matter where
names are of one script). Invisible characters and mixtures of scripts are refused.
"""

import unicodedata
from itertools import pairwise

from gchat.serve.site.faults import Fault

LONGEST_NAME, SHORTEST_PASSWORD, LONGEST_PASSWORD = 32, 10, 256
_MARKS = "._-"
_TOGETHER = ({"CJK", "HIRAGANA", "KATAKANA"}, {"CJK", "HANGUL"}, {"CJK", "BOPOMOFO"})
_LOOKS = dict(
    zip(
        "абвеһіјкӏмнопрсԁтуѕхԝґɡαβγεηικνορτυχωϲоօսոհցյеⅼ",
        "a6behijklmhonpcdtysxwrgaßyenikvoptuxwcoounhgjel",
        strict=True,
    )
)
_DIGITS = {"0": "o", "1": "l", "i": "l", "ı": "l", "|": "l"}
_COMMON = frozenset(
    [
        "password",
        "passwort",
        "kennwort",
        "qwertyuiop",
        "qwerty",
        "asdfghjkl",
        "letmein",
        "iloveyou",
        "welcome",
        "administrator",
        "changeme",
        "football",
        "baseball",
        "dragon",
        "monkey",
        "sunshine",
        "princess",
        "superman",
        "trustno",
    ]
)
_BESIDE_NAME = 4
"""Characters of a password that are not the name."""


def name_of(given: str) -> tuple[str, str, str]:
    """(name, key, skeleton) of the name that somebody wants.

    Raises:
        Fault: it cannot be a name.
    """
    name = unicodedata.normalize("NFKC", given).strip()
    if not 2 <= len(name) <= LONGEST_NAME:
        raise Fault(400, f"a name has 2 to {LONGEST_NAME} characters", "name")
    if not all(char in _MARKS or unicodedata.category(char)[0] in "LN" for char in name):
        raise Fault(400, "a name has letters, digits, dots, underscores and hyphens only", "name")
    if name[0] in _MARKS:
        raise Fault(400, "a name begins with a letter or digit", "name")
    scripts = {
        unicodedata.name(char, "?").split()[0]
        for char in name
        if unicodedata.category(char) != "Nd"
    } - {unicodedata.name(mark).split()[0] for mark in _MARKS}
    if len(scripts) > 1 and not any(scripts <= several for several in _TOGETHER):
        raise Fault(400, "a name has letters of one script only: others look alike", "name")
    key = key_of(name)
    return name, key, "".join(_look(char) for char in key)


def key_of(name: str) -> str:
    """The name as it is looked up: alike for capitals and other spellings of one character."""
    folded = unicodedata.normalize("NFKC", name.strip()).casefold()
    return unicodedata.normalize("NFKC", folded)[:256]


def _look(char: str) -> str:
    plain = unicodedata.normalize("NFD", char)[0]
    if unicodedata.category(plain) == "Nd":
        plain = str(unicodedata.digit(plain))
    plain = _LOOKS.get(plain, plain)
    return _DIGITS.get(plain, plain)


def check_password(password: str, name: str) -> None:
    """Raises Fault where a password is guessed soon."""
    if len(password) < SHORTEST_PASSWORD:
        raise Fault(400, f"a password has at least {SHORTEST_PASSWORD} characters", "password")
    if len(password) > LONGEST_PASSWORD:
        raise Fault(400, f"a password has at most {LONGEST_PASSWORD} characters", "password")
    lower = password.casefold()
    bare = lower.strip("0123456789!?.,_- ")
    steps = {ord(b) - ord(a) for a, b in pairwise(lower)}
    if len(set(lower)) < 5 or len(steps) == 1 or bare in _COMMON or bare == "":
        raise Fault(400, "this password is guessed soon: take several words", "password")
    if bare == key_of(name) or len(lower.replace(key_of(name), "").strip()) < _BESIDE_NAME:
        raise Fault(
            400, "the password is hardly more than the name: take several words", "password"
        )
