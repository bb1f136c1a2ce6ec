"""Saves the chat site's database while it runs, and puts a backup back while it does not.

    python backup.py save sqlite:////var/lib/gchat-web/site.db /var/backups/gchat-web --keep 14
    python backup.py restore /var/backups/gchat-web/site-….db.gz sqlite:////var/lib/gchat-web/site.db

A database is given as `gchat web --database` takes it, or as env:NAME, the variable that holds it
(a password in an argument is seen by everybody). SQLite is copied by its own backup (one moment's
state, whatever is written meanwhile) and checked before the copy counts; PostgreSQL by pg_dump and
pg_restore, which are given the password in their environment. Needs Python alone.
"""

import argparse
import contextlib
import fcntl
import gzip
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

PREFIX = "site-"
_SITE_LOCK = 0x6763_6861_7477_6562  # as gchat/serve/site/only_one.py has it


class Refused(Exception):
    """One line that names what is wrong and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 2 where it is refused, 130 and 143 where a signal ends it."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    save = verbs.add_parser("save", allow_abbrev=False, help="write a backup into a folder")
    save.add_argument("database")
    save.add_argument("folder", type=Path)
    save.add_argument("--keep", type=int, default=0, help="number of backups that stay; 0: all")
    restore = verbs.add_parser(
        "restore", allow_abbrev=False, help="put a backup in the database's place"
    )
    restore.add_argument("backup", type=Path)
    restore.add_argument("database")
    given = parser.parse_args(arguments)
    before = os.umask(0o077)  # whoever runs this: a backup holds what the database holds
    # As an exception, so that no copy in plain text stays behind.
    ended = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        database = named(given.database)
        if given.verb == "save":
            print(save_to(database, given.folder, given.keep))
        else:
            print(restore_from(given.backup, database))
    except (Refused, OSError, sqlite3.Error) as error:
        print(f"backup.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("backup.py: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, ended)
        os.umask(before)
    return 0


def named(given: str) -> str:
    """The database's address, from the variable where one is named."""
    if not given.startswith("env:"):
        return given
    value = os.environ.get(given[4:])
    if not value:
        raise Refused(f"the variable {given[4:]} is empty; set it to the database's address")
    return value


def file_of(database: str) -> Path | None:
    """SQLite's file; None for PostgreSQL.

    Raises:
        Refused: it is neither.
    """
    if database.startswith("sqlite:///"):
        return Path(database.removeprefix("sqlite:///"))
    if database.startswith("postgresql"):
        return None
    raise Refused("the database is neither sqlite:///FILE nor postgresql://…; name one")


def save_to(database: str, folder: Path, keep: int) -> Path:
    """Writes a backup and removes the oldest beyond `keep`; its place."""
    if keep < 0:
        raise Refused(f"--keep is {keep}; use 0 or more")
    file = file_of(database)
    folder.mkdir(parents=True, exist_ok=True)
    with _saving(folder):
        target = _written(database, file, folder)
    backups = sorted(
        folder.glob(f"{PREFIX}*{target.suffix}"), key=lambda path: path.stat().st_mtime_ns
    )
    for old in backups[:-keep] if keep else []:
        old.unlink()
    return target


@contextlib.contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Removes what saves that were killed have left: whole databases, perhaps in plain text.

    A save that runs holds the folder's lock, shared with others; nobody removes its parts.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # another save runs, or a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(f"{PREFIX}*.part*"):
                left.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_SH)
        yield
    finally:
        os.close(held)


def _written(database: str, file: Path | None, folder: Path) -> Path:
    """Writes a backup under a name of its own, and only then under its real one."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    suffix = ".dump" if file is None else ".db.gz"
    target, number = folder / f"{PREFIX}{stamp}{suffix}", 1
    while target.exists():
        target, number = folder / f"{PREFIX}{stamp}.{number}{suffix}", number + 1
    part = target.with_name(target.name + ".part")
    try:
        if file is None:
            plain, environment = _address(database)
            _run("pg_dump", f"--dbname={plain}", "--format=custom", f"--file={part}",
                 environment=environment)  # fmt: skip
        else:
            _copy_sqlite(file, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _copy_sqlite(file: Path, part: Path) -> None:
    if not file.exists():
        raise Refused(f"{file} does not exist; name the site's database")
    plain = part.with_name(part.name + ".plain")
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(plain)) as copy,
        ):
            # In one step: one of several begins anew whenever the site writes. Its log lets it
            # write meanwhile.
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        check(plain)
        with plain.open("rb") as read, gzip.open(part, "wb", 6) as written:
            shutil.copyfileobj(read, written, 1 << 20)
    finally:
        plain.unlink(missing_ok=True)


def check(file: Path) -> None:
    """Raises Refused where a file is no whole database of the site."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as copy:
            told = copy.execute("PRAGMA integrity_check").fetchone()[0]
            tables = {row[0] for row in copy.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        raise Refused(f"{file} is no whole database ({error})") from None
    if told != "ok":
        raise Refused(f"{file} is damaged ({told})")
    if not {"users", "messages"} <= tables:
        raise Refused(f"{file} is not the database of a chat site")


def restore_from(backup: Path, database: str) -> str:
    """Puts a backup in place; what was there stays beside it."""
    if not backup.exists():
        raise Refused(f"{backup} does not exist; name a backup")
    file = file_of(database)
    if (file is None) != (backup.suffix == ".dump"):
        raise Refused(f"{backup.name} is of the other kind of database; name one of this kind")
    if file is None:
        return _restore_postgresql(backup, database)
    part = file.with_name(file.name + ".restored")
    with nobody_runs(file):
        try:
            _unpack(backup, part)
            check(part)
            _give(part, file)
            kept = _put_aside(file)
            part.rename(file)
        finally:
            part.unlink(missing_ok=True)
    return f"{file} holds {backup.name}" + (f"; what was there is {kept}" if kept else "")


def _unpack(backup: Path, part: Path) -> None:
    try:
        with gzip.open(backup) as read, part.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused(f"{backup} is damaged ({error}); name another backup") from None


def _give(made: Path, file: Path) -> None:
    """Gives root's file to the user of the database, or of its folder: the site is not root."""
    if os.geteuid() == 0:
        like = (file if file.exists() else file.parent).stat()
        os.chown(made, like.st_uid, like.st_gid)


def _put_aside(file: Path) -> Path | None:
    """Renames the database, with what stands in its log first; a damaged one as it is."""
    kept = file.with_name(f"{file.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    if there := file.exists():
        try:
            # SQLite takes a damaged database's log away when it closes it; not where it only reads.
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as old:
                old.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with contextlib.closing(sqlite3.connect(file)) as old:
                if old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    raise Refused(f"another program uses {file}; end it first")
        except sqlite3.OperationalError:  # locked, or the disk is full
            raise
        except sqlite3.DatabaseError:  # damaged: kept as it is
            pass
        os.link(file, kept)  # the database is never without a file
    # A log that could not be read into its file may hold all that is left of the last hours, and
    # beside another file SQLite would take it for that one's.
    log = file.with_name(file.name + "-wal")
    holds = log.exists() and log.stat().st_size > 0
    for ending in ("-wal", "-shm"):
        one = file.with_name(file.name + ending)
        if holds and one.exists():
            one.rename(kept.with_name(kept.name + ending))
        one.unlink(missing_ok=True)
    return kept if there else None


@contextlib.contextmanager
def nobody_runs(file: Path) -> Iterator[None]:
    """Holds the lock that a running site holds (gchat/serve/site/only_one.py).

    Raises:
        Refused: a site runs.
    """
    lock = file.with_name(file.name + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        _give(lock, file)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"a site runs on {file}; stop it first") from None
        yield


def _restore_postgresql(backup: Path, database: str) -> str:
    """Puts a dump in place of the site's tables, all or nothing; what was there is dumped first."""
    listed = _run("pg_restore", "--list", str(backup))
    if not all(f" TABLE public {name} " in listed for name in ("users", "messages")):
        raise Refused(f"{backup} is not the database of a chat site")
    plain, environment = _address(database)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = backup.with_name(f"before-{stamp}.dump")
    part = kept.with_name(kept.name + ".part")
    with nobody_serves(plain, environment):
        try:
            _run("pg_dump", f"--dbname={plain}", "--format=custom", f"--file={part}",
                 environment=environment)  # fmt: skip
            part.rename(kept)
        finally:
            part.unlink(missing_ok=True)
        try:
            _run("pg_restore", f"--dbname={plain}", "--clean", "--if-exists", "--no-owner",
                 "--single-transaction", "--exit-on-error", str(backup),
                 environment=environment)  # fmt: skip
        except Refused:
            kept.unlink()  # nothing has changed
            raise
    return f"PostgreSQL holds {backup.name}; what was there is {kept}"


@contextlib.contextmanager
def nobody_serves(plain: str, environment: dict[str, str]) -> Iterator[None]:
    """Holds the lock that a running site holds on PostgreSQL, by a session of psql.

    Raises:
        Refused: a site runs, or the database cannot be reached.
    """
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", f"--dbname={plain}"]
    with _missing("psql"):
        psql = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    with psql:
        assert psql.stdin and psql.stdout and psql.stderr
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.write(f"SELECT pg_try_advisory_lock({_SITE_LOCK});\n")
            psql.stdin.flush()
        answer = psql.stdout.readline().strip()
        if answer == "f":
            raise Refused("a site runs on this database; stop it first")
        if answer != "t":
            with contextlib.suppress(BrokenPipeError):
                psql.stdin.close()
            raise Refused(f"psql failed: {_reason(psql.stderr.read())}")
        yield


def _address(database: str) -> tuple[str, dict[str, str]]:
    """The address as PostgreSQL's programs take it, and the environment with the password."""
    parts = urlsplit(database)
    environment = dict(os.environ)
    if parts.password:
        environment["PGPASSWORD"] = unquote(parts.password)
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    query = f"?{parts.query}" if parts.query else ""
    return f"postgresql://{user}{host}{parts.path}{query}", environment


def _run(program: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Runs one of PostgreSQL's programs; what it prints."""
    with _missing(program):
        done = subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise Refused(f"{program} failed: {_reason(done.stderr)}")
    return done.stdout


@contextlib.contextmanager
def _missing(program: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Refused(f"{program} is not installed; install postgresql-client") from None


def _reason(said: str) -> str:
    """The line of a failed program that says why: behind it stands the command that failed."""
    lines = said.strip().splitlines() or ["no reason told"]
    return next((line for line in lines if "error:" in line.lower()), lines[-1])


if __name__ == "__main__":
    sys.exit(main())
