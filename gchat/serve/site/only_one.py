"""One server for one database: answers that run are in the memory of the process."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gaia.errors import ConfigError
from gchat.serve.site.database import Database

_LOCK = 0x6763_6861_7477_6562  # "gchatweb"


@contextmanager
def only_one(database: Database) -> Iterator[None]:
    """Holds the database's lock; it goes with the process, however that ends.

    Raises:
        ConfigError: another server works on this database, or it cannot be reached or locked.
    """
    taken = ConfigError(
        f"another gchat web works on {database.shown}", "end it first, or name another database"
    )
    if (file := database.file) is not None:
        path = file.with_name(file.name + ".lock")
        try:
            lock = path.open("a")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be opened ({error.strerror})",
                "give it to the user that the server runs as",
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise taken from None
            yield
        return
    try:
        connection = database.engine.connect()
    except SQLAlchemyError as error:
        raise ConfigError(f"--database {database.shown}: it cannot be reached",
                          "check the address") from error  # fmt: skip
    # The lock is the connection's: one that went back to a pool would keep it.
    connection.detach()
    with connection:
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar():
            raise taken
        connection.commit()
        yield
