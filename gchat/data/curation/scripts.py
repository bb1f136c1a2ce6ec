"""Words and sentences of scripts that put no spaces between words.

Chinese and Japanese words have about two characters, Thai, Lao, Khmer and Burmese ones about four;
cutting their runs so gives counts that rules made for spaced text can be compared with. Thai and
Lao write no full stop: a space between two of their letters ends a sentence or a clause.
"""

import re

_HAN = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_THAI_LAO = "\u0e00-\u0eff"
_INDIC = "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
_OPEN, _CLOSE = "「『（《〈“‘", "，。、；：！？…」』）》〉”’"
_UNSPACED = re.compile(f"[{_HAN}{_THAI_LAO}{_INDIC}]")
_WORD = re.compile(
    f"[{_OPEN}]*(?:[{_HAN}]{{1,2}}|[{_THAI_LAO}{_INDIC}]{{1,4}})[{_CLOSE}]*"
    f"|[^\\s{_HAN}{_THAI_LAO}{_INDIC}]+"
)
_TERMINAL = (
    ".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…", "」", "』", "）", "।", "។", "။",
)  # fmt: skip
_SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？।។။]+")
_THAI_BREAK = re.compile(f"(?<=[{_THAI_LAO}])[ \\n]+(?=[{_THAI_LAO}])")
_THAI_END = re.compile(f"[{_THAI_LAO}]$")


def words(text: str) -> tuple[list[str], bool]:
    """The words of a text, and True where most of them are of a script without spaces."""
    if text.isascii() or not _UNSPACED.search(text):
        return text.split(), False
    parts = _WORD.findall(text)
    unspaced = sum(map(bool, map(_UNSPACED.search, parts)))
    return parts, unspaced * 2 > len(parts)


def count_sentences(text: str) -> int:
    """Sentences of a text; at least 1, because one without an end still says something."""
    count = len(_SENTENCE.findall(text))
    if not text.isascii():
        count += len(_THAI_BREAK.findall(text))
    return max(1, count)


def ends_sentence(line: str) -> bool:
    """True where a line ends as a sentence does; always in scripts that write no full stop."""
    return line.endswith(_TERMINAL) or (not line.isascii() and bool(_THAI_END.search(line)))
