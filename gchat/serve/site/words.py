"""Words of texts and of queries, alike for every database.

Scripts without spaces (Chinese, Japanese) are cut into single characters; a query asks for them in
order. Words are found by their beginnings, capitals and accents aside.
"""

import re
import unicodedata

_MOST, _BYTES = 20_000, 400_000
"""Words of one text that are found, and their bytes: PostgreSQL holds 1 MB with all places."""
_LONGEST = 64
_WORD = re.compile(r"[^\W_]+")
_NO_SPACES = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    made, left = list[str](), _BYTES
    for several in _runs(text):
        for word in several:
            left -= len(word.encode())
            if left < 0 or len(made) == _MOST:
                return made
            made.append(word)
    return made


def phrases(query: str) -> list[list[str]]:
    """Words of a query that stand together; each list is sought as a phrase."""
    return [several for several in _runs(query[:1000]) if several][:16]


def _runs(text: str) -> list[list[str]]:
    plain = unicodedata.normalize("NFKD", text[: _MOST * 20].casefold())
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    return [
        [part[:_LONGEST] for part in _NO_SPACES.sub(r" \1 ", word).split()]
        for word in _WORD.findall(unicodedata.normalize("NFC", plain))
    ]
