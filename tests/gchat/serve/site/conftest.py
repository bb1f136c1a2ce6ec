import pytest

import chat_site
from tests.fakes import openai_api


@pytest.fixture(scope="module")
def upstream():
    with openai_api.serve() as made:
        yield made


@pytest.fixture(scope="module")
def place(upstream, tmp_path_factory):
    """A site that runs, with the users alice and bob and the administrator root."""
    file = tmp_path_factory.mktemp("site") / "site.db"
    site = chat_site.make_site(f"sqlite:///{file}", upstream.url, registration="open")
    for name, role in (("alice", "user"), ("bob", "user"), ("root", "admin")):
        chat_site.add_user(site, name, role)
    with chat_site.running(site) as made:
        yield made


@pytest.fixture(scope="module")
def alice(place):
    return place.client("alice")


@pytest.fixture(scope="module")
def bob(place):
    return place.client("bob")


@pytest.fixture(scope="module")
def root(place):
    return place.client("root")


@pytest.fixture(scope="module")
def visitor(place):
    return place.client()
