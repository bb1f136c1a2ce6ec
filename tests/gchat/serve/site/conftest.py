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


@pytest.fixture
def alice(place):
    client = place.client("alice")
    yield client
    client.close()


@pytest.fixture
def bob(place):
    client = place.client("bob")
    yield client
    client.close()


@pytest.fixture
def root(place):
    client = place.client("root")
    yield client
    client.close()
