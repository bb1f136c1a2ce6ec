"""The site on a real PostgreSQL: the same tables, search, streams; and a server that goes away."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import chat_site
import postgresql
from chat_site import add_user, text_of
from gaia.errors import ConfigError
from gchat.serve.site import migrating
from gchat.serve.site.database import Database
from gchat.serve.site.only_one import only_one
from tests.fakes import openai_api

pytestmark = pytest.mark.slow
BACKUP = Path(__file__).resolve().parents[4] / "deploy/chat/backup.py"
WORDS = " ".join(f"word{i}" for i in range(14))


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg")
    with postgresql.serve() as made:
        yield made


@pytest.fixture
def site(server, upstream):
    server.empty()
    made = chat_site.make_site(server.url, upstream.url, registration="open")
    for name, role in (("alice", "user"), ("bob", "user"), ("root", "admin")):
        add_user(made, name, role)
    return made


def test_a_conversation_from_end_to_end(site, upstream):
    with chat_site.running(site) as place:
        alice, bob, root = (place.client(name) for name in ("alice", "bob", "root"))
        first = alice.chat(content="Straße nach Köln\x00")
        made = first[0][2]["conversationId"]
        alice.chat(conversationId=made, regenerate=first[-1][2]["message"]["id"])
        for query, count in (("koln", 1), ("stras", 1), ("wien", 0), ("' OR 1=1", 0), ("!&|", 0)):
            items = alice.json("GET", "/api/conversations", params={"search": query})["items"]
            assert len(items) == count, query
        assert bob.json("GET", "/api/conversations?search=koln")["items"] == []
        there = alice.json("GET", f"/api/conversations/{made}")
        assert len(there["messages"][1]["siblings"]) == 2
        copy = bob.json("POST", "/api/import",
                        json=alice.json("GET", f"/api/conversations/{made}/export"))  # fmt: skip
        assert bob.delete(f"/api/conversations/{copy['id']}").status_code == 200
        assert root.json("GET", "/api/admin/users")["items"][0]["name"] == "alice"
        taken = place.client().post("/api/register", name="ALICE", password=chat_site.PASSWORD)
        assert taken.status_code == 409
        pages, before = [], ""
        for i in range(5):
            alice.json("POST", "/api/conversations", json={"title": f"t{i}"})
        while before is not None:
            page = alice.json("GET", f"/api/conversations?limit=2&before={before}")
            pages += [one["id"] for one in page["items"]]
            before = page["next"]
        assert len(pages) == len(set(pages)) == 6


def test_the_tables_are_those_of_the_program(server):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from gchat.serve.site.tables import metadata

    server.empty()
    database = Database(server.url)
    migrating.upgrade(database)

    def differences(c):
        return compare_metadata(MigrationContext.configure(c), metadata)

    # The index of words has a type of PostgreSQL's own, which the program writes by itself.
    kinds = [(one[0], getattr(one[-1], "name", "")) for one in database.now(differences)]
    assert sorted(kinds) == [("remove_column", "words"), ("remove_index", "ix_search_rows_words")]
    assert "word@" not in database.shown
    other = Database(server.url)
    with only_one(database), pytest.raises(ConfigError, match="another gchat web"), only_one(other):
        pass
    with only_one(other):
        pass
    database.close(), other.close()


def test_a_database_that_goes_away_for_ten_seconds(server, site):
    site.database.close(), site.passwords.close()
    server.empty()
    with openai_api.serve() as slow:
        slow.reply = lambda body: WORDS
        slow.delay_s = 0.3
        site = chat_site.make_site(server.url, slow.url)
        add_user(site, "alice")
        with chat_site.running(site) as place:
            alice, other, seen = place.client("alice"), place.client("alice"), []

            def follow():
                with alice.stream("POST", "/api/chat", content="x") as coming:
                    seen.extend(coming)

            thread = threading.Thread(target=follow)
            thread.start()
            chat_site.until(lambda: site.answers.running)
            time.sleep(0.5)
            server.stop()  # as a crash: connections break
            refused = other.get("/api/conversations")
            assert refused.status_code == 503
            assert refused.json()["error"]["message"].startswith("the database cannot be reached")
            time.sleep(10)
            server.start()
            thread.join(60)
            assert seen[-1][1] == "end" and text_of(seen) == WORDS
            (one,) = other.json("GET", "/api/conversations")["items"]
            asked, answer = other.json("GET", f"/api/conversations/{one['id']}")["messages"]
            assert (asked["content"], answer["content"]) == ("x", WORDS)


def backup(server, *words):
    """deploy/chat/backup.py as a process, with PostgreSQL's own programs."""
    environment = os.environ | {"SITE": server.url, "PATH": f"{server.bin}:/usr/bin:/bin"}
    return subprocess.run([sys.executable, BACKUP, *words], env=environment, capture_output=True,
                          text=True, timeout=120)  # fmt: skip


def whole(client):
    """All conversations of a user with all their branches."""
    listed = client.json("GET", "/api/conversations")["items"]
    return {one["id"]: client.json("GET", f"/api/conversations/{one['id']}/export")
            for one in listed}  # fmt: skip


def test_a_backup_made_under_writes_is_restored(server, site, upstream, tmp_path):
    """pg_dump and pg_restore themselves: words, branches, sessions come back, later text goes."""
    with chat_site.running(site) as place:
        alice, bob, ended = place.client("alice"), place.client("bob"), threading.Event()
        made = alice.chat(content="Straße nach Köln")[0][2]["conversationId"]
        answer = alice.json("GET", f"/api/conversations/{made}")["messages"][-1]["id"]
        alice.chat(conversationId=made, regenerate=answer)
        before, session = whole(alice), dict(alice.http.cookies)

        def write():
            while not ended.is_set():
                bob.chat(content="written beside the backup")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            saved = backup(server, "save", "env:SITE", str(tmp_path))
        finally:
            ended.set()
            writer.join()
        assert saved.returncode == 0, saved.stderr
        alice.delete(f"/api/conversations/{made}")
        alice.chat(content="after the backup")
        with only_one(site.database):
            refused = backup(server, "restore", saved.stdout.strip(), "env:SITE")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "a site runs on this database" in refused.stderr
    done = backup(server, "restore", saved.stdout.strip(), "env:SITE")
    assert done.returncode == 0, done.stderr
    kept = list(tmp_path.glob("before-*.dump"))
    assert len(kept) == 1 and str(kept[0]) in done.stdout
    assert backup(server, "restore", str(tmp_path / "none.dump"), "env:SITE").returncode == 2
    damaged = tmp_path / "site-damaged.dump"
    damaged.write_bytes(kept[0].read_bytes()[: kept[0].stat().st_size * 2 // 3])
    refused = backup(server, "restore", str(damaged), "env:SITE")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert sorted(tmp_path.glob("before-*")) == kept  # and nothing has changed:
    with chat_site.running(chat_site.make_site(server.url, upstream.url)) as place:
        alice = place.client()
        alice.http.cookies.update(session)  # of a session that is in the backup
        assert whole(alice) == before
        (one,) = alice.json("GET", "/api/conversations?search=koln")["items"]
        assert one["id"] == made
        assert alice.json("GET", "/api/conversations?search=after")["items"] == []
        for text in (one["content"] for body in whole(place.client("bob")).values()
                     for one in body["messages"] if one["role"] == "user"):  # fmt: skip
            assert text == "written beside the backup"
