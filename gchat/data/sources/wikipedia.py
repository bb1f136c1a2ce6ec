"""Wikipedia by language and date: the articles of some titles, or all of them.

A multistream dump is a row of bz2 streams of 100 pages each, and an index says which page lies in
which. Of chosen titles only the streams that hold them are fetched; a redirect leads to its target,
once. What was fetched is verified and kept, so that an interrupted download goes on:

    $GAIA_HOME/wikipedia/enwiki-20261101/
        dump.json, …-index.txt.bz2      sizes and checksums; the index (compared with its SHA-1)
        stream-000000000616.bz2         one stream (it holds the pages that the index says)
        titles-0123456789ab.json        which titles were found, and where

Format: https://en.wikipedia.org/wiki/Wikipedia:Database_download#Multistream
"""

import bz2
import dataclasses
import functools
import hashlib
import html
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gaia import storage
from gaia.errors import ConfigError, DataError
from gaia.writer_lock import WriterLock
from gchat.data.progress import progress_bar
from gchat.data.sources import mediawiki, multistream, wikimedia
from gchat.data.sources.unit import Corpus, Row, Tally, Unit
from gchat.data.sources.wikimedia import Dump

SPAN_BYTES = 32 << 20  # compressed, of one unit
_REQUEST_BYTES = 8 << 20  # streams that lie side by side are asked for together
_END = b"</mediawiki>"
_SHOWN = 10  # titles that an error or notice names


def corpus(lang: str, *, date: str = "latest", titles: str | None = None) -> Corpus:
    """The articles of a Wikipedia; index and chosen streams are fetched, a whole dump not yet.

    Args:
        lang: as in the address of the wiki.
        date: YYYYMMDD or "latest".
        titles: separated by "|", or a file with one per line; None for all.

    Raises:
        ConfigError: no such language or date, no title, or mwparserfromhell is missing.
        DataError: no such dump, none of the titles is there, or the server does not answer.
    """
    mediawiki.parser()  # says what is missing before anything is fetched
    wanted = mediawiki.listed("titles", titles)
    dump = wikimedia.find(lang, date)
    with WriterLock(dump.folder / ".gaia.lock", f"the dump in {dump.folder}"):
        index = _fetched(dump, dump.index)
        choice = _resolved(dump, index, wanted) if wanted else None
        edges = choice.edges if choice else _edges(index, dump.articles.size)
    if choice is not None:
        for sentence in choice.sentences():
            print(sentence, file=sys.stderr, flush=True)
        if not choice.titles:
            raise DataError(f"{dump.wiki} {dump.date} has none of the titles", "check --titles")
    return Corpus(
        units=_units(dump, edges, choice),
        sources=(f"{dump.articles.name}" + (f", {len(choice.titles)} titles" if choice else ""),),
        identity={
            "wiki": dump.wiki,
            "revision": dump.date,
            "sha1": dump.articles.sha1,
            "titles": sorted(wanted),
        },
    )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Titles that were asked for, and what the dump has of them."""

    titles: list[str]
    """Articles that are there, redirects followed."""
    missing: list[str]
    redirects: dict[str, str]
    """Redirects that were followed, with their targets."""
    unresolved: dict[str, str]
    """Redirects whose target is a redirect itself, or is not in the dump."""
    others: list[str]
    """Pages that are no articles: of other namespaces, or empty."""
    edges: list[tuple[int, int]]
    """Ranges of the dump that hold the articles, one for each stream, in order."""

    def sentences(self) -> list[str]:
        """Facts that a person should know before training on it."""
        said = [f"titles: {len(self.titles):,} articles in {len(self.edges):,} streams"]
        if self.redirects:
            said[0] += f", {len(self.redirects):,} of them through redirects"
        for what, names in (
            ("titles are not in the dump", self.missing),
            ("titles are redirects that lead to no article at once",
             [f"{a} -> {b}" for a, b in self.unresolved.items()]),
            ("titles are no articles", self.others),
        ):  # fmt: skip
            if names:
                more = ", …" if len(names) > _SHOWN else ""
                said.append(f"{len(names):,} {what}: {', '.join(names[:_SHOWN])}{more}")
        return said


def _fetched(dump: Dump, file: wikimedia.File) -> Path:
    """A whole file of the dump, verified."""
    target = dump.folder / file.name
    if not target.exists():
        with wikimedia.Server() as server, progress_bar(file.name, file.size) as bar:
            server.whole(file, target, bar.update)
    return target


def _lines(index: Path) -> Iterator[tuple[int, str, str]]:
    """Offset of the stream, id and title of each page.

    Raises:
        DataError: not such an index.
    """
    try:
        with bz2.open(index, "rt", encoding="utf-8") as lines:
            for line in lines:
                offset, page, title = line.rstrip("\n").split(":", 2)
                # The titles are written as they stand in the XML.
                yield int(offset), page, html.unescape(title)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{index} is no index of a dump ({error})", "remove it") from error


def _edges(index: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of all streams that hold pages; the last one ends with the file."""
    known: set[int] = set()
    with progress_bar("index", None, unit=" pages") as bar:
        for offset, _, _ in _lines(index):
            known.add(offset)
            bar.update(1)
    starts = sorted(known)
    return list(zip(starts, [*starts[1:], size], strict=True))


@dataclasses.dataclass(frozen=True)
class _Place:
    """A page, and the range of its stream."""

    id: str
    edge: tuple[int, int]


def _places(dump: Dump, index: Path, titles: Iterable[str]) -> dict[str, _Place]:
    """Places of the titles that the index has."""
    wanted = set(titles)
    at: dict[str, tuple[str, int]] = {}
    starts = {dump.articles.size}
    with progress_bar("index", None, unit=" pages") as bar:
        for offset, page, title in _lines(index):
            starts.add(offset)
            if title in wanted:
                at[title] = page, offset
            bar.update(1)
    ordered = sorted(starts)
    end = dict(itertools.pairwise(ordered))
    return {title: _Place(page, (start, end[start])) for title, (page, start) in at.items()}


def _resolved(dump: Dump, index: Path, wanted: frozenset[str]) -> Chosen:
    """Finds and fetches the streams of the titles and of the targets of redirects."""
    digest = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()[:12]
    kept = dump.folder / f"titles-{digest}.json"
    if kept.exists():
        facts = json.loads(storage.read_text(kept))
        return Chosen(**facts | {"edges": [tuple(edge) for edge in facts["edges"]]})
    places = _places(dump, index, wanted)
    pages = _pages(dump, places)
    redirects = {title: page.target for title, page in pages.items() if page.target is not None}
    targets = {mediawiki.normal(target) for target in redirects.values()} - places.keys()
    if targets:
        more = _places(dump, index, targets)
        pages |= _pages(dump, more)
        places |= more
    good = {t for t, p in pages.items() if p.target is None and p.namespace == "0" and p.wikitext}
    followed = {a: mediawiki.normal(b) for a, b in redirects.items()}
    titles = (wanted & good) | {target for target in followed.values() if target in good}
    chosen = Chosen(
        titles=sorted(titles),
        missing=sorted(wanted - pages.keys()),
        redirects={a: b for a, b in sorted(followed.items()) if b in good},
        unresolved={a: b for a, b in sorted(followed.items()) if b not in good},
        others=sorted((wanted & pages.keys()) - good - redirects.keys()),
        edges=sorted({places[title].edge for title in titles}),
    )
    storage.write_text(kept, json.dumps(dataclasses.asdict(chosen), indent=1))
    return chosen


def _pages(dump: Dump, places: dict[str, _Place]) -> dict[str, mediawiki.Entry]:
    """The pages at these places, without their texts.

    Raises:
        DataError: a stream lacks a page that the index promises.
    """
    by_edge: dict[tuple[int, int], dict[str, str]] = {}
    for title, place in places.items():
        by_edge.setdefault(place.edge, {})[place.id] = title
    _fetch_streams(dump, sorted(by_edge))
    pages: dict[str, mediawiki.Entry] = {}
    for edge, titles in sorted(by_edge.items()):
        of_stream = {}
        for page in mediawiki.entries(_xml(dump, [edge]), mediawiki.Prefixes()):
            if page.id in titles:
                text = page.wikitext[:1]  # whether there is one is all that counts here
                of_stream[titles[page.id]] = page._replace(wikitext=text)
        if lacking := sorted(titles.values() - of_stream.keys()):
            _stream(dump, edge).unlink()
            raise DataError(
                f"{dump.articles.name} at byte {edge[0]:,} lacks {lacking[0]!r}, which its index "
                "promises",
                "run it again; or take another --date or mirror",
            )
        pages |= of_stream
    return pages


def _stream(dump: Dump, edge: tuple[int, int]) -> Path:
    return dump.folder / f"stream-{edge[0]:012d}.bz2"


def _fetch_streams(dump: Dump, edges: Sequence[tuple[int, int]]) -> None:
    """Fetches the streams that are not there, and the dump's beginning; each is verified."""
    first = dump.folder / dump.index.name
    begin = (0, next(offset for offset, *_ in _lines(first)))
    todo = [edge for edge in sorted({begin, *edges}) if not _stream(dump, edge).exists()]
    if not todo:
        return
    size = sum(end - start for start, end in todo)
    with wikimedia.Server() as server, progress_bar("streams", size) as bar:
        for group in multistream.groups(todo, _REQUEST_BYTES, joined=True):
            for _ in range(2):  # once more where the bytes are damaged
                body = server.range(dump.articles, group[0][0], group[-1][1])
                begins = group[0][0]
                parts = [(edge, body[edge[0] - begins : edge[1] - begins]) for edge in group]
                damaged = [edge for edge, part in parts if not multistream.is_sound(part)]
                if not damaged:
                    break
            else:
                raise DataError(
                    f"{dump.articles.name} at byte {damaged[0][0]:,} is no sound bz2, twice",
                    "try again later, or use another mirror",
                )
            for edge, part in parts:
                storage.write_bytes(_stream(dump, edge), part)
                bar.update(len(part))


def _xml(dump: Dump, edges: Sequence[tuple[int, int]]) -> multistream.Blocks:
    """A dump of only these streams: its beginning, they, its end."""

    def blocks() -> Iterator[bytes]:
        tail = b""
        for block in multistream.decompressed(_raw(dump, edges)):
            yield block
            tail = (tail + block)[-2 * len(_END) :]
        if _END not in tail:  # the last stream of the file holds it
            yield _END

    return multistream.Blocks(blocks())


def _raw(dump: Dump, edges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Compressed bytes, from the whole dump where it is there, else from the streams."""
    whole = dump.folder / dump.articles.name
    if not whole.exists():
        starts = [path for path in (_stream(dump, (0, 0)), *(_stream(dump, e) for e in edges))]
        yield from (path.read_bytes() for path in starts)
        return
    begin = (0, next(offset for offset, *_ in _lines(dump.folder / dump.index.name)))
    with open(whole, "rb") as file:
        for start, end in (begin, *edges):
            file.seek(start)
            while start < end and (part := file.read(min(1 << 20, end - start))):
                start += len(part)
                yield part


def _units(dump: Dump, edges: Sequence[tuple[int, int]], choice: Chosen | None) -> list[Unit]:
    titles = frozenset(choice.titles) if choice else frozenset()
    units = []
    for group in multistream.groups(edges, SPAN_BYTES, joined=choice is None):
        spans = tuple(group) if choice else ((group[0][0], group[-1][1]),)
        rows = _Rows(dump, spans, mediawiki.Choice(titles))
        units.append(
            Unit(
                name=f"{dump.articles.name}[{spans[0][0]}:{spans[-1][1]}]",
                documents=functools.partial(_texts, rows),
                rows=rows,
                text_bytes=sum(end - start for start, end in spans),
                fetch=rows.fetch,
            )
        )
    return units


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The chosen articles of some ranges of a dump."""

    dump: Dump
    edges: tuple[tuple[int, int], ...]
    choice: mediawiki.Choice

    def fetch(self) -> None:
        """Makes them available on this machine."""
        if self.choice.titles:
            _fetch_streams(self.dump, self.edges)
        elif not (self.dump.folder / self.dump.articles.name).exists():
            with WriterLock(self.dump.folder / ".gaia.lock", f"the dump in {self.dump.folder}"):
                _fetched(self.dump, self.dump.articles)

    def __call__(self, tally: Tally) -> Iterator[Row]:
        self.fetch()
        prefixes = mediawiki.Prefixes()
        try:
            pages = mediawiki.articles(mediawiki.entries(_xml(self.dump, self.edges), prefixes))
            yield from mediawiki.rows(pages, self.choice, prefixes)
        except (ElementTree.ParseError, EOFError) as error:
            raise DataError(
                f"{self.dump.articles.name} at byte {self.edges[0][0]:,} is damaged ({error})",
                f"remove {self.dump.folder} and run it again",
            ) from error


def _texts(rows: _Rows, tally: Tally) -> Iterator[str]:
    return (row.text for row in rows(tally))


def check_options(given: dict[str, Any]) -> None:
    """Refuses options that this source cannot follow."""
    if given["categories"] is not None:
        raise ConfigError(
            "categories do not go with source = 'wikipedia'",
            "they are in no index: download the whole dump, then --source mediawiki",
        )
    if not given["keep_text"]:
        raise ConfigError(
            "keep_text = False does not go with source = 'wikipedia'",
            f"remove {storage.home() / 'wikipedia'} afterwards",
        )
