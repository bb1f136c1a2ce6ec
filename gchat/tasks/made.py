"""Tasks made here, without a file: counting letters, spelling words out, small sums.

Item i of a split is a function of (seed, split, i). Words of the test split occur in no other, so
that what is tested is the skill: a word is of the test if its hash says so.

Counting letters is what tokens hide from a model. As in nanochat's SpellingBee the answer spells
the word out, letter by letter with commas between, so that each letter is a token of its own,
counts along, and has the tool count once more.
"""

import random
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from gchat.conversation import Message, Part
from gchat.tasks import numbers
from gchat.tasks.task import Item, assistant, user

COUNT = {"train": 20_000, "test": 1_000}
"""Items of a split where no limit is given; other splits have as many as the test."""
_TEST_SHARE = 10  # one word in so many belongs to the test
_ASKED = (
    "How many times does {letter} occur in {word}",
    "How many {letter} are in {word}",
    "How many {letter}s are there in the word {word}",
    "Count the letter {letter} in {word}",
    "In the word {word}, how often does the letter {letter} appear",
    "What is the number of {letter} in {word}",
    "Tell me how many {letter} the word {word} has",
    "How often do you see {letter} in {word}",
)
_SPELL = (
    "Spell the word {word}",
    "How is {word} spelled",
    "Write {word} letter by letter",
    "Which letters make up {word}",
)
_SUMS = ("What is {sum}", "Calculate {sum}", "{sum} = ", "How much is {sum}", "Work out {sum}")


class Made:
    """Items that a function makes.

    Args:
        make: gives an item for (its own random numbers, the split, its name).
        split: "train", "test", …
        count: number of items.
        seed: of all of them.
    """

    def __init__(
        self,
        make: Callable[[random.Random, str, str], Item],
        split: str,
        count: int | None,
        seed: int,
    ) -> None:
        self._make, self._split, self._seed = make, split, seed
        self._count = COUNT.get(split, COUNT["test"]) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = random.Random(f"{self._seed} {self._split} {index}")
        return self._make(rng, self._split, str(index))


@cache
def words(split: str) -> tuple[str, ...]:
    """Words of a split: common English ones of 5 to 12 letters."""
    every = Path(__file__).with_name("words.txt").read_text(encoding="ascii").split()
    test = [word for word in every if zlib.crc32(word.encode()) % _TEST_SHARE == 0]
    return tuple(test) if split == "test" else tuple(sorted(set(every) - set(test)))


def spelling(rng: random.Random, split: str, name: str) -> Item:
    """Letters of a word to count; one in ten is a letter that may not occur at all."""
    word = rng.choice(words(split))
    letter = rng.choice(word if rng.random() < 0.9 else "abcdefghijklmnopqrstuvwxyz")
    quote = rng.choice(("", "", "'", '"'))
    asked = rng.choice(_ASKED).format(
        letter=f"{quote}{letter}{quote}", word=f"{quote}{word}{quote}"
    )
    question = _varied(rng, asked)
    count, lines = 0, []
    for place, each in enumerate(word, start=1):
        count += each == letter
        lines.append(f"{place}:{each}" + (f" yes, {count}" if each == letter else ""))
    before = (
        f"I spell {word} and count each {letter}.\n\n{','.join(word)}\n\n"
        + "\n".join(lines)
        + f"\n\nThat makes {count}. The tool counts "
    )
    parts = (
        Part("text", before),
        Part("call", f"'{word}'.count('{letter}')"),
        Part("output", str(count)),
        Part("text", f"{count} too.\n\n{numbers.MARK} {count}"),
    )
    text = "".join(part.text for part in parts if part.kind == "text")
    return Item(
        name, user(question), Message("assistant", text, parts),
        meta={"number": str(count), "word": word, "letter": letter},
    )  # fmt: skip


def letters(rng: random.Random, split: str, name: str) -> Item:
    """A word to spell out."""
    word = rng.choice(words(split))
    question = _varied(rng, rng.choice(_SPELL).format(word=word))
    return Item(name, user(question), assistant(",".join(word)), meta={"word": word})


def grade_letters(asked: Item, said: Message) -> float:
    """1 where the answer is the word's letters, whatever stands between them."""
    return float("".join(c for c in said.content.lower() if c.isalpha()) == asked.meta["word"])


def sums(rng: random.Random, split: str, name: str) -> Item:
    """Two numbers below 100 to add, subtract or multiply; no sum is in the test and another."""
    while True:
        a, b, sign = rng.randrange(100), rng.randrange(100), rng.choice("+-*")
        if sign == "*":
            a, b = a % 13, b % 13
        held_out = zlib.crc32(f"{a}{sign}{b}".encode()) % _TEST_SHARE == 0
        if held_out == (split == "test"):
            break
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    question = rng.choice(_SUMS).format(sum=f"{a} {sign} {b}").strip()
    parts = (
        Part("text", f"{a} {sign} {b} = "),
        Part("call", f"{a}{sign}{b}"),
        Part("output", str(result)),
        Part("text", f"{result}\n\n{numbers.MARK} {result}"),
    )
    text = "".join(part.text for part in parts if part.kind == "text")
    return Item(
        name, user(question + ("" if question.endswith("=") else "?")),
        Message("assistant", text, parts), meta={"number": str(result)},
    )  # fmt: skip


def _varied(rng: random.Random, text: str) -> str:
    """With or without its mark, and now and then in small letters: as people type."""
    text = text[0].lower() + text[1:] if rng.random() < 0.3 else text
    return text + rng.choice(("?", "?", "", ".")) if rng.random() < 0.9 else f"{text} ?"
