"""From the first visit to a disabled account, in one browser."""

import json
from pathlib import Path

import chat_nginx as site
from chat_browser import ANSWER, NEEDED, WATCH, Person, check_states, until
from tests.fakes import openai_api

pytestmark = NEEDED


def test_the_whole_line(place, chromium, tmp_path):
    """Register, log in, chat, stop, edit, branch, search, export, share; and be disabled."""
    url, _ = place
    ada = Person(chromium, url, "ada").register()
    ada.context.clear_cookies()
    ada.login()
    stopped = asks_and_stops(ada)
    edits_and_branches(ada, stopped)
    finds(ada)
    exported = tmp_path / "export.json"
    shared = exports_and_shares(ada, exported)
    bob = Person(chromium, url, "bob").register()
    sees_nothing_of(bob, ada.page.url)
    reads_and_imports(bob, shared, exported)
    bob.end()
    root_disables(chromium, url, ada)


def asks_and_stops(ada):
    """One answer to its end and one stopped; both are there after a reload. The stopped text."""
    page = ada.page
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
    return stopped


def edits_and_branches(ada, stopped):
    """Another question in place of the second, another answer; the old branch stays."""
    page = ada.page
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


def finds(ada):
    """The conversation under its new title and by words of its answers, and no other."""
    page = ada.page
    page.fill("#input", "/title All about descent")
    page.press("#input", "Enter")
    page.wait_for_selector("#conversations >> text=All about descent")
    page.fill("#find", "negative gradient")
    until(page, "document.querySelectorAll('#conversations a').length === 1")
    page.fill("#find", "no such words anywhere")
    page.wait_for_selector("text=Nothing was found.")
    page.fill("#find", "")
    page.wait_for_selector("#conversations a")


def exports_and_shares(ada, file):
    """Both kinds of export, JSON into a file; the address of the shared page."""
    page = ada.page
    page.click("#options")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export Markdown").click()
    text = Path(download.value.path()).read_text()
    assert "negative gradient" in text and "something short" in text
    with page.expect_download() as download:
        page.get_by_role("link", name="Export JSON").click()
    file.write_bytes(Path(download.value.path()).read_bytes())
    json.loads(file.read_text())
    page.get_by_role("button", name="Share…").click()
    shared = page.locator("input.secret").input_value()
    page.keyboard.press("Escape")
    return shared


def sees_nothing_of(bob, conversation):
    """Somebody else's conversation, by its address, is not there."""
    assert bob.page.locator("#conversations a").count() == 0
    bob.page.goto(conversation)
    assert "descent" not in bob.page.inner_text("body").lower()
    assert bob.status(conversation.replace("/c/", "/api/conversations/")) == 404


def reads_and_imports(bob, shared, file):
    """A shared page to read only, and an exported conversation as one's own."""
    bob.page.goto(shared)
    assert "negative gradient" in bob.page.inner_text("main")
    assert bob.page.locator("#composer").count() == 0
    bob.page.goto(f"{bob.url}/settings")
    bob.page.set_input_files("#import input", file)
    bob.page.get_by_role("button", name="Import").click()
    bob.page.wait_for_selector(".message.assistant")
    assert "negative gradient" in bob.page.inner_text("#messages")


def root_disables(chromium, url, ada):
    """While an answer is being written to ada, an administrator disables the account."""
    ada.ask("something endless", wait=False)
    root = Person(chromium, url, "root").login()
    root.page.goto(f"{url}/admin")
    row = root.page.locator("#users tr", has_text="ada")
    row.get_by_role("button", name="Disable").click()
    root.page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    root.page.wait_for_selector("#users tr.off >> text=ada")
    assert ada.status(f"{url}/api/me") == 401  # at once
    ada.page.wait_for_url("**/login**", timeout=15_000)
    ada.page.get_by_label("Name").fill("ada")
    ada.page.get_by_label("Password").fill(site.PASSWORD)
    ada.page.get_by_role("button", name="Log in").click()
    ada.page.wait_for_selector("text=/disabled/")
    ada.end()
    root.end()
