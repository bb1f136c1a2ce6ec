"""The site as a person has it: Chromium through a real nginx with TLS, before `gchat web`."""

import json
import os
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

import chat_nginx as site
import smollm2
from gchat.serve.site import web
from tests.fakes import openai_api, search_services

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (apt install nginx-light)"),
    pytest.mark.skipif(
        not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="needs chromium"
    ),
]
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
SECOND_IS_LONG = "document.querySelectorAll('.assistant .body')[1]?.innerText.length > 40"


@pytest.fixture(scope="module")
def upstream():
    with openai_api.serve(delay_s=GAP_S, tokens=1000) as made:
        made.reply = lambda body: answer_to(body["messages"][-1]["content"])
        yield made


def answer_to(question):
    if "hostile" in question:
        return HOSTILE
    if "short" in question:
        return "A short answer."
    return "word " * 400 if "endless" in question else ANSWER


@pytest.fixture(scope="module")
def place(upstream, tmp_path_factory):
    """(address, database) of a site with an administrator, behind nginx."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--upstream", upstream.url, "--registration", "open", "--site-name", "gaia")
    with (
        site.web(folder / "web", *options) as (port, database, _),
        site.nginx(folder / "nginx", port) as (url, _),
    ):
        site.add_user(database, "root", "admin")
        yield url, database


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, site.chromium(playwright) as browser:
        yield browser


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


def test_the_whole_line(place, chromium, tmp_path):
    url, _ = place
    ada = Person(chromium, url, "ada").register()
    page = ada.page
    ada.context.clear_cookies()
    ada.login()
    page.evaluate(WATCH)
    ada.ask("How does descent work?")
    check_states(page.evaluate("states"), len(openai_api.pieces(ANSWER)))
    body = page.locator(".message.assistant .body")
    assert body.locator("math").count() == 3 and body.locator("td").count() == 4
    assert body.locator("pre span").count() > 5 and body.locator("h4").inner_text() == "Descent"
    assert page.locator("#title").inner_text() == "How does descent work?"
    whole = body.inner_html()

    ada.ask("something endless", wait=False)
    until(page, "document.querySelectorAll('.message.assistant .body')[1]?.innerText.length > 40")
    page.locator("#stop").click()
    ada.finished()
    stopped = ada.answers()[1]
    assert 40 < len(stopped) < 1900 and page.get_by_text("Stopped.").count() == 1
    page.reload()
    page.wait_for_selector(".message.assistant:nth-child(4)")
    assert ada.answers()[1] == stopped and body.first.inner_html() == whole

    second = page.locator(".message.user").nth(1)
    second.hover()
    second.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("something short")
    page.get_by_label("Edit the message").press("Enter")
    page.wait_for_selector("text=A short answer.")
    ada.finished()
    assert ada.questions() == ["How does descent work?", "something short"]
    page.wait_for_selector("text=2 of 2")
    last = page.locator(".message.assistant").nth(1)
    last.get_by_role("button", name="Answer again").click()
    until(page, "document.querySelectorAll('.versions').length === 2")
    ada.finished()
    page.locator(".message.user").nth(1).get_by_role("button", name="Earlier version").click()
    page.wait_for_selector("text=Stopped.")
    assert ada.answers()[1] == stopped and ada.questions()[1] == "something endless"
    page.locator(".message.user").nth(1).get_by_role("button", name="Later version").click()
    page.wait_for_selector("text=A short answer.")
    page.locator(".message.assistant").nth(1).get_by_role("button", name="Good answer").click()

    page.fill("#input", "/title All about descent")
    page.press("#input", "Enter")
    page.wait_for_selector("#conversations >> text=All about descent")
    page.fill("#find", "negative gradient")
    until(page, "document.querySelectorAll('#conversations a').length === 1")
    page.fill("#find", "no such words anywhere")
    page.wait_for_selector("text=Nothing was found.")
    page.fill("#find", "")
    page.wait_for_selector("#conversations a")

    page.click("#options")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export Markdown").click()
    text = Path(download.value.path()).read_text()
    assert "negative gradient" in text and "something short" in text
    with page.expect_download() as download:
        page.get_by_role("link", name="Export JSON").click()
    exported = tmp_path / "export.json"
    exported.write_bytes(Path(download.value.path()).read_bytes())
    json.loads(exported.read_text())
    page.get_by_role("button", name="Share…").click()
    shared = page.get_by_label("Link to this conversation").input_value()
    page.keyboard.press("Escape")
    conversation = page.url

    bob = Person(chromium, url, "bob").register()
    assert bob.page.locator("#conversations a").count() == 0
    bob.page.goto(conversation)
    assert "descent" not in bob.page.inner_text("body").lower()
    answer = bob.page.request.get(conversation.replace("/c/", "/api/conversations/"))
    assert answer.status == 404
    bob.page.goto(shared)
    assert "negative gradient" in bob.page.inner_text("main")
    assert bob.page.locator("#composer").count() == 0
    bob.page.goto(f"{url}/settings")
    bob.page.set_input_files("#import input", exported)
    bob.page.get_by_role("button", name="Import").click()
    bob.page.wait_for_selector(".message.assistant")
    assert "negative gradient" in bob.page.inner_text("#messages")
    bob.end()
    root_disables(chromium, url, ada)


def root_disables(chromium, url, ada):
    """While an answer is being written to ada, an administrator disables the account."""
    ada.ask("something endless", wait=False)
    root = Person(chromium, url, "root").login()
    root.page.goto(f"{url}/admin")
    row = root.page.locator("#users tr", has_text="ada")
    row.get_by_role("button", name="Disable").click()
    root.page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    root.page.wait_for_selector("#users tr.off >> text=ada")
    assert ada.page.request.get(f"{url}/api/me").status == 401  # at once
    ada.page.wait_for_url("**/login**", timeout=15_000)
    ada.page.get_by_label("Name").fill("ada")
    ada.page.get_by_label("Password").fill(site.PASSWORD)
    ada.page.get_by_role("button", name="Log in").click()
    ada.page.wait_for_selector("text=/disabled/")
    ada.end()
    root.end()


def test_nothing_hostile_runs(place, chromium):
    url, _ = place
    eve = Person(chromium, url, "eve").register()
    eve.ask("hostile <img src=x onerror='hacked=1'>")
    eve.page.fill("#input", "/title <img src=x onerror=hacked=1><script>hacked=1</script>")
    eve.page.press("#input", "Enter")
    eve.page.wait_for_selector("#conversations >> text=<script>")
    eve.page.reload()
    eve.page.wait_for_selector(".message.assistant .actions")
    assert eve.page.evaluate("typeof hacked") == "undefined"
    assert eve.page.locator("#messages script, #messages img, #messages svg[onload]").count() == 0
    assert "hacked=1" in eve.answers()[0]  # shown, not run
    eve.page.click("#options")
    eve.page.get_by_role("button", name="Share…").click()
    eve.page.goto(eve.page.get_by_label("Link to this conversation").input_value())
    assert eve.page.evaluate("typeof hacked") == "undefined" and "end" in eve.page.inner_text(
        "main"
    )
    eve.end()


def test_a_broken_connection_is_taken_up_again(upstream, chromium, tmp_path):
    """nginx ends in the middle of an answer and comes back: the answer goes on, nothing twice."""
    options = ("--upstream", upstream.url, "--registration", "open")
    with (
        site.web(tmp_path / "web", *options) as (port, _, _),
        site.nginx(tmp_path / "nginx", port) as (url, _),
    ):
        cyd = Person(chromium, url, "cyd").register()
        page = cyd.page
        page.evaluate(WATCH)
        cyd.ask("How does descent work?", wait=False)
        until(page, "states.length > 20")
        master = (tmp_path / "nginx/pid").read_text().strip()
        for worker in subprocess.check_output(["pgrep", "-P", master], text=True).split():
            os.kill(int(worker), 9)  # the master begins another
        before = page.evaluate("states.length")
        until(page, f"states.length > {before + 10}")
        cyd.finished()
        text = page.locator(".message.assistant .body").inner_text()
        page.reload()
        page.wait_for_selector(".message.assistant .actions")
        assert page.locator(".message.assistant .body").inner_text() == text
        assert text.count("negative gradient") == 1 and "for more." in text
        cyd.errors = [one for one in cyd.errors if "net::ERR" not in one]
        cyd.end()


def test_search_shows_sources_and_obeys_none(upstream, chromium, tmp_path):
    """Pages reach the model as quoted data, and the reader as links that stay after a reload."""
    with search_services.serve() as services:
        options = ("--upstream", upstream.url, "--registration", "open", "--search", "searxng",
                   "--search-url", services["url"])  # fmt: skip
        with (
            site.web(tmp_path / "web", *options) as (port, _, _),
            site.nginx(tmp_path / "nginx", port) as (url, _),
        ):
            ivy = Person(chromium, url, "ivy").register()
            ivy.ask("something short")
            assert not services["seen"]  # off until it is switched on
            ivy.page.get_by_role("button", name="Search the web").click()
            ivy.ask("something short again")
            links = ivy.page.locator(".sources a")
            assert links.evaluate_all("all => all.map((one) => one.href)") == [
                "https://a.example/one", "http://b.example/two"]  # fmt: skip
            sent = upstream.seen[-1][1]["messages"][-1]["content"]
            assert "First extract" in sent and sent.endswith("something short again")
            assert re.search(r"<page (\w{16}) number=1>.*</page \1>", sent, re.S)
            assert ivy.questions()[-1] == "something short again"
            ivy.page.reload()
            ivy.page.wait_for_selector(".sources a")
            assert links.count() == 2
            ivy.end()


def test_two_tabs_see_one_answer(place, chromium):
    url, _ = place
    dan = Person(chromium, url, "dan").register()
    dan.ask("How does descent work?", wait=False)
    dan.page.wait_for_url("**/c/*")
    other = dan.context.new_page()
    other.goto(dan.page.url)
    other.wait_for_selector(".message.streaming")
    dan.finished()
    other.wait_for_selector(".message.assistant .actions", timeout=20_000)
    same = [one.locator(".message.assistant .body").inner_html() for one in (dan.page, other)]
    assert same[0] == same[1]
    dan.end()


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault(place, chromium, tmp_path, scheme, viewport):
    url, _ = place
    axe = axe_source(tmp_path)
    root = Person(chromium, url, "root", viewport=viewport, color_scheme=scheme)
    page = root.page
    for path in ("/login", "/register"):
        page.goto(url + path)
        assert not faults(page, axe), path
    root.login()
    assert not faults(page, axe)
    page.fill("#input", "/")
    page.wait_for_selector("#commands li")
    assert not faults(page, axe)
    page.fill("#input", "")
    root.ask("How does descent work?")
    assert not faults(page, axe)
    page.click("#options")
    page.wait_for_selector("dialog[open]")
    assert not faults(page, axe)
    page.get_by_role("button", name="Share…").click()
    shared = page.get_by_label("Link to this conversation").input_value()
    for address in (shared, f"{url}/settings", f"{url}/admin"):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert not faults(page, axe), address
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
    root.end()


def test_the_page_is_small_and_soon_painted(place, chromium):
    url, _ = place
    fay = Person(chromium, url, "fay").register()
    fay.ask("How does descent work?")
    page = fay.context.new_page()
    session = fay.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(fay.page.url)
    page.wait_for_selector(".message.assistant .actions")
    page.wait_for_load_state("networkidle")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"\n{len(sizes)} answers, {sum(sizes) / 1000:.1f} kB; first paint {paint:.0f} ms")
    assert sum(sizes) < 150_000
    fay.end()


def test_keys_alone_are_enough(place, chromium):
    url, _ = place
    gil = Person(chromium, url, "gil").register()
    page = gil.page
    page.keyboard.type("/te")
    page.wait_for_selector("#commands li[aria-selected=true] >> text=/temperature")
    page.keyboard.press("Tab")
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=temperature is 0.5")
    page.keyboard.type("something short")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=A short answer.")
    gil.finished()
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".editor textarea:focus")
    page.keyboard.press("Escape")
    page.focus("#input")
    page.keyboard.type("/no-such")
    page.keyboard.press("Enter")
    page.wait_for_selector(".notice.bad")
    assert page.input_value("#input") == "/no-such"  # nothing that was typed is lost
    page.fill("#input", "/temperature 9")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=takes a number from 0 to 2")
    page.fill("#input", "/help")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] >> text=Shift+Enter")
    page.keyboard.press("Escape")
    page.fill("#input", "/new")
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome:not([hidden])")
    gil.end()


def test_headers_through_nginx(place):
    url, _ = place
    port = url.rsplit(":", 1)[1]
    for path in ("/login", "/static/app.js", "/api/me", "/no-such-page", "/health"):
        _, headers = site.head(url + path, port)
        assert "max-age=31536000" in headers["Strict-Transport-Security"], path
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "nginx/" not in headers["Server"]
    assert site.head(f"{url}/metrics", port)[0] == 404


def test_smollm2_through_nginx(chromium, tmp_path):
    """A real model that writes at its own pace."""
    source = smollm2.path()
    if source is None:
        pytest.skip(smollm2.MISSING)
    from gchat.__main__ import main

    run = tmp_path / "smol"
    assert main(["import", "gguf", str(source), "--out", str(run)]) == 0
    options = ("--run", f"smol={run}", "--registration", "open")
    with (
        site.web(tmp_path / "web", *options, wait_s=300) as (port, _, _),
        site.nginx(tmp_path / "nginx", port) as (url, _),
    ):
        hal = Person(chromium, url, "hal").register()
        hal.page.evaluate(WATCH)
        began = time.monotonic()
        hal.ask("Name three animals that live in the sea, and say one sentence about each.")
        states = hal.page.evaluate("states")
        text = hal.answers()[0]
        print(f"\n{len(states)} states in {time.monotonic() - began:.1f} s: {text[:200]!r}")
        check_states(states, 40)
        hal.page.reload()
        hal.page.wait_for_selector(".message.assistant .actions")
        assert hal.answers()[0] == text
        assert hal.page.locator("#meter").is_visible()
        hal.end()
