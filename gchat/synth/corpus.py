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
    """A plain file at its headings of the first level; whole where it has at most one."""
    for pattern in (_WIKITEXT, _MARKDOWN):
        headings = list(pattern.finditer(text))
        if not headings:
            continue
        wikitext = pattern is _WIKITEXT
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        for heading, end in zip(headings, ends, strict=True):
            body = _SECTION.sub("", text[heading.end() : end])
            title = heading[1].strip()
            if wikitext:
                title = "" if "<unk>" in title else detokenized(title)
                body = detokenized(body)
            yield title, body, file
        return
    yield file.rpartition("/")[2].rpartition(".")[0].replace("_", " "), text, file


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
