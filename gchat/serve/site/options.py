"""Options of `gchat web`, and what they may not be."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gaia.errors import ConfigError
from gchat.serve.options import Answering

DATABASE = "sqlite:///gchat-web.db"
DATABASE_ENV = "GCHAT_DATABASE"
"""Environment variable with the database's address: a password in an argument is seen by all."""


@dataclass(frozen=True)
class Web(Answering):
    """Serve a chat site of one's own: accounts, conversations that are kept, administration.

    gchat web admin add-user --name alice --role admin         the first account; asks a password
    gchat web --run runs/chat                                  127.0.0.1:8000, on gchat-web.db
    gchat web --run runs/chat --single-user                    no accounts, this machine only
    gchat web --upstream http://127.0.0.1:8080/v1 --registration invitation --host 0.0.0.0
    """

    database: str | None = None
    """sqlite:///FILE or postgresql://…; GCHAT_DATABASE, or gchat-web.db, when left out."""
    registration: Literal["open", "invitation", "closed"] = "closed"
    """People who may make an account: everybody, those invited, or nobody."""
    single_user: bool = False
    """Let whoever sits at this machine in without an account; on loopback only."""
    site_name: str = "gchat"
    """Name on the pages."""
    context: int | None = None
    """Tokens that upstreams' models read with their answer; those of a run are known."""
    search: Literal["off", "searxng", "brave", "duckduckgo"] = "off"
    """Search of the web that users may switch on for a question."""
    search_url: str | None = None
    """Address of the SearXNG server."""
    search_key_env: str = "GCHAT_SEARCH_KEY"
    """Environment variable with the search service's key."""
    trust_proxy: tuple[str, ...] = ("127.0.0.1",)
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    patience: float = 60.0
    """Time that answers wait for a database that takes no writes, in seconds."""

    def check(self) -> None:
        """Raises ConfigError naming the option that cannot work."""
        super().check()
        if self.single_user and not _loopback(self.host):
            raise ConfigError(
                f"--single-user is given with --host {self.host}: everybody would be let in",
                "leave --host out, or make accounts",
            )
        if self.single_user and self.registration != "closed":
            raise ConfigError("--registration has no effect with --single-user", "leave it out")
        if self.context is not None and (not self.upstream or not 64 <= self.context < 2**31):
            raise ConfigError(
                f"--context is {self.context}", "use at least 64, and only with --upstream"
            )
        if (self.search == "searxng") != (self.search_url is not None):
            raise ConfigError(
                "only one of --search searxng and --search-url is given", "give both, or neither"
            )
        if not 1 <= self.patience < 86400:
            raise ConfigError(f"--patience is {self.patience}", "use seconds, 1 or more")
        if not 1 <= len(self.site_name) <= 60:
            raise ConfigError("--site-name is too long or empty", "use 1 to 60 characters")


@dataclass(frozen=True)
class Place:
    """The database that a command works on."""

    database: str | None = None
    """sqlite:///FILE or postgresql://…; GCHAT_DATABASE, or gchat-web.db, when left out."""

    def check(self) -> None:
        """Raises ConfigError where an option is missing."""


def database_of(given: str | None, *, must_exist: bool = False) -> str:
    """The address of the database.

    Raises:
        ConfigError: a command beside the server names a file that is not there.
    """
    import os

    url = given or os.environ.get(DATABASE_ENV) or DATABASE
    file = url.removeprefix("sqlite:///")
    if must_exist and file != url and not Path(file).exists():
        raise ConfigError(
            f"--database {file!r} does not exist", "name the site's, or begin with add-user"
        )
    return url


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
