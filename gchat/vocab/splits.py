r"""Split patterns: where text is cut before byte pairs are merged, and llama.cpp's names for them.

llama.cpp has its patterns built in and knows them by the name that a GGUF file carries, so a
vocabulary can be exported there only if its pattern is one of these. Numbers of up to two digits,
which nanochat measured to be a little better at small vocabularies (bits per byte 0.965 against
0.969 with one and 0.972 with three), are none; one digit is `qwen2`, three are `llama-bpe`.

Ours match what the published ones do, but all alternatives without look-ahead stand in one group,
and nothing is possessive (it never mattered): the regex engine then runs them as one automaton
instead of one by one, which makes encoding 1.4 times as fast (measured, same ids).
"""

from typing import NamedTuple

_NUMBERS = {1: r"\p{N}", 2: r"\p{N}{1,2}", 3: r"\p{N}{1,3}"}
_SPLIT = r"(?:'%s|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n])|\s+(?!\S)|\s+"
# Both cases spelled out, as llama.cpp does: without case, Unicode counts U+017F as an s.
_ENDINGS = r"(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"
DIGITS = {
    1: _SPLIT % (_ENDINGS, _NUMBERS[1]),
    2: _SPLIT % (r"(?i:[sdmt]|ll|ve|re)", _NUMBERS[2]),  # nanochat's, and ours until 2026-11-28
    3: _SPLIT % (_ENDINGS, _NUMBERS[3]),
}
"""Patterns by the most digits that one piece of a number has."""
DEFAULT_DIGITS = 1
GPT2_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"


class Split(NamedTuple):
    """A pre-tokenizer of llama.cpp: patterns applied one after the other."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A piece that is a token as it stands becomes that token, whatever the merges say."""
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": Split((_GPT2,)),
    "smollm": Split((_NUMBERS[1], _GPT2)),
    "starcoder": Split((_NUMBERS[1], _GPT2)),
    "refact": Split((_NUMBERS[1], _GPT2)),
    "llama-bpe": Split((_CL100K % _NUMBERS[3],), ignore_merges=True, add_bos=True),
    "qwen2": Split((_CL100K % _NUMBERS[1],)),
}
"""llama.cpp's (src/llama-vocab.cpp), by the names that GGUF files carry."""
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe"}
SAME |= {"deepseek-r1-qwen": "qwen2", "olmo": "gpt-2"}
"""Other names of the same patterns."""
NAMES = {DIGITS[1]: "qwen2", DIGITS[3]: "llama-bpe", GPT2_PATTERN: "gpt-2"}
"""llama.cpp's names of our own patterns; what is not here it does not know."""
