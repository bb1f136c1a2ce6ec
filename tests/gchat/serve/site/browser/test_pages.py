"""Pages in a browser: safe, usable by everybody, small, and soon there."""

import pytest

import chat_nginx as site
from chat_browser import DESKTOP, NEEDED, PHONE, Person, faults, until

pytestmark = NEEDED


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
    eve.page.goto(eve.page.locator("input.secret").input_value())
    assert eve.page.evaluate("typeof hacked") == "undefined" and "end" in eve.page.inner_text(
        "main"
    )
    eve.end()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault(place, chromium, axe, scheme, viewport):
    url, _ = place
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
    shared = page.locator("input.secret").input_value()
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


def test_the_list_over_the_page_of_a_phone(place, chromium, axe):
    """The page below is out of reach while it is open, and back however it is closed."""
    url, _ = place
    jo = Person(chromium, url, "jo", viewport=PHONE).register()
    page = jo.page
    jo.ask("something short")

    def is_open():
        button = page.get_attribute("#open-menu", "aria-expanded") == "true"
        seen = page.is_visible("#sidebar") and page.is_visible("#veil")
        assert seen == button == page.evaluate("document.getElementById('main').inert")
        return seen

    def focus():
        return page.evaluate("document.activeElement.id")

    page.click("#open-menu")
    page.wait_for_selector("#conversations >> text=something short")
    assert is_open() and focus() == "close-menu" and not faults(page, axe)
    for _ in range(15):
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.closest('#main') !== null")
    for close in (
        lambda: page.keyboard.press("Escape"),
        lambda: page.click("#close-menu"),
        lambda: page.click("#veil", position={"x": 370, "y": 400}),
        lambda: page.click("#conversations a"),
        lambda: page.click("#new"),
        lambda: page.set_viewport_size(DESKTOP),
    ):
        close()
        page.wait_for_selector("#veil", state="hidden")
        until(page, "innerWidth > 760 || getComputedStyle(sidebar).visibility === 'hidden'")
        assert page.viewport_size == DESKTOP or not is_open()
        if page.viewport_size == PHONE:
            page.click("#open-menu")
            assert is_open()
    assert page.is_visible("#sidebar") and not page.evaluate("main.inert")
    page.click("#conversations a")
    page.wait_for_selector("text=A short answer.")
    jo.end()


def test_headers_through_nginx(place):
    url, _ = place
    port = url.rsplit(":", 1)[1]
    for path in ("/login", "/static/app.js", "/api/me", "/no-such-page"):
        _, headers = site.head(url + path, port)
        assert "max-age=31536000" in headers["Strict-Transport-Security"], path
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "nginx/" not in headers["Server"]
    assert site.head(f"{url}/metrics", port)[0] == 404
