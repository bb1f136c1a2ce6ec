"""Brings a database to this program's version, and refuses one of a newer."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from gaia.errors import ConfigError
from gchat.serve.site.database import Database, Unavailable

T = TypeVar("T")


def refuse(database: Database) -> None:
    """Raises ConfigError where `upgrade` would; changes nothing, and makes nothing."""
    if database.is_made:
        _try(lambda config: database.now(_version, config, database), database)


def upgrade(database: Database) -> None:
    """Makes the database where there is none, and makes or changes its tables in one transaction.

    Raises:
        ConfigError: the database is of a newer version, holds something else, or cannot be used.
    """
    refuse(database)  # before anything of a file that may be another program's is changed

    def make(config: Config) -> None:
        database.make()
        database.write_now(_upgrade, config, database)

    _try(make, database)


def check(database: Database) -> None:
    """Raises ConfigError where the database is not of this program's version."""
    known = database.is_made and _try(lambda c: database.now(_version, c, database), database)
    if not known:
        raise ConfigError(
            f"--database {database.shown} holds no site, or one of an older version",
            "start `gchat web` on it, or begin with `gchat web admin add-user`",
        )


def _try(work: Callable[[Config], T], database: Database) -> T:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        return work(config)
    except Unavailable as error:
        said = str(error).partition(";")[0]  # what follows is for people who use the site
        raise ConfigError(
            f"--database {database.shown}: {said}", "check the address, or try again"
        ) from error.__cause__


def _upgrade(connection: sa.Connection, config: Config, database: Database) -> None:
    _version(connection, config, database)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _version(connection: sa.Connection, config: Config, database: Database) -> str | None:
    """This program's version, if the database is of it; None for an older one, or for none."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" in tables:
        known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
        chosen = sa.text("SELECT version_num FROM alembic_version")
        there = connection.execute(chosen).scalars().all()
        if newer := sorted(set(there) - known):
            raise ConfigError(
                f"--database {database.shown} is of a newer version ({newer[0]}; this program "
                f"knows up to {max(known)})", "update gaia, or restore a backup of the older one",
            )  # fmt: skip
    elif tables:
        raise ConfigError(
            f"--database {database.shown} holds other tables ({', '.join(sorted(tables)[:3])})",
            "name a database of its own",
        )
    else:
        return None
    newest = ScriptDirectory.from_config(config).get_current_head()
    return newest if newest in there else None
