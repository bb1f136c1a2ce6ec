"""Markdown of answers as HTML that is safe to show, also while it is still being written.

Safety has three layers, each enough alone: HTML in the text is never taken as HTML, links are
http, https or mailto and pictures become links (a picture's address could carry what was said to
its server), and what Markdown made is cleaned by nh3 against a list of elements and attributes.
The cleaning stands after Markdown, not before it (Open WebUI had it the other way round:
CVE-2026-44568).

While text arrives only its last blocks are rendered anew. Blocks are independent of one another,
because definitions of links elsewhere in the text (`[name]: url`) are not read. A block that grows
long, such as a list of thousands of lines, is rendered more seldom the more it costs: rendered with
every piece, it would cost the square of its length.
"""

import functools
import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token

from gchat.serve.site.markdown_code import render_code
from gchat.serve.site.markdown_math import add_maths

MAX_TEXT = 400_000
"""Characters; a longer text is shown without Markdown."""
MAX_GROWTH, _LITTLE = 64, 100_000
"""Times its text that a block's HTML may be long, where it is longer than a little.

Maths, coloured code and tables stay below. A table has a cell in every column whatever stands in a
row, so that 2,000 characters could make 660,000: such a block is shown without Markdown.
"""
PAUSE = 10
"""Times the last rendering's cost that pass before the next: a tenth of the time at most."""
_HEADINGS_BEGIN_AT = 3  # the page has one of the first rank, conversations those of the second
_MATHS = {
    *("math", "merror", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom", "mroot"),
    *("mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd"),
    *("mtext", "mtr", "munder", "munderover", "menclose", "mmultiscripts", "mprescripts"),
}
_TAGS = _MATHS | {
    *("a", "blockquote", "br", "button", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr"),
    *("li", "ol", "p", "pre", "s", "span", "strong"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_ATTRIBUTES = {
    "a": {"href", "title", "target", "class"},
    "button": {"class", "type"},
    "code": {"class"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "math": {"display", "xmlns"},
    "menclose": {"notation"},
    "mfrac": {"linethickness"},
    "mi": {"mathvariant"},
    "mo": {"fence", "form", "largeop", "lspace", "maxsize", "minsize", "movablelimits", "rspace",
           "separator", "stretchy", "symmetric"},
    "mover": {"accent"},
    "mpadded": {"depth", "height", "lspace", "voffset", "width"},
    "mspace": {"depth", "height", "linebreak", "width"},
    "mstyle": {"displaystyle", "mathvariant", "scriptlevel"},
    "mtable": {"columnalign", "columnlines", "columnspacing", "displaystyle", "rowlines",
               "rowspacing"},
    "mtd": {"columnalign", "columnspan", "rowspan"},
    "munder": {"accentunder"},
    "ol": {"start"},
    "pre": {"tabindex"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
}  # fmt: skip
_LINK = re.compile(r"(https?://[^\s/?#]|mailto:)", re.IGNORECASE)


class Change(TypedDict("_From", {"from": int})):
    """Step from the blocks that are shown to those of the text so far.

    `from` is the first block that changes, `keep` how much of its HTML stays (in UTF-16 units,
    JavaScript's), `html` the rest of it and all blocks that follow.
    """

    keep: int
    html: list[str]


def render(text: str) -> str:
    """Safe HTML of a whole text: its blocks, each in a `div`."""
    growing = Growing()
    growing.add(text)
    return "".join(f"<div>{block}</div>" for block in growing.blocks)


class Rendering(NamedTuple):
    """The end of a growing text, rendered.

    Attributes:
        firm: HTML of blocks that no further text can change.
        rest: text of those that follow.
        open: their HTML.
        cost_s: seconds that it took.
    """

    firm: list[str]
    rest: str
    open: list[str]
    cost_s: float


class Growing:
    """The HTML of a text that is being written.

    Args:
        clock: seconds, monotonic.

    Attributes:
        cost_s: seconds that the last rendering took.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done: list[str] = []  # blocks that no further text can change
        self._open: list[str] = []
        self._rest = ""  # text of the open blocks
        self._waiting: list[str] = []  # pieces behind it that are not rendered yet
        self._length = 0
        self._due = float("-inf")
        self.cost_s = 0.0

    @property
    def blocks(self) -> list[str]:
        """HTML of each block of the text so far, without what waits."""
        return self._done + self._open

    @property
    def wait_s(self) -> float | None:
        """Seconds until text that waits is due, infinite during `begin`; None where none waits."""
        return max(0.0, self._due - self._clock()) if self._waiting else None

    def add(self, piece: str, *, render: bool = True) -> Change:
        """Takes a further piece of the text.

        Args:
            piece: of the text.
            render: what waits, where that is due; else it goes on waiting.
        """
        if piece:
            self._waiting.append(piece)
            self._length += len(piece)
        if render and self.wait_s == 0:
            return self.take(self.begin()())
        return {"from": len(self._done) + len(self._open), "keep": 0, "html": []}

    def begin(self) -> Callable[[], Rendering]:
        """Begins to render what waits: the work, for any thread, whose result goes to `take`."""
        self._rest += _plain("".join(self._waiting))
        self._waiting, self._due = [], float("inf")
        text, plain = self._rest, self._length > MAX_TEXT
        return lambda: _rendering(text, plain, self._clock)

    def take(self, made: Rendering) -> Change:
        """Ends what `begin` began."""
        first, before = len(self._done), self._open
        self._done += made.firm
        self._rest, self._open, self.cost_s = made.rest, made.open, made.cost_s
        self._due = self._clock() + PAUSE * made.cost_s
        return _change(first, before, made.firm + made.open)

    def snapshot(self) -> Change:
        """The change that makes everything rendered so far out of nothing.

        It renders nothing itself: changes go to all readers, and this to one of them alone.
        """
        return {"from": 0, "keep": 0, "html": self.blocks}


def _rendering(text: str, plain: bool, clock: Callable[[], float]) -> Rendering:
    began = clock()
    if plain:
        return Rendering([], text, [_shown_plain(text)], clock() - began)
    blocks = _blocks(text)
    complete = text.count("\n")
    # Two whole lines of the next block are known, which is as far as any rule looks ahead (a
    # table's second line decides): nothing that comes can be taken into the block before it.
    firm = sum(begin + 2 <= complete for begin, _ in blocks[1:])
    if firm:
        line = blocks[firm][0]
        text = text.split("\n", line)[line]
    html = [html for _, html in blocks]
    return Rendering(html[:firm], text, html[firm:], clock() - began)


def _change(first: int, before: list[str], after: list[str]) -> Change:
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    keep, html = 0, after[same:]
    if same < min(len(before), len(after)):
        common = _common(before[same], after[same])
        keep = len(after[same][:common].encode("utf-16-le")) // 2
        html = [html[0][common:], *html[1:]]
    return {"from": first + same, "keep": keep, "html": html}


def _common(one: str, other: str) -> int:
    """Number of characters with which both begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shown_plain(text: str) -> str:
    return f"<p>{escapeHtml(text)}</p>"


def _plain(text: str) -> str:
    r"""The text without `\r`, and without halves of characters, which no encoding can write."""
    return text.replace("\r", "").encode("utf-8", "replace").decode()


def _blocks(text: str) -> list[tuple[int, str]]:
    """(first line, safe HTML) of each block at the top."""
    markdown, environment = _markdown(), {}
    tokens = markdown.parse(text, environment)
    lines = text.split("\n")
    blocks, begin = [], 0
    for index, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            block = tokens[begin : index + 1]
            html = markdown.renderer.render(block, markdown.options, environment)
            line, end = block[0].map or (0, 0)
            if len(html) > _LITTLE:
                source = "\n".join(lines[line:end])
                html = html if len(html) < MAX_GROWTH * len(source) else _shown_plain(source)
            blocks.append((line, _cleaner().clean(html)))
            begin = index + 1
    return blocks


@functools.cache
def _markdown() -> MarkdownIt:
    options = {"html": False, "linkify": True}
    markdown = MarkdownIt("commonmark", options).enable(["table", "strikethrough", "linkify"])
    markdown.disable(["reference", "html_block", "html_inline"])
    assert markdown.linkify is not None  # linkify-it-py is installed
    markdown.linkify.set({"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    markdown.validateLink = lambda url: bool(_LINK.match(url))
    add_maths(markdown)
    for name, rule in (
        ("fence", render_code), ("code_block", render_code), ("image", _render_image),
        ("heading_open", _render_heading), ("heading_close", _render_heading),
        ("link_open", _render_link), ("table_open", _render_table),
        ("table_close", lambda *_: "</table></div>"),
        ("th_open", _render_cell), ("td_open", _render_cell),
    ):  # fmt: skip
        markdown.add_render_rule(name, rule)
    return markdown


@functools.cache
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        clean_content_tags={"script", "style"},
    )


def _render_heading(renderer, tokens: list[Token], index: int, options, env) -> str:
    token = tokens[index]
    rank = min(6, int(token.tag[1]) + _HEADINGS_BEGIN_AT - 1)
    return f"<{'/' if token.nesting < 0 else ''}h{rank}>"


def _render_link(renderer, tokens: list[Token], index: int, options, env) -> str:
    href = escapeHtml(str(tokens[index].attrGet("href")))
    return f'<a href="{href}" title="{href}" target="_blank">'


def _render_image(renderer, tokens: list[Token], index: int, options, env) -> str:
    """A link in place of a picture: the browser asks nobody before it is clicked."""
    token = tokens[index]
    href = escapeHtml(str(token.attrGet("src")))
    name = renderer.renderInlineAsText(token.children or [], options, env) or "picture"
    return f'<a class="picture" href="{href}" title="{href}" target="_blank">{escapeHtml(name)}</a>'


def _render_table(renderer, tokens: list[Token], index: int, options, env) -> str:
    return '<div class="table" tabindex="0" role="region" aria-label="Table"><table>'


def _render_cell(renderer, tokens: list[Token], index: int, options, env) -> str:
    token = tokens[index]
    side = str(token.attrGet("style") or "").removeprefix("text-align:")
    return f'<{token.tag} class="{escapeHtml(side)}">' if side else f"<{token.tag}>"
