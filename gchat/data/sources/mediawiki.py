"""Articles of a MediaWiki dump as plain text: all of them, chosen titles, or chosen categories.

A dump (`enwiki-…-pages-articles.xml.bz2`, or what Special:Export gives for a list of pages) is read
as a stream, so its size does not matter; only the text of one page is in memory. Of each article
the prose and its headings stay; templates, tables, references, pictures, categories and the
sections that list sources go. One document is one article: its title, a blank line, its text.

Needs mwparserfromhell (the extra `wiki`). Format: https://www.mediawiki.org/wiki/Help:Export
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from xml.etree import ElementTree

from gaia.errors import ConfigError, DataError
from gaia.extras import install
from gchat.data import languages
from gchat.data.sources import files
from gchat.data.sources.content import Listing
from gchat.data.sources.unit import Corpus, Row, Tally, Unit
from gchat.data.sources.walk import walk

ENDINGS = (".xml", ".xml.bz2", ".xml.gz", ".xml.xz", ".xml.zst")
_DROPPED_SECTIONS = {
    "references", "notes", "citations", "sources", "bibliography", "further reading",
    "external links", "see also", "footnotes", "notes and references", "works cited",
}  # fmt: skip
_DROPPED_TAGS = {"ref", "table", "gallery", "math", "timeline", "references", "score", "imagemap"}
# Names of the namespaces -2 (media), 6 (file) and 14 (category) in large wikis, for dumps without a
# siteinfo; a dump's own adds its names. MediaWiki takes the English ones everywhere.
_FILE_NAMES = (
    "file", "image", "media", "datei", "bild", "fichier", "archivo", "ficheiro", "plik", "bestand",
    "fil", "файл", "ファイル", "文件", "파일", "ملف", "dosya", "fișier", "soubor", "fájl",
    "tiedosto", "tập_tin",
)  # fmt: skip
_CATEGORY_NAMES = (
    "category", "kategorie", "catégorie", "categoría", "categoria", "kategoria", "categorie",
    "kategori", "категория", "カテゴリ", "分类", "분류", "تصنيف", "kategória", "kategorija",
    "luokka", "thể_loại",
)  # fmt: skip
_FILE_KEYS, _CATEGORY_KEYS = ("-2", "6"), ("14",)
_BREAK = re.compile(r"<br\s*/?\s*>", re.IGNORECASE)
_BLOCK = re.compile(
    r"</?(?:p|div|li|ul|ol|dl|dt|dd|blockquote|center|hr|h[1-6]|pre|poem)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_POWER = re.compile(r"<sup[^<>]*>\s*([+−-]?\d+)\s*</sup>", re.IGNORECASE)
_LINK = re.compile(r"\[\[\s*(:?)\s*([^\[\]|:]+?)\s*:\s*([^\[\]|]+)")
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SPACES = re.compile(r"[ \t]{2,}")
# What a dropped template leaves; `print()`, without a space, is the author's.
_EMPTY_BRACKETS = re.compile(r"(?:^| )\(\s*[;,]*\s*\)", re.MULTILINE)


@dataclasses.dataclass
class Prefixes:
    """Prefixes of links that are no prose, in lower case, as a dump names its namespaces."""

    files: set[str] = dataclasses.field(default_factory=lambda: set(_FILE_NAMES))
    categories: set[str] = dataclasses.field(default_factory=lambda: set(_CATEGORY_NAMES))

    def learn(self, siteinfo: ElementTree.Element) -> None:
        """Adds the names that the dump gives to its namespaces."""
        for element in siteinfo.iter():
            if _tag(element) == "namespace" and element.text:
                name = _prefix(element.text)
                if element.get("key") in _FILE_KEYS:
                    self.files.add(name)
                elif element.get("key") in _CATEGORY_KEYS:
                    self.categories.add(name)

    def is_prose(self, target: str) -> bool:
        """False for pictures, categories and articles in other languages."""
        colon, prefix, _ = ("", "", "") if ":" not in target else _split(target)
        if prefix in self.files or prefix in self.categories:
            return False
        # [[fr:Berlin]] is a link in the margin, [[:fr:Berlin]] one in the text.
        return bool(colon) or not (prefix and languages.is_language_code(prefix))

    def categories_of(self, wikitext: str) -> list[str]:
        """Names of the categories that a page puts itself into."""
        links = _LINK.findall(wikitext)
        return [name for colon, kind, name in links
                if not colon and _prefix(kind) in self.categories]  # fmt: skip


def _prefix(name: str) -> str:
    return "_".join(name.split()).lower()


def _split(target: str) -> tuple[str, str, str]:
    """(leading colon, prefix, rest) of a link's target."""
    text = target.strip()
    colon = ":" if text.startswith(":") else ""
    prefix, _, rest = text.removeprefix(":").partition(":")
    return colon, _prefix(prefix), rest


@dataclasses.dataclass(frozen=True)
class Choice:
    """Articles that are taken: all, or those of some titles and categories."""

    titles: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()

    def takes(self, title: str, wikitext: str, prefixes: Prefixes) -> bool:
        """True where the title or one of the categories was asked for."""
        if not self.titles and not self.categories:
            return True
        if normal(title) in self.titles:
            return True
        return bool(self.categories) and any(
            normal(name) in self.categories for name in prefixes.categories_of(wikitext)
        )


def corpus(
    path: str,
    *,
    titles: str | None = None,
    categories: str | None = None,
    exclude: Path | None = None,
) -> Corpus:
    """The articles of the dumps behind `path` (a file, folder or glob).

    Args:
        titles: names separated by "|", or a file with one per line.
        categories: the same, for categories; an article belongs to those its own text names (not
            to those that a template of it adds).

    Raises:
        DataError: no dump there.
        ConfigError: an empty list of titles or categories, or mwparserfromhell is missing.
    """
    parser()  # says what is missing before anything is read
    try:
        walked = walk(path, _ending, ENDINGS, exclude)
    except (DataError, ConfigError) as error:
        if exclude is not None and "that is written" in error.problem:
            raise
        raise DataError(
            f"input = {path!r} holds no dump", f"give files that end in {', '.join(ENDINGS)}"
        ) from error
    dumps = walked.files
    choice = Choice(listed("titles", titles), listed("categories", categories))
    sizes = [file.stat().st_size for file in dumps]
    units = [
        Unit(file.name, _Articles(file, choice), size, rows=_ArticleRows(file, choice))
        for file, size in zip(dumps, sizes, strict=True)
    ]
    return Corpus(
        units=units,
        sources=tuple(files.shown(file) for file in dumps),
        left_out=walked.sentence(),
        listing=Listing(dumps, sizes),
        identity={
            "titles": sorted(choice.titles),
            "categories": sorted(choice.categories),
        },
    )


def _ending(file: Path) -> str:
    """The ending of a dump, with its compression."""
    name = file.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), file.suffix.lower())


def listed(field: str, given: str | None) -> frozenset[str]:
    """Names that an option gives, separated by | or in a file, as MediaWiki spells them.

    Raises:
        ConfigError: it names nothing, or a file that is not there.
    """
    if given is None:
        return frozenset()
    if Path(given).is_file():
        names = files.listed(field, Path(given))
    elif given.endswith((".txt", ".csv")):
        raise ConfigError(f"{field} = {given!r} is not there", "check the path")
    else:
        names = given.split("|")
    chosen = frozenset(normal(name) for name in names if name.strip())
    if not chosen:
        raise ConfigError(f"{field} = {given!r} names nothing", "give names, one per line")
    return chosen


def normal(title: str) -> str:
    """MediaWiki's own rule: underscores are spaces, the first letter counts as upper case."""
    title = " ".join(title.replace("_", " ").split())
    return title[:1].upper() + title[1:]


@dataclasses.dataclass(frozen=True)
class _ArticleRows:
    """The chosen articles of one dump."""

    file: Path
    choice: Choice

    def __call__(self, tally: Tally) -> Iterator[Row]:
        prefixes = Prefixes()
        return rows(pages(self.file, prefixes), self.choice, prefixes)


def rows(pages: Iterator[tuple[str, str]], choice: Choice, prefixes: Prefixes) -> Iterator[Row]:
    """The chosen ones of some articles (title and wikitext) as documents."""
    for title, wikitext in pages:
        if choice.takes(title, wikitext, prefixes) and (body := plain_text(wikitext, prefixes)):
            yield Row(f"{title}\n\n{body}", {"title": title})


@dataclasses.dataclass(frozen=True)
class _Articles:
    """Texts of the chosen articles of one dump, without their titles beside them."""

    file: Path
    choice: Choice

    def __call__(self, tally: Tally) -> Iterator[str]:
        return (row.text for row in _ArticleRows(self.file, self.choice)(tally))


def pages(file: Path, prefixes: Prefixes | None = None) -> Iterator[tuple[str, str]]:
    """Title and wikitext of each article (namespace 0, no redirect), in the dump's order.

    Args:
        file: the dump.
        prefixes: learns the names of namespaces, which stand before the first article.

    Raises:
        DataError: not a dump, or cut off.
    """
    try:
        with files.opened(file) as raw:
            yield from articles(entries(raw, prefixes or Prefixes()))
    except (ElementTree.ParseError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is cut off or not XML ({error})", "get it again") from error
    except OSError as error:
        if error.errno:
            raise
        raise DataError(f"{file} is damaged ({error})", "get it again") from error


class Entry(NamedTuple):
    """A page of a dump, of any namespace."""

    title: str
    id: str
    namespace: str
    target: str | None
    """Title that a redirect leads to; None for other pages."""
    wikitext: str


class Readable(Protocol):
    """Bytes of XML, as the parser asks for them."""

    def read(self, size: int = -1, /) -> bytes:
        """Some bytes; none at the end."""
        ...


def articles(pages: Iterator[Entry]) -> Iterator[tuple[str, str]]:
    """Title and wikitext of the pages that are articles: of namespace 0, and no redirects."""
    for page in pages:
        if page.title and page.namespace == "0" and page.target is None and page.wikitext:
            yield page.title, page.wikitext


def entries(stream: Readable, prefixes: Prefixes) -> Iterator[Entry]:
    """All pages of a dump, in its order.

    Args:
        stream: the XML.
        prefixes: learns the names of namespaces.

    Raises:
        ParseError: of ElementTree: not the XML of a dump.
    """
    events = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(events)
    if _tag(root) != "mediawiki":
        raise ElementTree.ParseError(f"its root is <{_tag(root)}>, not <mediawiki>")
    for event, element in events:
        if event == "end" and _tag(element) == "siteinfo":
            prefixes.learn(element)
        if event != "end" or _tag(element) != "page":
            continue
        parts = {_tag(child): child for child in element}
        texts = [child.text or "" for child in parts.get("revision", ()) if _tag(child) == "text"]

        def text(name: str, absent: str, parts: dict[str, Any] = parts) -> str:
            return (parts[name].text or absent) if name in parts else absent

        yield Entry(
            title=text("title", ""),
            id=text("id", ""),
            namespace=text("ns", "0"),
            target=parts["redirect"].get("title", "") if "redirect" in parts else None,
            wikitext=texts[0] if texts else "",
        )
        root.clear()  # or every page read so far would stay in memory


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def plain_text(wikitext: str, prefixes: Prefixes | None = None) -> str:
    """The prose of an article with its headings as lines of their own."""
    wikitext = _BLOCK.sub("\n", _BREAK.sub("\n", _POWER.sub(r"^\1", wikitext)))
    code = parser().parse(wikitext, skip_style_tags=True)
    for node in _dropped(code, prefixes or Prefixes()):
        # What lay inside something that was dropped before is no longer there.
        try:
            code.remove(node)
        except ValueError:
            continue
    lines = []
    skipping = 0  # level of the heading whose section is left out
    for line in str(code).split("\n"):
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if not skipping or level <= skipping:
                skipping = level if heading[2].strip().lower() in _DROPPED_SECTIONS else 0
            line = f"\n{heading[2]}\n"
        if not skipping:
            lines.append(line)
    text = str(parser().parse("\n".join(lines)).strip_code(normalize=True, collapse=True))
    text = _EMPTY_BRACKETS.sub("", _SPACES.sub(" ", text.replace("\xa0", " ")))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def _dropped(code: Any, prefixes: Prefixes) -> Sequence[Any]:
    """Templates, tables, references, pictures, categories and comments."""
    tags = [tag for tag in code.filter_tags() if str(tag.tag).strip().lower() in _DROPPED_TAGS]
    links = [link for link in code.filter_wikilinks() if not prefixes.is_prose(str(link.title))]
    return [*tags, *links, *code.filter_templates(recursive=False), *code.filter_comments()]


def parser() -> Any:
    """The module mwparserfromhell; ConfigError where it is not installed."""
    try:
        import mwparserfromhell
    except ImportError:
        raise ConfigError("source = 'mediawiki' needs mwparserfromhell", install("wiki")) from None
    return mwparserfromhell
