"""Answers as they come to a browser: from a real model, over broken connections, in two tabs."""

import os
import re
import subprocess
import time

import pytest

import chat_nginx as site
import smollm2
from chat_browser import NEEDED, WATCH, Person, answer_to, check_states, until
from tests.fakes import search_services

pytestmark = NEEDED
WHOLE = len(answer_to("something endless").strip())


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


def test_a_server_that_stays_away_is_given_up_and_can_be_asked_again(place, chromium):
    url, _ = place
    kim = Person(chromium, url, "kim").register()
    page = kim.page
    for comes_later in (False, True):  # the answer is lost by who asked, and by who opened it then
        kim.ask("something endless", wait=False)
        until(page, "document.querySelector('.message:last-child .body')?.innerText.length > 40")
        if comes_later:
            page.reload()
            page.wait_for_selector(".message.streaming")
        page.wait_for_selector("#stop:not([hidden])")
        kim.context.set_offline(True)
        page.wait_for_selector(".notice.bad >> text=cannot be reached", timeout=60_000)
        page.wait_for_selector("#send:not([hidden])")
        kim.context.set_offline(False)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        # The server wrote on: all of it is there again, where the page had a part.
        until(
            page, f"document.querySelector('.message:last-child .body').innerText.length >= {WHOLE}"
        )
        assert page.locator(".message.assistant.done").count() == 1 + comes_later
    kim.errors = [one for one in kim.errors if "net::ERR" not in one]
    kim.end()


def test_two_clicks_ask_once(place, chromium):
    url, _ = place
    liv = Person(chromium, url, "liv").register()
    liv.ask("something short")
    liv.page.get_by_role("button", name="Answer again").dblclick()
    until(liv.page, "document.querySelectorAll('.versions').length === 1")
    liv.finished()
    until(liv.page, "document.querySelector('.versions')?.textContent === '2 of 2'")
    liv.page.reload()
    liv.page.wait_for_selector("text=2 of 2")
    liv.end()


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
