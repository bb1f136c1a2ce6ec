"""The database: connections, transactions off the event loop, and what may go wrong with it.

On SQLite one thread writes and others read (WAL): writers would only wait for one another. A commit
is on the disk when it returns (`synchronous=FULL`), so that what people saw survives a power cut.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gaia.errors import ConfigError
from gaia.extras import install
from gchat.serve.site.storable import stored_json

T = TypeVar("T")
_READERS = 8
_WAIT_S = 5
"""Seconds that a transaction waits for a lock or a connection."""


class Unavailable(Exception):
    """The database cannot do its work now; the message is one line for people."""


class Database:
    """One database; `make` comes before the first use of a file that may not be there.

    Args:
        url: as SQLAlchemy has it; sqlite:///FILE or postgresql://….

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.sqlite = self.engine.dialect.name == "sqlite"
        self._readers = ThreadPoolExecutor(_READERS, "db-read")
        self._writers = ThreadPoolExecutor(1 if self.sqlite else _READERS, "db-write")
        self._notes: dict[Any, asyncio.Task[None]] = {}

    @property
    def shown(self) -> str:
        """The address without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self.engine.url.database or "") if self.sqlite else None

    @property
    def is_made(self) -> bool:
        """Tells whether there is something to read; a server's database is always there."""
        return self.file is None or self.file.exists()

    def make(self) -> None:
        """Makes the file of an SQLite database where it is not there, and sets it up for writing.

        Raises:
            ConfigError: the file cannot be made.
            Unavailable: it cannot be written now.
        """
        if self.file is None:
            return
        _private(self.file)
        try:
            # The journal's kind stays with the file, so that connections need not set it: those
            # that only look at a file, which may be another program's, leave it as it is.
            with self.engine.connect() as connection:
                _pragma(connection.connection.dbapi_connection, "journal_mode=WAL")
        except SQLAlchemyError as error:
            raise _explained(error) from error

    async def read(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """The result of `work(connection, …)` in a transaction that only reads.

        Raises:
            Unavailable: the database cannot be read now.
        """
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._readers, lambda: self.now(work, *args, **named))

    async def write(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """The result of `work(connection, …)`, all of which is committed, or nothing.

        Raises:
            Unavailable: the database takes no writes now.
        """
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._writers, lambda: self.write_now(work, *args, **named))

    def note(self, work: Callable[..., None], *args: Any) -> None:
        """Writes beside a request, which neither waits for it nor fails where it cannot be done.

        While one waits for the database, the same note is not made again.
        """

        async def write() -> None:
            try:
                await self.write(work, *args)
            except Unavailable:
                pass  # a later request notes it
            finally:
                del self._notes[work, *args]

        if (work, *args) not in self._notes:
            self._notes[work, *args] = asyncio.create_task(write())

    def now(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Reads in this thread."""
        try:
            with self.engine.connect() as connection, connection.begin():
                return work(connection, *args, **named)
        except SQLAlchemyError as error:
            raise _explained(error) from error

    def write_now(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Writes in this thread."""
        try:
            with self.engine.connect() as bare:
                connection = bare.execution_options(gchat_writes=True)
                with connection.begin():
                    return work(connection, *args, **named)
        except SQLAlchemyError as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Ends threads and connections."""
        self._readers.shutdown()
        self._writers.shutdown()
        self.engine.dispose()


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise ConfigError(
            "--database is no address of a database", "use sqlite:///FILE or postgresql://…"
        ) from None
    kind = parsed.get_backend_name()
    if kind == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        options: dict[str, Any] = {
            "pool_size": 2 * _READERS, "max_overflow": 4, "pool_timeout": _WAIT_S,
            "pool_pre_ping": True,
            "connect_args": {"connect_timeout": _WAIT_S, "options": f"-c lock_timeout={_WAIT_S}s"},
        }  # fmt: skip
    elif kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigError("--database names no file", "use sqlite:///FILE")
        _check_place(Path(parsed.database))
        options = {"connect_args": {"timeout": _WAIT_S, "check_same_thread": False}}
    else:
        raise ConfigError(
            f"--database is of the kind {kind!r}", "use sqlite:///FILE or postgresql://…"
        )
    try:
        # Parameters of statements hold what people wrote: never in an error's text.
        engine = sa.create_engine(
            parsed, hide_parameters=True, json_deserializer=stored_json, **options
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        named = getattr(error, "name", None) or "its driver"
        raise ConfigError(f"{named} is not installed", install("web", "postgres")) from None
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_place(file: Path) -> None:
    """Raises ConfigError where a file can be neither used nor made; makes nothing."""
    try:
        if file.exists():
            if not stat.S_ISREG(file.stat().st_mode):
                raise ConfigError(f"--database {str(file)!r} is no file", "check the path")
            os.close(os.open(file, os.O_RDWR))
        elif not stat.S_ISDIR(file.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        elif not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"--database {str(file)!r}: {error.strerror}", "check the path") from None


def _private(file: Path) -> None:
    """Makes a file that only its owner may read; SQLite gives its log the same rights."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"--database {str(file)!r}: {error.strerror}", "check the path") from None


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    for pragma in (
        "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", "cache_size=-32000",
        "journal_size_limit=67108864", "trusted_schema=OFF",
    ):  # fmt: skip
        _pragma(connection, pragma)


def _pragma(connection: Any, pragma: str) -> None:
    connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that read first and then wants to write could not wait for a lock.
    writes = connection.get_execution_options().get("gchat_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _explained(error: SQLAlchemyError) -> Exception:
    """The error as Unavailable where waiting or an administrator mends it, else itself."""
    text = str(getattr(error, "orig", None) or error).lower()
    for sign, message in (
        ("locked", "the database is locked by another program; try again soon"),
        ("lock timeout", "the database is locked by another program; try again soon"),
        ("disk is full", "the disk of the database is full; nothing was saved"),
        ("no space left", "the disk of the database is full; nothing was saved"),
        ("disk i/o error", "the disk of the database fails; nothing was saved"),
        ("readonly database", "the database cannot be written; nothing was saved"),
        ("read-only transaction", "the database cannot be written; nothing was saved"),
        ("no such table", "the database is gone"),
        ("malformed", "the database is damaged"),
        ("not a database", "the database is damaged"),
    ):
        if sign in text:
            return Unavailable(message)
    if isinstance(error, PoolTimeout) or (
        isinstance(error, DBAPIError)
        and (error.connection_invalidated or isinstance(error, OperationalError))
    ):
        return Unavailable("the database cannot be reached; try again soon")
    return error
