r"""Maths in Markdown, made into MathML on the server: `$x$`, `\(x\)`, `$$x$$`, `\[x\]`.

The rules are our own because text is rendered while it is written. A rule that searches the rest of
the text for its end, as dollarmath of mdit-py-plugins does, takes back blocks that were shown; here
a formula ends at its closing mark or at the next blank line, and what is not closed is shown as it
was written. A dollar opens a formula as in pandoc: no space after it, none before the closing one
and no digit behind that, so that `$5 and $10` stays money.
"""

import functools

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_FORMULA = 2000
"""Characters; what is longer is shown as it was written."""
_CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}


def add_maths(markdown: MarkdownIt) -> None:
    """Adds the rules and the renderers of both tokens."""
    markdown.block.ruler.before(
        "fence", "math_block", _block, {"alt": ["paragraph", "blockquote", "list"]}
    )
    markdown.inline.ruler.before("escape", "math_inline", _inline)
    markdown.add_render_rule("math_block", _render_block)
    markdown.add_render_rule("math_inline", _render_inline)


@functools.lru_cache(maxsize=1024)
def mathml(latex: str, display: bool) -> str | None:
    """MathML of a formula; None where it is none that latex2mathml reads."""
    from latex2mathml.converter import convert

    if not latex.strip() or len(latex) > MAX_FORMULA:
        return None
    try:
        return convert(latex, display="block" if display else "inline")
    except Exception:  # its errors have no common base, and IndexError and KeyError escape too
        return None


def _block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    r"""Reads `$$ … $$` or `\[ … \]` that begins a line."""
    if state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    opening = state.src[begin : begin + 2]
    if opening not in ("$$", "\\["):
        return False
    first = state.src[begin + 2 : state.eMarks[start_line]]
    if _CLOSING[opening] in first and not first.rstrip().endswith(_CLOSING[opening]):
        return False  # `$$x$$ is …`: a paragraph that begins with a formula
    if silent:
        return True
    lines, line, closed = [], start_line, False
    while line < end_line:
        text = first
        if line > start_line:
            text = state.getLines(line, line + 1, state.blkIndent, False)
        if line > start_line and (not text.strip() or state.sCount[line] < state.blkIndent):
            break
        line += 1
        lines.append(text)
        if text.rstrip().endswith(_CLOSING[opening]):
            lines[-1] = text.rstrip()[:-2]
            closed = True
            break
    state.line = line
    token = state.push("math_block", "math", 0)
    token.block, token.map, token.markup = True, [start_line, line], opening
    token.content, token.info = "\n".join(lines), "closed" if closed else ""
    return True


def _inline(state: StateInline, silent: bool) -> bool:
    source, begin = state.src, state.pos
    opening = source[begin : begin + 2]
    if opening not in ("$$", "\\(", "\\["):
        opening = source[begin]
    if opening not in _CLOSING:
        return False
    closing = _CLOSING[opening]
    start = begin + len(opening)
    if state.html_terminator_last(closing) < start:
        return False  # known without a look through all of the rest at every opening
    end = source.find(closing, start, state.posMax)
    while end > 0 and source[end - 1] == "\\" and closing[0] == "$":
        end = source.find(closing, end + 1, state.posMax)
    if end <= start:
        return False
    content, after = source[start:end], source[end + 1 : end + 2]
    if opening == "$" and (content[0].isspace() or content[-1].isspace() or after.isdigit()):
        return False
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content, token.markup = content, opening
    state.pos = end + len(closing)
    return True


def _as_written(token) -> str:
    return escapeHtml(token.markup + token.content + _CLOSING[token.markup])


def _render_block(renderer, tokens, index, options, env) -> str:
    token = tokens[index]
    formula = mathml(token.content, True) if token.info else None
    if formula is None:
        closing = _CLOSING[token.markup] if token.info else ""
        return f"<p>{escapeHtml(token.markup + token.content + closing)}</p>"
    return f'<div class="math" tabindex="0">{formula}</div>'


def _render_inline(renderer, tokens, index, options, env) -> str:
    token = tokens[index]
    formula = mathml(token.content, token.markup in ("$$", "\\["))
    return f"<code>{_as_written(token)}</code>" if formula is None else formula
