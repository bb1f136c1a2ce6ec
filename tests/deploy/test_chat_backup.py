"""deploy/chat/backup.py on the bad days: damage, and a signal in the middle."""

import contextlib
import gzip
import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "deploy/chat/backup.py"


@pytest.fixture(scope="module")
def backup():
    spec = importlib.util.spec_from_file_location("chat_backup_bad_days", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def site(file, texts):
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE users (name TEXT)")
        database.execute("CREATE TABLE messages (text TEXT)")
        database.executemany("INSERT INTO messages VALUES (?)", [(text,) for text in texts])
        database.commit()


def texts(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return [row[0] for row in database.execute("SELECT text FROM messages")]


@pytest.fixture
def saved(backup, tmp_path):
    """The site's database, its address, a backup of it."""
    file = tmp_path / "site.db"
    site(file, [os.urandom(50).hex() for _ in range(200)])
    assert backup.main(["save", f"sqlite:///{file}", str(tmp_path / "kept")]) == 0
    return file, f"sqlite:///{file}", next((tmp_path / "kept").iterdir())


def test_a_backup_with_a_changed_byte_is_refused_in_one_line(backup, saved, capsys):
    file, url, kept = saved
    whole, before, seen = kept.read_bytes(), texts(file), set()
    first = whole.index(b"\0", 10) + 1  # after gzip's header, which ends with the file's name
    for place in (first, len(whole) // 2, len(whole) - 6):
        data = bytearray(whole)
        data[place] |= 0b110  # in `first`: no kind of block that there is
        data[place + 1] ^= 0xFF
        kept.write_bytes(data)
        with pytest.raises((OSError, EOFError, zlib.error)) as raised:
            gzip.decompress(data)
        seen.add(raised.type)
        capsys.readouterr()
        assert backup.main(["restore", str(kept), url]) == 2
        said = capsys.readouterr().err
        assert "is damaged" in said and said.count("\n") == 1
    assert zlib.error in seen and texts(file) == before


def in_the_log(file, text):
    """Commits a text that stands in the log alone, as after a crash."""
    code = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1]); "
        "database.execute('PRAGMA journal_mode=WAL'); "
        "database.execute('INSERT INTO messages VALUES (?)', sys.argv[2:]); "
        "database.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, file, text], check=True)


def test_a_damaged_database_keeps_its_log(backup, saved, tmp_path):
    file, url, kept = saved
    in_the_log(file, "precious")
    header = file.read_bytes()[:16]
    with file.open("r+b") as damaged:
        damaged.write(b"\0" * 16)
    before = file.read_bytes(), file.with_name("site.db-wal").read_bytes()
    assert backup.main(["restore", str(kept), url]) == 0
    assert len(texts(file)) == 200
    (aside,) = (one for one in tmp_path.glob("site.db.before-*Z"))
    assert (aside.read_bytes(), aside.with_name(aside.name + "-wal").read_bytes()) == before
    with aside.open("r+b") as mended:
        mended.write(header)
    assert texts(aside)[200:] == ["precious"]


def test_a_log_without_its_database_is_not_taken_for_the_restored_ones(backup, saved, tmp_path):
    file, url, kept = saved
    in_the_log(file, "of another time")
    file.unlink()
    assert backup.main(["restore", str(kept), url]) == 0
    assert len(texts(file)) == 200 and list(tmp_path.glob("site.db.before-*-wal"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_copy_and_no_traceback(saved, tmp_path, number, code):
    """While the copy is being compressed, which takes a minute here."""
    _, url, _ = saved
    hang = ("import runpy, shutil, sys, time; sys.argv = sys.argv[1:]; "
            "shutil.copyfileobj = lambda *_: (print('now', flush=True), time.sleep(60)); "
            "runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", hang, PROGRAM, "save", url, tmp_path / "other"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout.readline() == "now\n"
        assert sorted(p.suffix for p in (tmp_path / "other").iterdir()) == [".part", ".plain"]
        program.send_signal(number)
        said = program.communicate(timeout=30)[1]
    assert program.returncode == code and not list((tmp_path / "other").iterdir())
    assert said in ("", "backup.py: interrupted\n")


def test_what_a_killed_save_has_left_goes_at_the_next_but_not_a_running_ones(backup, saved):
    _, url, kept = saved
    left = [kept.with_name(f"site-1.db.gz{ending}") for ending in (".part", ".part.plain")]
    for file in left:
        file.touch()
    with backup._saving(kept.parent):
        assert not any(file.exists() for file in left)
        left[0].touch()
        assert backup.main(["save", url, str(kept.parent)]) == 0
        assert left[0].exists()
    assert backup.main(["save", url, str(kept.parent)]) == 0
    assert not left[0].exists() and len(list(kept.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "pg_restore: while PROCESSING TOC:\n"
            "pg_restore: error: could not execute query: ERROR:  type is unknown\n"
            "Command was: CREATE TABLE users (\n    name text\n);\n",
            "pg_restore: error: could not execute query: ERROR:  type is unknown",
        ),
        ("psql:<stdin>:1: ERROR:  no rights\nLINE 1: x\n", "psql:<stdin>:1: ERROR:  no rights"),
        ("one\nanother\n", "another"),
        ("", "no reason told"),
    ],
)
def test_a_failed_program_says_why(backup, tmp_path, monkeypatch, said, reason):
    (tmp_path / "said").write_text(said)
    (tmp_path / "pg_restore").write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 1\n")
    (tmp_path / "pg_restore").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(backup.Refused) as raised:
        backup._run("pg_restore", "--clean")
    assert str(raised.value) == f"pg_restore failed: {reason}"
