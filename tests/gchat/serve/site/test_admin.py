"""Administration by page and by command, ratings for `gchat dpo`, and the command itself."""

import contextlib
import json
import re
import shlex
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

import chat_nginx
import chat_site
from chat_site import PASSWORD, add_user
from gaia.config import parse
from gchat.__main__ import main
from gchat.posttrain.pairs import read_pairs
from gchat.serve.site import admin_command, migrating, samples
from gchat.serve.site.command import _hints
from gchat.serve.site.database import Database
from gchat.serve.site.options import Web
from gchat.serve.site.passwords import Passwords
from tests.fakes import openai_api

ROOT = Path(__file__).parents[4]
COUNTING = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count(), "objects at rest", file=sys.stderr))
from gchat.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def command(place, capsys, monkeypatch):
    """Runs `gchat web admin …` on the database of the running site; (status, out, err)."""
    monkeypatch.setattr(admin_command, "Passwords", partial(Passwords, **chat_site.CHEAP))

    def run(*args):
        status = main(
            ["web", "admin", *args, "--database", f"sqlite:///{place.site.database.file}"]
        )
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_users_by_command_beside_the_running_server(place, command, monkeypatch):
    monkeypatch.setenv("GCHAT_PASSWORD", PASSWORD)
    assert command("add-user", "--name", "ned", "--role", "user")[:2] == (
        0,
        "ned: made, role user\n",
    )
    again = command("add-user", "--name", "NED")
    assert again[0] == 2 and "name is taken" in again[2] and len(again[2].splitlines()) == 1
    ned = place.client("ned")
    key = ned.json("POST", "/api/keys", json={})["key"]
    bearer = {"Authorization": f"Bearer {key}"}
    assert ned.http.get("/v1/models", headers=bearer).status_code == 200
    assert command("disable", "--name", "ned")[0] == 0
    assert ned.get("/api/me").status_code == 401
    assert ned.http.get("/v1/models", headers=bearer).status_code == 401
    assert command("enable", "--name", "ned")[0] == 0
    assert command("quota", "--name", "ned", "--tokens", "77", "--json")[1] == (
        '{"name": "ned", "quota": 77}\n'
    )
    monkeypatch.setenv("GCHAT_PASSWORD", "a different password")
    assert command("reset-password", "--name", "ned")[0] == 0
    ned = place.client()
    ned.login("ned", "a different password")
    assert ned.get("/api/me").json()["quota"] == 77
    assert command("role", "--name", "ned", "--role", "admin")[0] == 0
    assert ned.get("/api/me").status_code == 401  # another role, another session
    rows = json.loads(command("users", "--json")[1])
    assert {row["name"]: row["role"] for row in rows}["ned"] == "admin"
    said = command("audit", "--limit", "3")[1]
    assert "change user ned role admin" in said and "reset password ned" in said
    assert PASSWORD not in said and "different" not in said


def test_no_name_forges_a_line_or_moves_the_cursor(place, command):
    bob = place.client("bob")
    bob.json("POST", "/api/keys", json={"name": "k\n2026-01-01 00:00  root: x\x1b[2J\u202e"})
    status, said, _ = command("audit", "--limit", "1")
    assert status == 0 and said.endswith("make key k\\n2026-01-01 00:00  root: x\\x1b[2J\\u202e \n")
    assert json.loads(command("audit", "--limit", "1", "--json")[1])[0]["target"].startswith("k\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["disable", "--name", "nobody"], "no user 'nobody'"),
        (["quota", "--name", "alice", "--tokens", "-1"], "--tokens is -1"),
        (["invite", "--days", "0"], "--days"),
        (["invitations", "--withdraw", "x"], "no such invitation"),
        (["audit", "--limit", "0"], "--limit is 0"),
        (["add-user", "--name", "a b"], "a name has letters"),
        (["disable"], "--name is left out"),
        (["role", "--name", "alice"], "--role is left out"),
    ],
)
def test_wrong_wishes_of_administrators(command, monkeypatch, args, said):
    monkeypatch.setenv("GCHAT_PASSWORD", PASSWORD)
    status, out, err = command(*args)
    assert status == 2 and not out and said in err and len(err.splitlines()) == 1


def test_commands_that_texts_show_are_commands(capsys, tmp_path):
    database = Database(f"sqlite:///{tmp_path}/site.db")
    migrating.upgrade(database)
    _hints(Web(), database)
    database.close()
    shown = [capsys.readouterr().err, Web.__doc__, admin_command.USAGE]
    shown += [command.__doc__ for command in admin_command.VERBS.values()]
    commands = re.findall(r"gchat web admin ([a-z].*?)(?:  |`|\.?$)", "\n".join(shown), re.M)
    assert len(commands) >= 6
    for verb, *words in map(shlex.split, commands):
        parse(admin_command.VERBS[verb], words).check()


def test_a_weak_password_and_a_missing_database(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GCHAT_PASSWORD", "short")
    place = f"sqlite:///{tmp_path}/new.db"
    assert main(["web", "admin", "add-user", "--name", "ann", "--database", place]) == 2
    assert "at least 10" in capsys.readouterr().err
    assert main(["web", "admin", "users", "--database", place]) == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setenv("GCHAT_PASSWORD", PASSWORD)
    assert main(["web", "admin", "add-user", "--name", "a b", "--database", place]) == 2
    assert "a name has letters" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_last_administrator_stays(place, root):
    users = {one["name"]: one for one in root.json("GET", "/api/admin/users")["items"]}
    others = [u for n, u in users.items() if u["role"] == "admin" and n != "root"]
    for one in others:
        root.patch(f"/api/admin/users/{one['id']}", role="user")
    for changed in ({"disabled": True}, {"role": "user"}):
        answer = root.patch(f"/api/admin/users/{users['root']['id']}", **changed)
        assert answer.status_code == 409 and "nobody" in answer.json()["error"]["message"]
    assert root.get("/api/me").json()["role"] == "admin"


def test_ratings_become_pairs_that_dpo_reads(place, alice, command, tmp_path, upstream):
    first = alice.chat(content="Which is better?")
    made, bad = first[0][2]["conversationId"], first[-1][2]["message"]
    upstream.reply = lambda body: "This one."
    good = alice.chat(conversationId=made, regenerate=bad["id"])[-1][2]["message"]
    del upstream.reply
    alice.chat(content="never rated")
    for message, value in ((bad, -1), (good, 1)):
        assert alice.post(f"/api/messages/{message['id']}/rating", value=value).status_code == 200
    asked = first[0][2]["userMessage"]["id"]
    assert alice.post(f"/api/messages/{asked}/rating", value=1).status_code == 409
    out = tmp_path / "pairs.jsonl"
    assert command("preferences", "--out", str(out))[0] == 0
    ((chosen, rejected),) = read_pairs([str(out)])
    assert [m.content for m in chosen.messages] == ["Which is better?", "This one."]
    assert rejected.messages[-1].content == "You said: Which is better?"
    alice.post(f"/api/messages/{bad['id']}/rating", value=0)
    assert command("preferences")[1] == ""


def test_status_and_charts_show_what_happened(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(samples, "INTERVAL_S", 1.05)  # a sample a second
    site = chat_site.make_site(f"sqlite:///{tmp_path}/site.db", upstream.url)
    add_user(site, "root", "admin")
    with chat_site.running(site, samples.record) as place:
        root = place.client("root")
        root.chat(content="one two three")
        upstream.faults.append("overloaded")
        root.chat(content="x")
        upstream.faults.clear()
        now = root.json("GET", "/api/admin/status")
        assert now["models"][0]["id"] == "small" and now["models"][0]["state"] == "ready"
        assert now["users"] == 1 and now["errors"] == 1 and now["disk"]["database"] > 0

        def charted():
            made = root.json("GET", "/api/admin/series")
            numbers = {name: [x or 0 for x in row] for name, row in made["series"].items()}
            return sum(numbers["tokens_per_s"]) > 0 and sum(numbers["errors"]) == 1 and max(
                numbers["latency_p95_ms"]) > 0  # fmt: skip

        chat_site.until(charted)
        assert root.json("GET", "/api/me")["used"] > 0
        place_of = f"sqlite:///{tmp_path}/site.db"
        assert main(["web", "admin", "status", "--json", "--database", place_of]) == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "neither --run nor --upstream"),
        (["--single-user", "--host", "0.0.0.0"], "everybody would be let in"),
        (["--single-user", "--registration", "open"], "no effect"),
        (["--search", "searxng"], "--search-url"),
        (["--context", "1"], "--context is 1"),
        (["--patience", "0"], "--patience is 0"),
        (["--database", "mysql://x/y"], "'mysql'"),
        (["--database", "sqlite:///no/such/folder/x.db"], "No such file"),
    ],
)
def test_options_that_cannot_work(capsys, monkeypatch, tmp_path, args, said):
    monkeypatch.chdir(tmp_path)
    upstream = [] if said.startswith("neither") else ["--upstream", "http://127.0.0.1:1/v1"]
    assert main(["web", *upstream, *args, "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not any(tmp_path.iterdir())


@pytest.fixture
def foreign_tls(tmp_path_factory):
    """Address of a TLS server whose certificate nobody has signed but itself."""
    folder = tmp_path_factory.mktemp("tls")
    chat_nginx.certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "fullchain.pem", folder / "privkey.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://localhost:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--run", "no/such/run"], "no/such/run"),
        (["--upstream", "http://127.0.0.1:1/v1"], "127.0.0.1:1"),
        (["--upstream", "TLS"], "certificate"),
        (["--upstream", "http://127.0.0.1:1/v1", "--search", "brave"], "brave"),
        (["--upstream", "UPSTREAM", "--port", "TAKEN"], "cannot listen"),
    ],
    ids=["run", "upstream", "certificate", "key", "port"],
)
def test_a_start_that_comes_to_nothing_leaves_no_database(
    capfd, tmp_path, upstream, place, foreign_tls, args, said
):
    given = {"TLS": foreign_tls, "UPSTREAM": upstream.url, "TAKEN": str(place.port)}
    args = ["web", "--port", "0", *(given.get(one, one) for one in args)]
    assert main([*args, "--database", f"sqlite:///{tmp_path}/site.db"]) in (1, 2)
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line and not any(tmp_path.iterdir())


def test_a_database_of_another_program_is_refused_as_it_was(capfd, tmp_path, monkeypatch):
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE mine (x)")
    before = file.read_bytes()
    args = ["web", "--upstream", "http://127.0.0.1:1/v1", "--port", "0"]
    monkeypatch.setenv("GCHAT_PASSWORD", PASSWORD)
    for verb in (args, ["web", "admin", "users"], ["web", "admin", "add-user", "--name", "ann"]):
        assert main([*verb, "--database", f"sqlite:///{file}"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "other" in line and file.read_bytes() == before
        assert [one.name for one in tmp_path.iterdir()] == ["other.db"]


def test_a_single_user_is_reached_as_localhost_only(tmp_path, upstream):
    from gchat.serve.site.command import _single_user

    site = chat_site.make_site(f"sqlite:///{tmp_path}/site.db", upstream.url)
    user_id = site.database.write_now(_single_user)
    assert site.database.write_now(_single_user) == user_id
    object.__setattr__(site.rules, "single_user", user_id)
    with chat_site.running(site) as place:
        client = place.client()
        client._load("/")
        assert client.chat(content="hello")[-1][1] == "end"
        for host in ("evil.example", f"evil.example:{place.port}", "127.0.0.1.evil.example"):
            assert client.get("/api/conversations", headers={"Host": host}).status_code == 403
        assert place.client().post("/api/login", name="me", password="x").status_code == 409


@pytest.mark.slow
def test_the_command_from_its_start_to_its_end(tmp_path, upstream):
    """A process: one line, an account by command, a question, SIGTERM, status 0."""
    place = f"sqlite:///{tmp_path}/site.db"
    environment = {"PATH": "/usr/bin:/bin", "GCHAT_PASSWORD": PASSWORD, "HOME": str(tmp_path)}
    gchat = [sys.executable, "-m", "gchat", "web"]
    add = [*gchat, "admin", "add-user", "--name", "root", "--role", "admin", "--database", place]
    subprocess.run(add, check=True, cwd=ROOT, env=environment)
    args = [sys.executable, "-c", COUNTING, "web",
            "--upstream", upstream.url, "--port", "0", "--database", place]  # fmt: skip
    server = subprocess.Popen(args, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline()
        assert line.startswith("gchat web: http://127.0.0.1:"), line
        url = line.split()[-1].rstrip("/")
        assert urllib.request.urlopen(f"{url}/health").status == 200
        second = subprocess.run(args, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert second.returncode == 2 and "another gchat web" in second.stderr
        client = chat_site.Client(url)
        client.login("root")
        assert client.chat(content="hello")[-1][1] == "end"
        client.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
        said = server.stderr.read()
        assert "gchat web: ended" in said
        # Full collections over all that is loaded would stop every answer.
        assert int(re.search(r"(\d+) objects at rest", said)[1]) > 100_000
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_keeps_what_was_shown(tmp_path):
    with (
        openai_api.serve(delay_s=0.1, tokens=1000) as slow,
        chat_nginx.web(tmp_path, "--upstream", slow.url) as (port, database, server),
    ):
        slow.reply = lambda body: "word " * 600
        chat_nginx.add_user(database, "ann")
        client = chat_site.Client(f"http://127.0.0.1:{port}")
        client.login("ann", chat_nginx.PASSWORD)
        with client.stream("POST", "/api/chat", content="x") as coming:
            seen = [next(coming) for _ in range(5)]
            server.send_signal(signal.SIGINT)
            chat_site.until(lambda: client.http.get("/health").status_code == 503)
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx2.RemoteProtocolError):
                seen += coming
        client.close()
        assert server.wait(20) == 0
    said = (tmp_path / "web.log").read_text()
    assert "Traceback" not in said and said.endswith("gchat web: ended\n")
    with contextlib.closing(sqlite3.connect(tmp_path / "site.db")) as kept:
        rows = kept.execute("SELECT content, status FROM messages WHERE role = 'assistant'")
        ((content, status),) = rows.fetchall()
    assert content.startswith(chat_site.text_of(seen)) and status == "failed"
