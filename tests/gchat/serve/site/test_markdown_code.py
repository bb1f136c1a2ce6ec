"""Code in answers: coloured, whole, and nothing that anybody writes freezes the site."""

import itertools
import re
import subprocess
import sys
from html import unescape

import pytest

from gchat.serve.site import markdown_code
from gchat.serve.site.markdown_code import LANGUAGES, coloured

# After the inputs of CVE-2021-27291 and CVE-2022-40896 (Pygments' lexers): what may open something,
# or be read in several ways, and never ends.
HOSTILE = (
    " ", "\t", "\n", "a", "_", "0", "(", "{", "[", "<", '"', "'", "`", "/*", "#", "-", "=", ":",
    "!", "@", "\\", "$(", "a ", "a\n", "\n ", "a.", "a<", "<a ", '"""', '"a\\', "f(a,", "a::", "1e",
)  # fmt: skip
# Whoever takes more than ten seconds of processor time for one step is killed by the kernel: Python
# itself cannot break it off.
STEPS = """
import signal, sys, time
from pygments.lexers import get_lexer_by_name
for language in {languages!r}:
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    for hostile in {hostile!r}:
        print(language, ascii(hostile), flush=True)
        end = time.thread_time() + 0.02
        signal.setitimer(signal.ITIMER_PROF, 10)
        for _ in lexer.get_tokens((hostile * {most})[:{most}]):
            if time.thread_time() > end:
                break
"""


def text_of(html):
    return unescape(re.sub("<[^>]*>", "", html))


def test_code_is_whole_whatever_its_language():
    code = "\ufeffif a < b && c:\n\n\n  '''x\n\t\"y\" # é\N{GRINNING FACE}\n"
    for language in sorted(LANGUAGES):
        assert text_of(coloured(code, language)) == code.removeprefix("\ufeff"), language
    assert "<span" not in coloured(code, "systemd") and text_of(coloured(code, "none")) == code
    assert '<span class="k">def</span>' in coloured("def f(): pass", "py")
    assert "<span" not in coloured("x = 1\n" * markdown_code.MAX_CODE, "python")


def test_what_takes_too_long_stays_plain(monkeypatch):
    """The clock is ours: each look at it is a tenth of a second."""
    looks = itertools.count()
    monkeypatch.setattr(markdown_code.time, "thread_time", lambda: next(looks) / 10)
    code = "x = 1 # one of those\n" * 200
    html = coloured(code, "python")
    assert text_of(html) == code and 1 <= html.count("<span") < 10


@pytest.mark.slow
def test_no_step_of_a_lexer_takes_long():
    script = STEPS.format(languages=sorted(LANGUAGES), hostile=HOSTILE, most=20_000)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout.splitlines()[-1:], done.stderr)
