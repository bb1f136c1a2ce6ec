"""Faults: the process killed at every write, and a database that is locked, full or gone.

Whatever happens, text that was shown is there afterwards, once, and how an answer ended is said.
"""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

import chat_site
from chat_site import add_user, text_of, until
from gaia.errors import ConfigError
from gchat.serve.site import migrating
from gchat.serve.site.database import Database
from gchat.serve.site.messages import INTERRUPTED
from gchat.serve.site.only_one import only_one
from tests.fakes import openai_api

ROOT = Path(__file__).parents[4]
WORDS = " ".join(f"word{i}" for i in range(12))
# Runs a site in a process that kills itself at a given statement or commit of a writing
# transaction, counted from when the file `armed` is there.
KILLED = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import chat_site
from sqlalchemy import event
url, upstream, folder = sys.argv[1:4]

def wait_for(place):  # a process for each boundary, forked from one that has imported everything
    while not os.path.exists(place):
        time.sleep(0.01)

def serve(boundary, late, name):
    site = chat_site.make_site(url.replace("NAME", name), upstream)
    counted = [0]

    def at(connection, cursor=None, statement="", *args):
        if connection.get_execution_options().get("gchat_writes") and os.path.exists(armed):
            if late and not counted[0] and "INTO pieces" not in statement:
                return
            counted[0] += 1
            if counted[0] == boundary:
                os.kill(os.getpid(), signal.SIGKILL)

    armed = f"{{folder}}/{{name}}.armed"
    event.listen(site.database.engine, "before_cursor_execute", at)
    event.listen(site.database.engine, "commit", at)

    running = chat_site.Running(site)
    with open(f"{{folder}}/{{name}}.port.part", "w") as file:
        file.write(running.url)
    os.rename(file.name, f"{{folder}}/{{name}}.port")
    wait_for(f"{{folder}}/{{name}}.over")
    running.stop()

for line in sys.stdin:
    boundary, late, name = line.split()
    if os.fork() == 0:
        serve(int(boundary), late == "late", name)
        os._exit(0)
"""


class Killer:
    """Forks sites that die at a boundary."""

    def __init__(self, folder, upstream):
        self.folder = folder
        command = [sys.executable, "-c", KILLED.format(root=str(ROOT)),
                   f"sqlite:///{folder}/NAME.db", upstream, str(folder)]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def start(self, boundary, late, name):
        self.process.stdin.write(f"{boundary} {'late' if late else 'early'} {name}\n")
        self.process.stdin.flush()
        place = self.folder / f"{name}.port"
        end = time.monotonic() + 60
        while not place.exists():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)
        return place.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def slow_upstream():
    with openai_api.serve() as made:
        made.reply = lambda body: WORDS
        made.delay_s = 0.015
        yield made


@pytest.fixture(scope="module")
def killer(tmp_path_factory, slow_upstream):
    made = Killer(tmp_path_factory.mktemp("killed"), slow_upstream.url)
    yield made
    made.close()


def killed_at(killer, upstream, boundary, late=False):
    """Asks a site that dies at a boundary; checks what is left. False where it lived on.

    Args:
        boundary: number of the statement or commit.
        late: counted from the first piece of the answer on, not from the question.
    """
    name = f"k{boundary}{late}"
    url = f"sqlite:///{killer.folder}/{name}.db"
    site = chat_site.make_site(url, upstream.url)
    add_user(site, "alice")
    site.database.close(), site.passwords.close()
    client = chat_site.Client(killer.start(boundary, late, name))
    client.login("alice")
    made = client.json("POST", "/api/conversations", json={"title": "t"})["id"]
    (killer.folder / f"{name}.armed").touch()
    seen, lived = [], False
    try:
        with client.stream(
            "POST", "/api/chat", conversationId=made, content="a question"
        ) as coming:
            for one in coming:
                seen.append(one)
        lived = True
    except httpx2.HTTPError:
        pass
    client.close()
    (killer.folder / f"{name}.armed").unlink()
    (killer.folder / f"{name}.over").touch()
    assert not lived or seen[-1][1] == "end"
    if lived:
        return False
    site = chat_site.make_site(url, upstream.url)
    with chat_site.running(site) as place:
        there = place.client("alice").json("GET", f"/api/conversations/{made}")
        found = place.client("alice").json("GET", "/api/conversations?search=question")["items"]
    roles = [message["role"] for message in there["messages"]]
    assert roles in ([], ["user", "assistant"])  # both or neither, and none twice
    assert bool(found) == bool(roles)
    if seen:
        assert roles
        answer = there["messages"][1]
        assert answer["content"].startswith(text_of(seen)) and WORDS.startswith(answer["content"])
        assert (answer["status"], answer["error"]) in (("failed", INTERRUPTED), ("done", None))
        assert answer["status"] == "failed" or answer["content"] == WORDS
    return True


# Before and after the second piece is committed, and within the question's own transaction.
@pytest.mark.parametrize(("boundary", "late"), [(9, False), (3, True), (4, True)])
def test_a_kill_while_an_answer_streams_loses_nothing_that_was_shown(
    killer, slow_upstream, boundary, late
):
    assert killed_at(killer, slow_upstream, boundary, late)


@pytest.mark.slow
def test_a_kill_at_every_boundary(killer, slow_upstream):
    """Until the answer is through: every statement and commit of it was one to die at."""
    boundary = 1
    while killed_at(killer, slow_upstream, boundary):
        boundary += 1
    print(f"killed at {boundary - 1} boundaries")
    assert boundary > 30


# ── A database that does not do its work ────────────────────────────────────────────────────────


@pytest.fixture
def quick(monkeypatch):
    """Transactions that wait a tenth of a second for a lock."""
    from gchat.serve.site import database

    monkeypatch.setattr(database, "_WAIT_S", 0.1)


def begin(client, wait=True, **body):
    """(events, list that fills up, thread) of an answer that is being written."""
    seen = []

    def follow():
        with client.stream("POST", "/api/chat", **body) as coming:
            seen.extend([next(coming)])
            for one in coming:
                seen.append(one)

    thread = threading.Thread(target=follow)
    thread.start()
    if wait:
        until(lambda: len(seen) >= 3)
    return seen, thread


def test_a_locked_database_holds_answers_back_until_it_is_free(tmp_path, slow_upstream, quick):
    file = tmp_path / "site.db"
    site = chat_site.make_site(f"sqlite:///{file}", slow_upstream.url)
    add_user(site, "alice")
    with chat_site.running(site) as place:
        client, other = place.client("alice"), place.client("alice")
        key = other.json("POST", "/api/keys", json={})["key"]
        site.database.write_now(
            lambda c: c.exec_driver_sql("UPDATE sessions SET seen_at = seen_at - 3600")
        )
        seen, thread = begin(client, content="x")
        lock = sqlite3.connect(file, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        until(lambda: site.journal.failing_since is not None)
        shown = len(seen)
        refused = other.post("/api/conversations", title="t")
        assert refused.status_code == 503 and "locked" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "5"
        # Reading goes on, also where a use is to be noted, and nothing is shown that is not saved.
        bearer = {"Authorization": f"Bearer {key}"}
        assert other.http.get("/v1/models", headers=bearer).status_code == 200
        listed = other.json("GET", "/api/conversations")["items"]
        assert len(listed) == 1 and len(seen) == shown
        lock.execute("ROLLBACK")
        lock.close()
        thread.join(30)
        assert seen[-1][1] == "end" and text_of(seen) == WORDS
        assert other.post("/api/conversations", title="t").status_code == 200
        until(lambda: other.json("GET", "/api/keys")["items"][0]["last_used"] is not None)


def test_a_database_that_stays_locked_ends_answers_which_are_saved_later(
    tmp_path, slow_upstream, quick
):
    file = tmp_path / "site.db"
    site = chat_site.make_site(f"sqlite:///{file}", slow_upstream.url, patience_s=0.3)
    add_user(site, "alice")
    with chat_site.running(site) as place:
        client = place.client("alice")
        slow_upstream.delay_s = 0.2  # the answer is not through by then
        seen, thread = begin(client, content="x")
        lock = sqlite3.connect(file, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        thread.join(30)
        slow_upstream.delay_s = 0.015
        assert seen[-1][1] == "error" and "locked" in seen[-1][2]["message"]
        lock.execute("ROLLBACK")
        lock.close()
        until(lambda: site.journal.failing_since is None)
        made = seen[0][2]["conversationId"]
        answer = client.json("GET", f"/api/conversations/{made}")["messages"][-1]
        assert answer["status"] == "failed" and "locked" in answer["error"]
        assert answer["content"].startswith(text_of(seen)) and WORDS.startswith(answer["content"])


def test_an_answer_that_cannot_be_saved_spoils_no_other(tmp_path, slow_upstream, monkeypatch):
    from gchat.serve.site import messages

    plain = messages.end_answer

    def picky(c, user_id, message_id, **values):
        if values["content"].startswith("bad"):
            raise ValueError("no database takes this")
        plain(c, user_id, message_id, **values)

    site = chat_site.make_site(f"sqlite:///{tmp_path}/site.db", slow_upstream.url)
    add_user(site, "alice")
    reply, slow_upstream.reply = slow_upstream.reply, lambda body: body["messages"][-1]["content"]
    monkeypatch.setattr(messages, "end_answer", picky)
    try:
        with chat_site.running(site) as place:
            client = place.client("alice")
            good, good_thread = begin(client, False, content="good words one two three")
            bad, bad_thread = begin(place.client("alice"), False, content="bad words one two three")
            good_thread.join(30), bad_thread.join(30)
            assert good[-1][1] == "end" and text_of(good) == "good words one two three"
            assert bad[-1][1] == "error" and "could not be saved" in bad[-1][2]["message"]
            monkeypatch.undo()
            assert client.chat(content="good again")[-1][1] == "end"
    finally:
        slow_upstream.reply = reply


@pytest.mark.slow  # it mounts a file system
def test_a_full_disk_is_told_and_recovers(tmp_path, slow_upstream):
    from disks import small_disk

    with small_disk(tmp_path / "disk", "8m") as disk:
        site = chat_site.make_site(f"sqlite:///{disk}/site.db", slow_upstream.url)
        add_user(site, "alice")
        with chat_site.running(site) as place:
            client = place.client("alice")
            seen, thread = begin(client, content="x")
            filler = disk / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(b"x" * 4096):  # beside the site, which writes too
                    pass
            until(lambda: site.journal.failing_since is not None)
            refused = place.client().post("/api/login", name="alice", password=chat_site.PASSWORD)
            assert refused.status_code == 503 and "full" in refused.json()["error"]["message"]
            time.sleep(10)
            filler.unlink()
            thread.join(30)
            assert seen[-1][1] == "end" and text_of(seen) == WORDS
            assert place.client("alice").get("/api/me").status_code == 200


# ── Starts and ends ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("users", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_restart_while_users_stream(tmp_path, slow_upstream, users):
    url = f"sqlite:///{tmp_path}/site.db"
    site = chat_site.make_site(url, slow_upstream.url)
    for i in range(users):
        add_user(site, f"user{i}")
    slow_upstream.delay_s = 0.3 if users < 10 else 2.0  # no answer is through by then
    try:
        with chat_site.running(site, drain_s=0.3) as place:
            clients = [place.client(f"user{i}") for i in range(users)]
            running = [begin(one, False, content=f"I am {i}") for i, one in enumerate(clients)]
            until(lambda: all(len(seen) >= 2 for seen, _ in running))
            assert len(site.answers.running) == users
            assert place.client().http.get("/health").status_code == 200
            place.server.handle_exit(signal.SIGTERM, None)
            for _, thread in running:
                thread.join(30)
    finally:
        slow_upstream.delay_s = 0.015
    with chat_site.running(chat_site.make_site(url, slow_upstream.url)) as place:
        for i, (seen, _) in enumerate(running):
            assert seen[-1][1] == "error" and "shutting down" in seen[-1][2]["message"]
            client = place.client(f"user{i}")
            (one,) = client.json("GET", "/api/conversations")["items"]
            asked, answer = client.json("GET", f"/api/conversations/{one['id']}")["messages"]
            assert asked["content"] == f"I am {i}" and answer["status"] == "failed"
            assert answer["content"].startswith(text_of(seen))
            again = client.chat(regenerate=answer["id"])
            assert again[-1][1] == "end" and text_of(again) == WORDS


@pytest.mark.parametrize("drain_s", [20.0, 0.1])
def test_an_answer_without_a_reader_has_the_same_time_to_end(tmp_path, slow_upstream, drain_s):
    """Its tab is closed; the server is told to stop; the answer goes on until the time is over."""
    url = f"sqlite:///{tmp_path}/site.db"
    site = chat_site.make_site(url, slow_upstream.url)
    add_user(site, "alice")
    slow_upstream.delay_s = 0.05 if drain_s > 1 else 2.0
    try:
        with chat_site.running(site, drain_s=drain_s) as place:
            client = place.client("alice")
            with client.stream("POST", "/api/chat", content="x") as coming:
                made = next(coming)[2]["conversationId"]
            client.close()
            until(lambda: len(site.answers.running) == 1)
    finally:
        slow_upstream.delay_s = 0.015
    with chat_site.running(chat_site.make_site(url, slow_upstream.url)) as place:
        there = place.client("alice").json("GET", f"/api/conversations/{made}")
    answer = there["messages"][-1]
    if drain_s > 1:
        assert (answer["status"], answer["content"]) == ("done", WORDS)
    else:
        assert answer["status"] == "failed" and "shutting down" in answer["error"]


def test_a_database_of_a_newer_version_or_another_program_is_refused(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/site.db")
    with pytest.raises(ConfigError, match="holds no site"):
        migrating.check(database)
    migrating.upgrade(database)
    migrating.check(database)
    before = (tmp_path / "site.db").stat().st_mode
    assert before & 0o077 == 0  # only its owner reads it
    database.write_now(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num='9999'"))
    for one in (migrating.upgrade, migrating.check):
        with pytest.raises(ConfigError, match="newer version") as raised:
            one(database)
        assert "\n" not in str(raised.value) and "9999" in str(raised.value)
    database.close()
    other = Database(f"sqlite:///{tmp_path}/other.db")
    other.write_now(lambda c: c.exec_driver_sql("CREATE TABLE mine (x)"))
    with pytest.raises(ConfigError, match="other tables"):
        migrating.upgrade(other)
    other.close()
    (tmp_path / "text.db").write_text("no database at all, " * 100)
    broken = Database(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(ConfigError, match="damaged"):
        migrating.upgrade(broken)
    broken.close()


def test_one_server_for_a_database(tmp_path):
    one, two = (Database(f"sqlite:///{tmp_path}/site.db") for _ in range(2))
    with only_one(one), pytest.raises(ConfigError, match="another gchat web"), only_one(two):
        pass
    with only_one(two):
        pass
    one.close(), two.close()


def test_the_migrations_make_the_tables_that_the_program_reads(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from gchat.serve.site.tables import metadata

    database = Database(f"sqlite:///{tmp_path}/site.db")
    migrating.upgrade(database)

    def differences(c):
        def ours(name, kind, parents):
            return not (kind == "table" and name.startswith("search_words"))

        context = MigrationContext.configure(c, opts={"include_name": ours})
        return compare_metadata(context, metadata)

    assert database.now(differences) == []
    database.close()
