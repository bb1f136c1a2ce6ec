"""The site as a person has it: Chromium through a real nginx with TLS, before `gchat web`."""

import pytest

import chat_nginx as site
from chat_browser import GAP_S, answer_to, axe_source
from tests.fakes import openai_api


@pytest.fixture(scope="package")
def upstream():
    with openai_api.serve(delay_s=GAP_S, tokens=1000) as made:
        made.reply = lambda body: answer_to(body["messages"][-1]["content"])
        yield made


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, site.chromium(playwright) as browser:
        yield browser


@pytest.fixture(scope="package")
def axe(tmp_path_factory):
    """The source of axe-core, to be run in a page."""
    return axe_source(tmp_path_factory.mktemp("axe"))
