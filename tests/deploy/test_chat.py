"""deploy/chat without containers: files by their schemas, nginx itself, backups while it runs."""

import contextlib
import gzip
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

import chat_nginx
from dockerfile import PINNED, Dockerfile

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy/chat"
DOCKERFILE = Dockerfile(DEPLOY / "Dockerfile")


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def backup():
    spec = importlib.util.spec_from_file_location("chat_backup", DEPLOY / "backup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_images_are_pinned_and_nothing_but_nginx_is_public():
    services = compose()["services"]
    assert PINNED.match(DOCKERFILE.values("FROM")[0])
    for name, service in services.items():
        assert PINNED.match(service["image"]) or service["image"] == "gaia-chat"
        assert (name == "nginx") == ("ports" in service)
        assert service.get("restart") == "unless-stopped" or service["profiles"] == ["tools"]
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            assert source.startswith("./") or source in compose()["volumes"]
        if service["image"] == "gaia-chat":
            assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("${GCHAT_BIND:-127.0.0.1}:") for port in services["nginx"]["ports"])
    assert compose()["networks"]["inside"] == {"internal": True}
    assert services["chat"]["networks"] == ["inside"]


def test_the_sites_options_are_options():
    """Whatever the files start, `gchat web` takes."""
    from gaia.config import parse
    from gchat.serve.site.options import Web

    entry = json.loads(DOCKERFILE.values("ENTRYPOINT")[0])[2:]
    service = compose()["services"]["chat"]
    inside = [str(word) for word in service["command"]]
    commands = [entry + json.loads(DOCKERFILE.values("CMD")[0])]
    commands.append(entry + [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in inside])
    unit = (DEPLOY / "gchat-web.service").read_text()
    plain = re.search(r"gchat web (.*)", unit.split("ExecStart=")[1])[1]
    options = re.search(r'^Environment="GCHAT_WEB_OPTIONS=([^"]+)"', unit, re.M)[1]
    commands.append(plain.replace("$GCHAT_WEB_OPTIONS", options).split())
    for command in commands:
        given = parse(Web, command)
        given.check()
        assert given.drain < int(re.search(r"TimeoutStopSec=(\d+)", unit)[1])
        assert given.registration in ("closed", "invitation")
    assert service["stop_grace_period"] == "45s"
    limit = re.search(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx.conf").read_text())[1]
    assert int(limit) > given.max_body_mib  # the site's own message, not nginx's page


def test_nginx_passes_events_as_they_come():
    text = (DEPLOY / "nginx.conf").read_text()
    streams = text.split("location ~ ^/(api/(chat|stream)|v1/) {")[1].split("}")[0]
    for line in ("proxy_buffering off;", "gzip off;", "proxy_read_timeout 600s;"):
        assert line in streams
    assert "text/event-stream" not in re.search(r"gzip_types ([^;]+);", text)[1]
    assert "application/json" not in re.search(r"gzip_types ([^;]+);", text)[1]
    assert "Strict-Transport-Security" in text and "proxy_http_version 1.1;" in text


def site_database(file, messages=50):
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT)")
    database.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, text TEXT)")
    database.executemany("INSERT INTO messages (text) VALUES (?)", [("x" * 500,)] * messages)
    database.commit()
    return database


def count(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT count(*), max(id) FROM messages").fetchone()


def test_a_backup_of_a_database_that_is_being_written(backup, tmp_path):
    file = tmp_path / "site.db"
    site_database(file, 20_000).close()  # a copy in steps would begin anew at each write
    ended = threading.Event()

    def write():
        database = sqlite3.connect(file, timeout=20)
        database.execute("PRAGMA synchronous=OFF")  # as often as can be
        while not ended.is_set():
            with database:
                database.execute("INSERT INTO messages (text) VALUES (?)", ("y" * 500,))
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while count(file)[0] <= 20_000:
            time.sleep(0.005)
        before = count(file)[0]
        save = [sys.executable, backup.__file__, "save", f"sqlite:///{file}", tmp_path / "kept"]
        saved = Path(subprocess.check_output(save, text=True, timeout=20).strip())
        after = count(file)[0]
    finally:
        ended.set()
        writer.join()
    assert saved.name.endswith(".db.gz") and list((tmp_path / "kept").iterdir()) == [saved]
    other = tmp_path / "restored.db"
    assert backup.main(["restore", str(saved), f"sqlite:///{other}"]) == 0
    rows, newest = count(other)
    assert (
        before <= rows <= after and rows == newest
    )  # one moment's state: nothing is missing in it


def test_a_restore_keeps_what_was_there_and_refuses_while_the_site_runs(backup, tmp_path, capsys):
    from gchat.serve.site.database import Database
    from gchat.serve.site.only_one import only_one

    file = tmp_path / "site.db"
    url = f"sqlite:///{file}"
    site_database(file, 10).close()
    assert backup.main(["save", url, str(tmp_path / "kept")]) == 0
    saved = next((tmp_path / "kept").iterdir())
    site_database(file, 5).close()
    running = Database(url)
    with only_one(running):
        assert backup.main(["restore", str(saved), url]) == 2
    running.close()
    assert "a site runs on" in capsys.readouterr().err
    assert count(file) == (15, 15)
    assert backup.main(["restore", str(saved), url]) == 0
    assert count(file) == (10, 10)
    kept = list(tmp_path.glob("site.db.before-*"))
    assert [count(one) for one in kept] == [(15, 15)]


def test_backups_and_what_is_restored_are_the_sites_users_alone(backup, tmp_path):
    """Whoever runs it with whatever umask: password hashes are in it, and the site is not root."""
    file = tmp_path / "lib/site.db"
    file.parent.mkdir()
    url = f"sqlite:///{file}"
    site_database(file, 10).close()
    before = os.umask(0o022)
    try:
        if root := os.geteuid() == 0:
            os.chown(file, 10001, 10002)
        assert backup.main(["save", url, str(tmp_path / "kept")]) == 0
        (saved,) = (tmp_path / "kept").iterdir()
        assert backup.main(["restore", str(saved), url]) == 0
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert [oct(one.stat().st_mode & 0o777) for one in (saved.parent, saved, file)] == [
        "0o700", "0o600", "0o600",
    ]  # fmt: skip
    if not root:
        return
    lock = file.with_name("site.db.lock")
    assert {(one.stat().st_uid, one.stat().st_gid) for one in (file, lock)} == {(10001, 10002)}
    file.unlink(), lock.unlink()
    os.chown(file.parent, 10003, 10004)  # a fresh machine: the folder tells whose it is
    assert backup.main(["restore", str(saved), url]) == 0
    assert {(one.stat().st_uid, one.stat().st_gid) for one in (file, lock)} == {(10003, 10004)}


def test_a_lock_that_cannot_be_opened_is_said(tmp_path):
    from gaia.errors import ConfigError
    from gchat.serve.site.database import Database
    from gchat.serve.site.only_one import only_one

    (tmp_path / "site.db.lock").mkdir()  # root may open any file, but no folder
    database = Database(f"sqlite:///{tmp_path}/site.db")
    with pytest.raises(ConfigError, match=r"site\.db\.lock cannot be opened"), only_one(database):
        pass
    database.close()


def test_a_damaged_database_is_replaced_and_kept_as_it_is(backup, tmp_path):
    """The day for which there are backups."""
    file = tmp_path / "site.db"
    url = f"sqlite:///{file}"
    site_database(file, 10).close()
    assert backup.main(["save", url, str(tmp_path / "kept")]) == 0
    file.write_bytes(b"no database any more " * 1000)
    assert backup.main(["restore", str(next((tmp_path / "kept").iterdir())), url]) == 0
    assert count(file) == (10, 10)
    (kept,) = tmp_path.glob("site.db.before-*")
    assert kept.read_bytes() == b"no database any more " * 1000


def test_a_restore_waits_for_no_reader_whose_log_would_be_lost(backup, tmp_path, capsys):
    file = tmp_path / "site.db"
    url = f"sqlite:///{file}"
    site_database(file, 10).close()
    assert backup.main(["save", url, str(tmp_path / "kept")]) == 0
    reader, writer = sqlite3.connect(file), site_database(file, 0)
    reader.execute("BEGIN"), reader.execute("SELECT * FROM messages").fetchone()
    writer.execute("INSERT INTO messages (text) VALUES ('only in the log')")
    writer.commit()
    assert backup.main(["restore", str(next((tmp_path / "kept").iterdir())), url]) == 2
    assert f"another program uses {file}" in capsys.readouterr().err
    reader.close(), writer.close()
    assert count(file) == (11, 11)


@pytest.mark.parametrize("damage", ["cut", "changed", "not gzip", "another database", "missing"])
def test_a_damaged_backup_changes_nothing(backup, tmp_path, capsys, damage):
    file = tmp_path / "site.db"
    site_database(file, 200).close()
    saved = tmp_path / "site-1.db.gz"
    if damage == "another database":
        other = tmp_path / "other.db"
        sqlite3.connect(other).execute("CREATE TABLE x (y)").connection.close()
        saved.write_bytes(gzip.compress(other.read_bytes()))
    elif damage == "changed":
        whole = bytearray(file.read_bytes())
        whole[4096:9000] = os.urandom(4904)
        saved.write_bytes(gzip.compress(bytes(whole)))
    elif damage != "missing":
        good = gzip.compress(file.read_bytes())
        saved.write_bytes(good[: len(good) // 2] if damage == "cut" else b"not gzip at all")
    assert backup.main(["restore", str(saved), f"sqlite:///{file}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("backup.py: ") and said.count("\n") == 1
    assert count(file) == (200, 200)
    assert not list(tmp_path.glob("*.restored")) and not list(tmp_path.glob("*.before-*"))


def test_old_backups_go_and_bad_words_are_refused(backup, tmp_path, monkeypatch, capsys):
    file = tmp_path / "site.db"
    site_database(file, 1).close()
    monkeypatch.setenv("SITE", f"sqlite:///{file}")
    for _ in range(4):
        assert backup.main(["save", "env:SITE", str(tmp_path / "kept"), "--keep", "2"]) == 0
    assert len(list((tmp_path / "kept").iterdir())) == 2
    capsys.readouterr()
    for words in (["save", "env:NOTHING", "x"], ["save", "mysql://a", "x"],
                  ["save", "sqlite:///nowhere.db", str(tmp_path / "y")],
                  ["restore", str(file), "postgresql://a@b/c"]):  # fmt: skip
        assert backup.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_postgres_is_given_its_password_by_the_environment(backup, tmp_path, monkeypatch, capsys):
    """A stand-in for pg_dump shows its arguments and environment."""
    script = tmp_path / "pg_dump"
    script.write_text(
        "#!/bin/sh\nfor a; do case $a in --file=*) out=${a#--file=};; esac; done\n"
        'printf "%s\\n" "$@" "password $PGPASSWORD" > "$out"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    url = "postgresql://gchat:s%3Acret@db.example:5433/chat?sslmode=require"
    assert backup.main(["save", url, str(tmp_path / "kept")]) == 0
    text = next((tmp_path / "kept").iterdir()).read_text()
    assert "--dbname=postgresql://gchat@db.example:5433/chat?sslmode=require\n" in text
    assert "password s:cret" in text and "cret" not in text.split("password ")[0]


def test_a_first_certificate(tmp_path):
    command = ["bash", DEPLOY / "certificate.sh", tmp_path, "chat.example.org"]
    subprocess.run(command, check=True, capture_output=True)
    live = tmp_path / "live/chat.example.org"
    first = (live / "fullchain.pem").read_bytes()
    assert b"BEGIN CERTIFICATE" in first and (live / "privkey.pem").stat().st_mode & 0o77 == 0
    subprocess.run(command, check=True, capture_output=True)
    assert (live / "fullchain.pem").read_bytes() == first
    bad = subprocess.run([*command[:3], "a b"], capture_output=True, text=True)
    assert bad.returncode == 2 and "is no domain" in bad.stderr


def test_a_certificate_stays_until_certbot_has_succeeded(tmp_path):
    (tmp_path / "certbot").write_text(
        '#!/bin/sh\n[ ! -e "$LIVE" ] || exit 9\n'  # it would write beside it
        'mkdir -p "$LIVE"\n[ -z "$WORKS" ] || echo real > "$LIVE/fullchain.pem"\n[ -n "$WORKS" ]\n'
    )
    (tmp_path / "certbot").chmod(0o755)
    folder, live = tmp_path / "letsencrypt", tmp_path / "letsencrypt/live/chat.example.org"
    live.mkdir(parents=True)
    (live / "fullchain.pem").write_text("own")
    env = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin", "LIVE": str(live)}
    service = compose()["services"]["certbot"]
    words = [str(word).replace("${GCHAT_DOMAIN:-localhost}", live.name)
             for word in service["entrypoint"]]  # fmt: skip
    assert words[1:3] == ["/certbot.sh", "/etc/letsencrypt"]
    assert "./certbot.sh:/certbot.sh:ro" in service["volumes"]
    command = [words[0], DEPLOY / "certbot.sh", folder, *words[3:]]

    def certbot(works):
        done = subprocess.run(command, env=env | {"WORKS": works}, capture_output=True, text=True)
        assert [one.name for one in folder.iterdir()] == ["live"]
        return done.returncode, (live / "fullchain.pem").read_text()

    assert certbot("") == (1, "own")
    live.rename(folder / f"signed-by-itself-{live.name}")  # killed in the middle
    assert certbot("") == (1, "own")
    assert certbot("yes") == (0, "real\n")


def test_no_document_puts_a_password_into_arguments():
    for file in (DEPLOY / "compose.yaml", DEPLOY / "README.md"):
        assert "GCHAT_PASSWORD=" not in file.read_text()


@pytest.mark.slow
def test_compose_by_its_schema():
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed (slow.txt)")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema",
               "vendor.compose-spec", DEPLOY / "compose.yaml"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_units_by_systemd(tmp_path):
    """Their programs are not here; all else must be as systemd wants it."""
    for file in (*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")):
        text = re.sub(r"/opt/gaia/.venv/bin/\w+|/usr/bin/certbot", "/bin/true", file.read_text())
        (tmp_path / file.name).write_text(text)
    for unit in sorted(tmp_path.iterdir()):
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        ours = [line for line in (done.stdout + done.stderr).splitlines() if str(tmp_path) in line
                or line.startswith("gchat")]  # fmt: skip
        assert not ours, ours


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (apt install nginx-light)")
def test_nginx_takes_its_file(tmp_path):
    chat_nginx.certificate(tmp_path, chat_nginx.HOST)
    file = chat_nginx.configuration(tmp_path, 8000)
    done = subprocess.run(["nginx", "-t", "-c", file, "-p", tmp_path], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_each_line_of_the_dockerfile_in_a_clean_environment(tmp_path):
    """Makes what the image would hold, in an empty folder with an empty home; then it serves."""
    from tests.fakes import openai_api

    # The volume is the image's own affair.
    work, environment = DOCKERFILE.build(tmp_path, leave_out="/data")
    port = chat_nginx.free_port()
    entry = DOCKERFILE.entry(port)
    entry[-1] = f"sqlite:///{tmp_path}/site.db"
    with openai_api.serve() as upstream:
        server = subprocess.Popen(
            [*entry, "--upstream", upstream.url, "--single-user"], cwd=work, env=environment
        )
        try:
            DOCKERFILE.wait_until_healthy(server, port, work)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                page = answer.read().decode()
            files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
            assert len(files) == 4  # the built front end came with the package
            for file in files:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{file}", timeout=20).close()
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.wait()
