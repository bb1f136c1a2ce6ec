"""Code in Markdown, coloured by Pygments.

Many lexers of Pygments take time that grows with the square of what they read, which is bounded
here. Some take seconds for one step over a few thousand characters (`systemd`, over spaces), during
which Python's lock lets nothing else of the process run. The lexers of the languages below never
do: a test tries each of them.
"""

import functools
import re
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token

MAX_CODE = 20_000
"""Characters of code that is coloured."""
MAX_OPEN_CODE = 3000
"""Characters of code that is coloured while it is being written."""
LANGUAGES = frozenset(
    """bash sh shell zsh c cpp c++ csharp c# cs css scss diff docker dockerfile go golang
    graphql haskell hs html http toml java javascript js jsx json julia jl kotlin tex latex lua
    make makefile markdown md nginx perl php powershell ps1 protobuf proto python py python3
    pycon r ruby rb rust rs scala sql swift typescript ts tsx xml yaml yml zig elixir erlang clojure
    fortran nix cuda nasm cmake terraform hcl dart lisp scheme vim pytb""".split()  # noqa: SIM905
)
"""Names of languages whose code is coloured."""
_BASE_S, _CHARACTER_S = 0.25, 20e-6
"""Processor time after which the rest of a code stays plain: some ten times what code needs.

A language that holds others (HTML holds CSS) makes its lexers ready when it first meets them.
"""


def render_code(renderer, tokens: list[Token], index: int, options, env) -> str:
    """The block of a fence, or of indented code, with its language and a button to copy it."""
    token = tokens[index]
    language = re.split(r"[\s,{:]", token.info.strip(), maxsplit=1)[0][:30]
    if _is_closed(token) or len(token.content) <= MAX_OPEN_CODE:
        code = coloured(token.content, language.lower())
    else:
        code = escapeHtml(token.content)
    return (
        f'<div class="code"><div class="code-head"><span>{escapeHtml(language or "text")}</span>'
        '<button type="button" class="copy">Copy</button></div>'
        f'<pre tabindex="0"><code>{code}</code></pre></div>'
    )


def _is_closed(token: Token) -> bool:
    """Tells whether a fence has its end; indented code has none and needs none."""
    if token.type != "fence" or token.map is None:
        return True
    lines = token.content.count("\n") + (not token.content.endswith("\n") and token.content != "")
    return token.map[1] - token.map[0] == lines + 2


@functools.lru_cache(maxsize=64)
def coloured(code: str, language: str) -> str:
    """HTML of code with spans of Pygments' classes; plain where its language is not known."""
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    if language not in LANGUAGES or len(code) > MAX_CODE:
        return escapeHtml(code)
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    made = StringIO()
    HtmlFormatter(nowrap=True).format(_in_time(lexer, code), made)
    return made.getvalue()


def _in_time(lexer: Any, code: str) -> Iterator[tuple[Any, str]]:
    """The lexer's tokens; what it has not read in its time is one token, a text."""
    from pygments.token import Text

    code = code.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # as the lexer does
    end_s, read = time.thread_time() + _BASE_S + _CHARACTER_S * len(code), 0
    for kind, text in lexer.get_tokens(code):
        yield kind, text
        read += len(text)
        if time.thread_time() > end_s:
            yield Text, code[read:]
            return
