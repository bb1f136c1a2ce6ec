"""The text of a page: what a reader sees, without scripts, menus and what is hidden."""

import contextlib
import re
from collections import Counter
from html.parser import HTMLParser

_SKIPPED = frozenset(
    {
        *("script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas"),
        *("nav", "header", "footer", "aside", "form", "button", "select", "dialog", "menu"),
    }
)
_VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta",
                   "source", "track", "wbr"})  # fmt: skip
_BLOCKS = frozenset(
    {
        *("p", "div", "section", "article", "main", "li", "ul", "ol", "dl", "dt", "dd", "tr", "br"),
        *("table", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "figure", "hr"),
    }
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0", re.IGNORECASE)


MAX_HTML = 500_000
"""Characters of a page that are read."""
_MAX_OPEN = 5000  # characters of a tag or comment without an end that are read as text


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.pieces = "", []
        self._in_title = False
        self._skipped: list[str] = []  # open elements from the outermost that is not read
        self._open = Counter[str]()  # number of each of them

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self._in_title = True
        if tag in _BLOCKS:
            self.pieces.append("\n")
        if tag in _VOID:
            return
        given = dict(attrs)
        hidden = "hidden" in given or given.get("aria-hidden") == "true"
        if self._skipped or tag in _SKIPPED or hidden or _HIDDEN.search(given.get("style") or ""):
            self._skipped.append(tag)
            self._open[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if tag in _BLOCKS:
            self.pieces.append("\n")
        while self._open[tag]:  # elements within it may have been left open
            ended = self._skipped.pop()
            self._open[ended] -= 1
            if ended == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skipped:
            self.pieces.append(data)


def read_page(html: str) -> tuple[str, str]:
    """(title, text) of a page, of its first `MAX_HTML` characters."""
    reader = _Reader()
    with contextlib.suppress(AssertionError):  # the parser's, at "<![" without a name
        reader.feed(html[:MAX_HTML])
        if len(reader.rawdata) < _MAX_OPEN:  # the parser's time is quadratic in them
            reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return " ".join(reader.title.split()), "\n".join(line for line in lines if line)
