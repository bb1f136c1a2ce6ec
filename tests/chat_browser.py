"""People at browsers before a chat site, what they ask, and what is looked for in their pages."""

import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

import chat_nginx as site
from gchat.serve.site import web

NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (apt install nginx-light)"),
    pytest.mark.skipif(
        not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="needs chromium"
    ),
]
"""Marks of every test with a browser."""
DESKTOP, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
GAP_S = 0.05
ANSWER = """## Descent

We follow the **negative gradient** of a loss $L(\\theta)$ with step $\\eta$:

$$
\\theta_{t+1} = \\theta_t - \\eta \\nabla_\\theta L(\\theta_t)
$$

1. the *step size*
2. the curvature

```python
def descend(theta, rate=0.1):
    return theta - rate * grad(theta)
```

| optimizer | memory |
|:--|--:|
| SGD | 0 |
| AdamW | 2x |

See https://arxiv.org/abs/1412.6980 for more."""
HOSTILE = (
    "<script>hacked=1</script> <img src=x onerror='hacked=1'> [x](javascript:hacked=1)\n\n"
    "<svg onload='hacked=1'></svg> ![x](https://evil.example/leak.png)\n\n"
    "$\\text{<img src=x onerror=hacked=1>}$ <math><mtext><table><mglyph><style><!--</style>"
    "<img title='--><img src onerror=hacked=1>'>\n\n"
    '```"><script>hacked=1</script>\n</code></pre><script>hacked=1</script>\n```\n\nend'
)
WATCH = """() => { window.states = []; new MutationObserver(() => {
  const bodies = document.querySelectorAll('.message.assistant .body');
  const length = bodies.length ? bodies[bodies.length - 1].textContent.length : 0;
  if (length && length !== states.at(-1)?.[1]) states.push([performance.now(), length]);
}).observe(document.getElementById('messages'),
           {subtree: true, childList: true, characterData: true}) }"""


def answer_to(question):
    if "hostile" in question:
        return HOSTILE
    if "short" in question:
        return "A short answer."
    return "word " * 400 if "endless" in question else ANSWER


class Person:
    """Somebody at a browser; collects what goes wrong and whom the pages ask."""

    def __init__(self, browser, url, name, viewport=None, **options):
        self.url, self.name = url, name
        self.context = browser.new_context(
            ignore_https_errors=True, viewport=viewport or DESKTOP, accept_downloads=True, **options
        )
        self.page = self.context.new_page()
        self.errors, self.hosts = [], set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def _console(self, message):
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def register(self):
        self.page.goto(f"{self.url}/register")
        return self._enter("Register")

    def login(self):
        self.page.goto(f"{self.url}/login")
        return self._enter("Log in")

    def _enter(self, button):
        self.page.get_by_label("Name").fill(self.name)
        self.page.get_by_label("Password").fill(site.PASSWORD)
        self.page.get_by_role("button", name=button).click()
        self.page.wait_for_selector("#input")
        return self

    def ask(self, text, wait=True):
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")
        self.page.wait_for_selector("#stop:not([hidden])")
        if wait:
            self.finished()

    def finished(self):
        self.page.wait_for_selector("#stop", state="hidden", timeout=120_000)
        self.page.wait_for_selector(".message.assistant:last-child .actions", timeout=20_000)

    def answers(self):
        return self.page.locator(".message.assistant .body").all_inner_texts()

    def questions(self):
        return self.page.locator(".message.user .body").all_inner_texts()

    def status(self, address):
        """The status of a request as the page itself makes it, with its cookies."""
        return self.page.evaluate("async (url) => (await fetch(url)).status", address)

    def end(self):
        assert not self.errors, self.errors
        assert {host.split(":")[0] for host in self.hosts} <= {site.HOST}
        self.context.close()


def until(page, expression, seconds=60):
    """Waits for an expression; Playwright's own way needs `eval`, which the policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def check_states(states, tokens):
    """An answer came piece by piece: many states, spread over its time and not in one lump."""
    assert len(states) >= 10
    times = [moment for moment, _ in states]
    gaps = sorted(after - before for before, after in pairwise(times))
    assert len(states) > tokens / 4, (len(states), tokens)
    assert gaps[-1] < (times[-1] - times[0]) / 2, "most of the answer came at once"


def axe_source(folder):
    """axe-core as the front end's lock names it."""
    kept = Path(web.__file__).parent
    if (file := kept / "node_modules/axe-core/axe.min.js").exists():
        return file.read_text()
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: axe-core cannot be fetched")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(kept / name, folder)
    done = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=folder, capture_output=True,
                          timeout=250)  # fmt: skip
    if done.returncode:
        pytest.skip("npm could not fetch axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


def faults(page, axe):
    page.evaluate(axe)
    violations = page.evaluate("async () => (await axe.run(document)).violations")
    return [(one["id"], one["impact"], [node["html"][:120] for node in one["nodes"][:3]])
            for one in violations if one["impact"] in ("serious", "critical")]  # fmt: skip
