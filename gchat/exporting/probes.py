"""Texts and ids on which an export is compared: what splits badly, and what nobody would write."""

import random
import unicodedata
from collections.abc import Sequence

from gchat.tokenizer import Tokenizer

AWKWARD = (
    "", " ", "  ", "\n", "\r\n\r\n", " \n \n", "a\n\n\nb", "\t\tx", "x   \n   y  ", "trailing  ",
    "I'm, you'RE, 'Tis, it'S 'll 've'd", "don’t 'ſtrange K'", "''''s 'sss", "1 12 123 1234 12345",
    "3.14159e-10 1,000,000 ½ ⅷ ١٢٣ 一二三", "x1y22z333", "foo_bar::baz(qux)[0]{};\n\tif (a && b)\n",
    "Hello, world! How's it going? ...", "ÀÉÎõü ñ ß ﬁ", "e\u0301 vs é, a\u030a", "Ελληνικά Русский",
    "日本語のテキスト。中文，混合English", "한국어 조선말", "עברית العربية مرحبا", "हिन्दी ภาษาไทย",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 😀😀", "\u200b\u200d\ufeff\u00a0\u2003\u3000x",
    "\x00\x01\x7f\x85", "a\u2028b\u2029c",
    "<|bos|><|im_start|>user\n<|im_end|>", "<|endoftext|> </s> [INST] <s>", "▁▁a ▁b",
    "\ue000\U000f0000",
    "https://example.org/a?b=c&d=%20#e", "C++ C# F# .NET T-34s", "AAAAAAAAAAAAAAAAaaaaaaaaaaaaaaa",
    "\\n\\t\\\\ \"quoted\" `code`", "---===+++***", "..........", "a" * 300, " " * 70 + "x",
    "0" * 50,
)  # fmt: skip
_RANGES = (
    (0x20, 0x7F), (0x20, 0x7F), (0x20, 0x7F), (0x9, 0xE), (0xA0, 0x250), (0x300, 0x370),
    (0x370, 0x530), (0x590, 0x780), (0x900, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2070),
    (0x2070, 0x2C00), (0x3000, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAE00), (0xFB00, 0xFE10),
    (0xFF00, 0xFFF0), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F300, 0x1FA00),
    (0x20000, 0x20100),
)  # fmt: skip
# Unicode keeps assigning characters, and programs have its tables of different years: what was
# unassigned in 2020 (version 13) is no letter to one and a letter to another.
_ODDS = ("'s", "'LL", "  ", "\r\n", "12", "3456", " the", "ing", "<|", "|>")


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of random characters of many scripts, with spaces, digits and endings among them."""
    rng = random.Random(seed)
    return ["".join(_character(rng) for _ in range(rng.randint(1, 40))) for _ in range(count)]


def _character(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(_ODDS)
    while True:
        start, end = rng.choice(_RANGES)
        letter = chr(rng.randrange(start, end))
        if unicodedata.category(letter) not in ("Cn", "Cs"):
            return letter


def prompts(
    tokenizer: Tokenizer, texts: Sequence[str], count: int, longest: int, seed: int = 0
) -> list[list[int]]:
    """Rows of ids: the beginnings of texts behind BOS, then random ids up to `count` rows.

    Random ids reach every row of the embedding, texts what the model was trained on.
    """
    rng = random.Random(seed)
    rows = []
    for text in texts:
        ids = tokenizer.encode(text)
        if len(ids) >= 4 and len(rows) < count // 2:
            rows.append([tokenizer.bos_id, *ids][:longest])
    while len(rows) < count:
        length = rng.randint(4, longest)
        rows.append([rng.randrange(tokenizer.vocab_size) for _ in range(length)])
    return rows
