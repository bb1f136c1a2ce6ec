"""Dumps of MediaWiki: which articles, what text, and what is refused."""

import bz2
import gzip

import pytest

from gaia.errors import ConfigError, DataError
from gchat.data.sources import mediawiki
from gchat.data.sources.unit import Tally

pytest.importorskip("mwparserfromhell", reason="needs the extra wiki")

NAMESPACE = "http://www.mediawiki.org/xml/export-0.11/"
BODY = """{{Infobox battle|date=6 June 1944|place={{nowrap|Normandy}}}}
'''D-Day''' was the [[Normandy landings|landing]] of the Allies<ref name="a">3</ref>
({{lang|fr|Jour J}}) on 6&nbsp;June 1944.<!-- x -->
[[File:Beach.jpg|thumb|A [[beach]] at dawn]]
{| class="wikitext"
| a cell || another
|}
== Course ==
=== First wave ===
* Troops landed.<ref>{{cite book|title=X}}</ref>
== See also ==
* [[Other]]
=== Deeper ===
gone too
== Aftermath ==
It went on.
== References ==
{{reflist}}
[[Category:World War II]]
[[Category:1944 in France|*]]
"""
TEXT = """D-Day

D-Day was the landing of the Allies
on 6 June 1944.

Course

First wave

Troops landed.

Aftermath

It went on."""


def page(title, text, namespace=0, extra=""):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{extra}<revision><id>2</id>"
        f"<contributor><username>x</username></contributor><text>{text}</text></revision></page>"
    )


def dump(*pages):
    head = f'<mediawiki xmlns="{NAMESPACE}" version="0.11"><siteinfo/>'
    return (head + "\n".join(pages) + "</mediawiki>").encode()


PAGES = dump(
    page("D-Day", BODY),
    page("D Day", "#REDIRECT [[D-Day]]", extra='<redirect title="D-Day" />'),
    page("Talk:D-Day", "chatter", namespace=1),
    page("Wehrmacht", "The army. [[category: world War II]]"),
    page("Cheese", "A food. [[Category:Food]]"),
    page("Empty", "{{stub}}"),
)


def read(path, **choice):
    corpus = mediawiki.corpus(str(path), **choice)
    return [row for unit in corpus.units for row in unit.read(Tally())]


def test_an_article_becomes_its_prose(tmp_path):
    (tmp_path / "dump.xml").write_bytes(PAGES)
    rows = read(tmp_path / "dump.xml")
    assert [row.meta["title"] for row in rows] == ["D-Day", "Wehrmacht", "Cheese"]
    assert rows[0].text == TEXT


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"titles": "wehrmacht|Cheese"}, ["Wehrmacht", "Cheese"]),
        ({"titles": "D-Day"}, ["D-Day"]),
        ({"categories": "World_War II"}, ["D-Day", "Wehrmacht"]),
        ({"categories": "world war II"}, []),
        ({"titles": "Cheese", "categories": "1944 in France"}, ["D-Day", "Cheese"]),
        ({"titles": "Nothing"}, []),
    ],
)
def test_titles_and_categories_choose(tmp_path, choice, expected):
    (tmp_path / "dump.xml").write_bytes(PAGES)
    found = read(tmp_path / "dump.xml", **choice)
    assert [row.meta["title"] for row in found] == expected


def test_lists_may_be_files_and_dumps_compressed(tmp_path):
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(PAGES))
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(dump(page("Other", "More."))))
    (tmp_path / "titles.txt").write_text("cheese\n\nother\n")
    rows = read(tmp_path, titles=str(tmp_path / "titles.txt"))
    assert [row.meta["title"] for row in rows] == ["Cheese", "Other"]
    plain, chosen = (mediawiki.corpus(str(tmp_path), titles=t) for t in (None, "Cheese"))
    assert plain.identified() != chosen.identified()


def test_memory_does_not_grow_with_the_dump(tmp_path):
    """Pages that were read are let go: the tree holds no more than the one being read."""
    (tmp_path / "dump.xml").write_bytes(dump(*(page(f"P{i}", "x" * 50_000) for i in range(400))))
    import tracemalloc

    tracemalloc.start()
    count = sum(1 for _ in mediawiki.pages(tmp_path / "dump.xml"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400 and peak < 4_000_000  # the dump has 20 MB


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xml", PAGES[:300], r"a\.xml is cut off or not XML"),
        ("a.xml", b"<html><body/></html>", "root is <html>, not <mediawiki>"),
        ("a.xml", b"plain words", "cut off or not XML"),
        ("a.xml.bz2", bz2.compress(PAGES)[:-30], r"a\.xml\.bz2 is truncated or damaged bzip2"),
        ("a.xml.bz2", b"no bzip2", r"a\.xml\.bz2 is truncated or damaged bzip2"),
        ("a.xml.gz", gzip.compress(PAGES)[:-30], r"a\.xml\.gz is truncated or damaged"),
        ("a.txt", b"text", "holds no dump; give files that end in .xml"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_empty_lists_are_refused(tmp_path):
    (tmp_path / "a.xml").write_bytes(PAGES)
    with pytest.raises(ConfigError, match="titles = ' ' names nothing"):
        read(tmp_path, titles=" ")
    with pytest.raises(ConfigError, match=r"categories = 'no\.txt' is not there"):
        read(tmp_path, categories="no.txt")


# ── What wikitext means ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("First line<br>second<br />third<BR/>end", "First line\nsecond\nthird\nend"),
        ("<div class='x'>One</div><p>two</p>three<blockquote>four</blockquote>five",
         "One\n\ntwo\nthree\nfour\nfive"),
        ("10<sup>3</sup> m, 10<sup>−2</sup>, 19<sup>th</sup>, H<sub>2</sub>O",
         "10^3 m, 10^−2, 19th, H2O"),
        ("call print() or f(x) ({{lang|fr|oui}}) now", "call print() or f(x) now"),
        ("[[Datei:a.jpg|mini|Blick]]a [[Kategorie:Stadt]]b [[fr:Berlin]]c [[:fr:Berlin|dort]]",
         "a b c dort"),
        ("[[Ort: Ein Film]] und [[UN:Rat|Rat]]", "Ort: Ein Film und Rat"),
    ],
)  # fmt: skip
def test_markup_becomes_what_a_reader_sees(wikitext, expected):
    assert mediawiki.plain_text(wikitext) == expected


def test_namespaces_have_the_names_of_the_dump(tmp_path):
    """A dump of a language that the built-in names do not cover."""
    names = '<namespace key="6" case="first-letter">Mynd</namespace>'
    names += '<namespace key="14">Flokkur</namespace>'
    head = f'<mediawiki xmlns="{NAMESPACE}"><siteinfo><namespaces>{names}</namespaces></siteinfo>'
    body = page("Reykjavík", "Bær. [[Mynd:a.jpg|thumb|Sjór]] [[Flokkur:Borgir]]")
    (tmp_path / "is.xml").write_text(f"{head}{body}{page('Annað', 'Texti.')}</mediawiki>")
    rows = read(tmp_path / "is.xml", categories="Borgir")
    assert [row.text for row in rows] == ["Reykjavík\n\nBær."]


def test_a_dump_with_brackets_in_its_name(tmp_path):
    (tmp_path / "enwiki [2020].xml").write_bytes(PAGES)
    assert len(read(tmp_path / "enwiki [2020].xml")) == 3
