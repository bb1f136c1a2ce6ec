"""Articles of a corpus: the units that are held out whole.

A row of .jsonl and .parquet is an article, a .txt or .md file too, unless its headings of the first
level say that it holds several: `# Title`, or ` = Title = ` as in WikiText, whose marks of
tokenization (` @-@ `, spaces before commas) are undone.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gaia.errors import DataError
from gchat.data.sources.unit import Row
from gchat.synth.qpt import Documents

_WIKITEXT = re.compile(r"^ = ([^=\n].*?) = $", re.MULTILINE)
_MARKDOWN = re.compile(r"^# +(.+?)[ #]*$", re.MULTILINE)
_SECTION = re.compile(r"^ ?(?:= ){2,6}.*?$|^#{2,6} .*$", re.MULTILINE)
_FENCE = re.compile(
    r"^ {0,3}(```+|~~~+)[^\n]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"[ \t]*(?:[-*+|>]|\d{1,3}[.)]|#+|= .* =$)(?:\s|$)|[ \t]*[|>=]")
_WRAPPED, _SHARE = range(45, 101), 0.8
_MIN_WORDS = 5


@dataclass(frozen=True)
class Article:
    """A text, its title, and where it comes from."""

    id: str
    """Hash of its title and text: the same article has the same id in any corpus."""
    title: str
    text: str = field(repr=False)
    file: str = ""


def articles(inputs: Sequence[str], text_column: str = "text", max_bad: int = 0) -> list[Article]:
    """All articles of files, folders and globs, in order, each once.

    Raises:
        DataError: an input is not there, or there is no article.
        ConfigError: a file of another kind was named.
    """
    listed: dict[str, Article] = {}
    for title, text, file in _texts(Documents(inputs, text_column, max_bad)):
        body = text.strip()
        if len(body.split()) < _MIN_WORDS:
            continue
        made = hashlib.blake2b(f"{title}\n{body}".encode(), digest_size=6).hexdigest()
        listed.setdefault(made, Article(made, title, body, file))
    if not listed:
        raise DataError(
            f"the corpus {', '.join(inputs)} holds no article of {_MIN_WORDS} words or more",
            "name files with text",
        )
    return list(listed.values())


def _texts(documents: Documents) -> Iterator[tuple[str, str, str]]:
    """(title, text, file) of each article; the pieces of a plain file are joined."""
    joined: list[str] = []
    file = ""
    for row in documents.rows():
        name = row.meta.get("file", "")
        plain = name.partition(".gz")[0].endswith((".txt", ".md")) and not row.meta.get("title")
        if joined and (not plain or name != file):
            yield from _divided("\n\n".join(joined), file)
            joined = []
        if plain:
            joined.append(row.text)
            file = name
        else:
            yield _title(row), row.text, name
    if joined:
        yield from _divided("\n\n".join(joined), file)


def _title(row: Row) -> str:
    return " ".join(row.meta.get("title", "").split())


def _divided(text: str, file: str) -> Iterator[tuple[str, str, str]]:
    """A plain file at its headings of the first level, and what stands before them."""
    text = _FRONT_MATTER.sub("", text)
    name = file.rpartition("/")[2].rpartition(".")[0].replace("_", " ")
    shown = _FENCE.sub(lambda code: re.sub(r"[^\n]", "\0", code[0]), text)  # its `#` are comments
    for pattern in (_WIKITEXT, _MARKDOWN):
        headings = list(pattern.finditer(shown))
        if not headings:
            continue
        wikitext = pattern is _WIKITEXT
        yield name, _body(text, shown, 0, headings[0].start(), wikitext=wikitext), file
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        for heading, end in zip(headings, ends, strict=True):
            title = heading[1].strip()
            if wikitext:
                title = "" if "<unk>" in title else detokenized(title)
            yield title, _body(text, shown, heading.end(), end, wikitext=wikitext), file
        return
    yield name, unwrapped(text), file


def _body(text: str, shown: str, start: int, end: int, *, wikitext: bool) -> str:
    """A part of a text without its headings, which are looked for in what is shown of it."""
    made, at = "", start
    for heading in _SECTION.finditer(shown, start, end):
        made, at = made + text[at : heading.start()], heading.end()
    made += text[at:end]
    return detokenized(made) if wikitext else unwrapped(made)


def unwrapped(text: str) -> str:
    """A text whose lines were broken at a fixed width, a line for each paragraph again.

    It is one where four in five lines that another one follows have 45 to 100 characters. Items of
    lists, tables, quotations and code keep their lines.
    """
    codes = [code.span() for code in _FENCE.finditer(text)]
    pieces, at = [], 0
    for start, end in [*codes, (len(text), len(text))]:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    inner = [
        len(line.strip())
        for piece, code in pieces if not code
        for paragraph in re.split(r"\n[ \t]*\n", piece)
        for line in paragraph.strip().splitlines()[:-1]
    ]  # fmt: skip
    if not inner or sum(length in _WRAPPED for length in inner) < _SHARE * len(inner):
        return text
    return "".join(piece if code else _joined(piece) for piece, code in pieces)


def _joined(text: str) -> str:
    """Lines joined with the one before, unless either is empty or the later one begins anew."""
    made: list[str] = []
    for line in text.split("\n"):
        goes_on = bool(made and made[-1].strip() and line.strip() and not _ITEM.match(line))
        if goes_on:
            made[-1] = f"{made[-1].rstrip()} {line.strip()}"
        else:
            made.append(line)
    return "\n".join(made)


_BEFORE = re.compile(r" ([,.;:!?%)\]}’]|'s\b|'t\b|n't\b|'(?:re|ve|ll|d|m)\b)")
_AFTER = re.compile(r"([(\[{$£€]) ")
_QUOTED = re.compile(r'(?<!\S)" ([^"\n]*?) "(?!\w)')
_SINGLE = re.compile(r"(?<=\w) '(?= |$)")


def detokenized(text: str) -> str:
    """WikiText as it was before it was tokenized, about; unknown words stay `<unk>`."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    text = _BEFORE.sub(r"\1", text)
    text = _AFTER.sub(r"\1", text)
    text = _SINGLE.sub("'", text)
    return "\n".join(line.strip() for line in text.splitlines())
