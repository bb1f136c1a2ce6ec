"""A chat site over a fake upstream, on loopback, in a thread of this process; and its clients."""

import asyncio
import contextlib
import json
import re
import threading
import time

import httpx2

from gchat.serve.driver import Driver
from gchat.serve.http_server import HttpServer, listen
from gchat.serve.metrics import Metrics
from gchat.serve.open_upstreams import open_upstreams
from gchat.serve.options import Answering
from gchat.serve.service import Service
from gchat.serve.site import accounts, markdown, migrating
from gchat.serve.site.app import make_site_app
from gchat.serve.site.database import Database
from gchat.serve.site.passwords import Passwords
from gchat.serve.site.quotas import Quotas, UserKeys
from gchat.serve.site.site import Rules, Site

CHEAP = {"time_cost": 1, "memory_cost": 8, "parallelism": 1}
"""Costs of argon2 at which a test is quick."""
PASSWORD = "four plain words here"


def make_site(url, upstream, *, tables=True, **rules):
    """A site over a database and an endpoint (address without a name)."""
    database = Database(url)
    if tables:
        migrating.upgrade(database)
    quotas = Quotas(None, None, database)
    service = Service({}, Driver([]), Metrics(), UserKeys(database, quotas), quotas)
    service.models |= open_upstreams(Answering(upstream=(upstream,)), service)
    patience_s = rules.pop("patience_s", 60.0)
    others = {name: rules.pop(name) for name in ("find", "quote", "list_sources") if name in rules}
    return Site(
        service, database, Passwords(**CHEAP), quotas, Rules(**{"context": 2048, **rules}),
        markdown.render, markdown.Growing, patience_s=patience_s, **others,
    )  # fmt: skip


def add_user(site, name, role="user", **values):
    """An account with PASSWORD; returns the user."""
    password = site.passwords.hash_now(PASSWORD)
    user = site.database.write_now(accounts.add_user, name, password, role)
    if values:
        site.database.write_now(accounts.change_user, user.id, **values)
    return user


class Running:
    """A site that runs.

    Attributes:
        url: http://127.0.0.1:PORT
    """

    def __init__(self, site, *tasks, drain_s=5.0):
        self.site, self._tasks = site, tasks
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = HttpServer(
            make_site_app(site), site.service, drain_s=drain_s,
            busy=lambda: bool(site.answers.running),
        )  # fmt: skip
        self.problem = None
        self._clients = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), self.problem
            time.sleep(0.005)

    def _run(self):
        async def serve():
            await self.site.start(*self._tasks)
            try:
                await self.server.serve(sockets=[self._listener])
            finally:
                await self.site.close()

        asyncio.run(serve())

    def client(self, name=None, **options):
        """A visitor, or the user of this name with PASSWORD."""
        client = Client(self.url, **options)
        self._clients.append(client)
        if name is not None:
            client.login(name)
        return client

    def stop(self):
        for client in self._clients:
            client.close()
        self.server.handle_exit(15, None)
        self._thread.join(40)
        self._listener.close()
        assert not self._thread.is_alive()


class Client:
    """A browser as far as a site sees it: cookies, and the CSRF token of its page."""

    def __init__(self, url, **options):
        self.http = httpx2.Client(base_url=url, timeout=60, **options)
        self._load("/login")

    def _load(self, path):
        page = self.http.get(path, follow_redirects=True)
        self.csrf = re.search(r'name="csrf-token" content="([0-9a-f]+)"', page.text)[1]

    def login(self, name, password=PASSWORD):
        answer = self.post("/api/login", name=name, password=password)
        assert answer.status_code == 200, answer.text
        self._load("/")
        return answer

    def request(self, method, path, **options):
        headers = {"X-CSRF-Token": self.csrf, **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **body):
        return self.request("POST", path, json=body)

    def patch(self, path, **body):
        return self.request("PATCH", path, json=body)

    def delete(self, path):
        return self.request("DELETE", path)

    def json(self, method, path, **options):
        """The JSON of an answer that must be good."""
        answer = self.request(method, path, **options)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.json()

    @contextlib.contextmanager
    def stream(self, method, path, headers=None, **body):
        """Events of a stream as (number, name, data)."""
        headers = {"X-CSRF-Token": self.csrf, **(headers or {})}
        options = {"json": body} if method == "POST" else {}
        with self.http.stream(method, path, headers=headers, **options) as response:
            if response.status_code != 200:
                raise AssertionError((response.status_code, response.read()))
            assert response.headers["content-type"].startswith("text/event-stream")
            yield events(response)

    def chat(self, **body):
        """All events of an answer."""
        with self.stream("POST", "/api/chat", **body) as coming:
            return list(coming)

    def close(self):
        self.http.close()


def events(response):
    number, name = None, None
    for line in response.iter_lines():
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield number, name, json.loads(line[6:])


def until(condition, seconds=30):
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def text_of(coming):
    """Text that events showed."""
    return "".join(data["text"] for _, name, data in coming if name == "delta")


def apply(shown, change):
    """Does with a change what the page does: JavaScript counts UTF-16 units."""
    first = change["from"]
    kept = shown[first] if first < len(shown) else ""
    head = kept.encode("utf-16-le")[: 2 * change["keep"]].decode("utf-16-le")
    html = list(change["html"])
    if html:
        html[0] = head + html[0]
    return shown[:first] + html


@contextlib.contextmanager
def running(site, *tasks, **options):
    server = Running(site, *tasks, **options)
    try:
        yield server
    finally:
        server.stop()
