"""`gchat web admin …`: administration beside the server, on its database."""

import getpass
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from gaia.errors import ConfigError, GaiaError
from gchat.serve.site import accounts, audit, migrating, preferences, samples
from gchat.serve.site.database import Database, Unavailable
from gchat.serve.site.faults import Fault
from gchat.serve.site.names import check_password, name_of
from gchat.serve.site.options import Place, database_of
from gchat.serve.site.passwords import Passwords

ACTOR = "command line"
USAGE = """usage: gchat web admin VERB [options]        (gchat web admin VERB --help lists them)

  add-user             make an account: gchat web admin add-user --name alice --role admin
  users                list the users with what they used today
  disable, enable      shut a user out at once, or let him in again: … disable --name bob
  role                 make a user an administrator, or not: … role --name bob --role admin
  quota                limit the tokens of a user a day: … quota --name bob --tokens 100000
  reset-password       set a password: … reset-password --name bob
  invite, invitations  make an invitation; list them, withdraw one
  status, series       models, queue, speed and disk; numbers of the last minutes
  audit                who did what
  preferences          rated answers as pairs for `gchat dpo`: … preferences --out pairs.jsonl"""
T = TypeVar("T")


@dataclass(frozen=True)
class _Named(Place):
    name: str = ""
    """Name of the user."""
    json: bool = False
    """Print JSON."""

    def check(self) -> None:
        """Raises ConfigError where no user is named."""
        if not self.name:
            raise ConfigError("--name is left out", "name the user")

    def _user(self, c: sa.Connection) -> accounts.User:
        there = accounts.user_by_name(c, self.name)
        if there is None:
            raise Fault(404, f"there is no user {self.name!r}")
        return there[0]

    def _change(self, done: str, **values: Any) -> None:
        def change(c: sa.Connection) -> None:
            user = accounts.change_user(c, self._user(c).id, **values)
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            audit.note(c, ACTOR, "change user", user.name, told)

        _write(self, change)
        _say(self.json, {"name": self.name, **values}, f"{self.name}: {done}")


@dataclass(frozen=True)
class AddUser(_Named):
    """Make an account; also the first, before the server ever ran.

    gchat web admin add-user --name alice --role admin                 asks for the password
    GCHAT_PASSWORD=… gchat web admin add-user --name bob               takes it from the variable
    """

    role: Literal["user", "admin"] = "user"
    """Role of the user."""

    def run(self) -> None:
        """Makes the account."""
        _right(name_of, self.name)  # what can be refused is, before a database is made
        password = _password(self.name)
        database = Database(database_of(self.database))
        migrating.upgrade(database)

        def add(c: sa.Connection) -> accounts.User:
            user = accounts.add_user(c, self.name, Passwords().hash_now(password), self.role)
            audit.note(c, ACTOR, "add user", user.name, self.role)
            return user

        user = _do(database, add)
        _say(self.json, {"id": user.id, "name": user.name, "role": user.role},
             f"{user.name}: made, role {user.role}")  # fmt: skip


@dataclass(frozen=True)
class Disable(_Named):
    """Disable an account: its sessions and API keys end at once."""

    def run(self) -> None:
        """Disables it."""
        self._change("disabled", disabled=True)


@dataclass(frozen=True)
class Enable(_Named):
    """Enable a disabled account."""

    def run(self) -> None:
        """Enables it."""
        self._change("enabled", disabled=False)


@dataclass(frozen=True)
class Role(_Named):
    """Change a user's role: gchat web admin role --name bob --role admin."""

    role: Literal["user", "admin"] | None = None
    """Role of the user."""

    def run(self) -> None:
        """Changes it."""
        if self.role is None:
            raise ConfigError("--role is left out", "use --role user or --role admin")
        self._change(f"role {self.role}", role=self.role)


@dataclass(frozen=True)
class Quota(_Named):
    """Limit the tokens of a user a day: gchat web admin quota --name bob --tokens 100000."""

    tokens: int | None = None
    """Tokens a day; any number when left out."""

    def run(self) -> None:
        """Changes it."""
        if self.tokens is not None and not 0 <= self.tokens < 2**53:
            raise ConfigError(f"--tokens is {self.tokens}", "use 0 or more")
        self._change(f"quota {self.tokens}", quota=self.tokens)


@dataclass(frozen=True)
class ResetPassword(_Named):
    """Set a password; the user's sessions end."""

    def run(self) -> None:
        """Sets it."""
        password = _password(self.name)

        def change(c: sa.Connection) -> None:
            user = self._user(c)
            accounts.set_password(c, user.id, Passwords().hash_now(password))
            audit.note(c, ACTOR, "reset password", user.name)

        _write(self, change)
        _say(self.json, {"name": self.name}, f"{self.name}: password set")


@dataclass(frozen=True)
class _Listing(Place):
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Users(_Listing):
    """List the users with what they used today."""

    def run(self) -> None:
        """Lists them."""
        rows = _read(self, accounts.list_users)
        lines = [
            f"{row['name']:24} {row['role']:6} {'disabled' if row['disabled'] else 'enabled':9}"
            f"{row['used']:>12,} of {'any' if row['quota'] is None else format(row['quota'], ',')}"
            f"   last seen {_time(row['last_seen'])}"
            for row in rows
        ]
        _say(self.json, rows, *(lines or ["there is no user"]))


@dataclass(frozen=True)
class Invite(_Listing):
    """Make an invitation; its secret is printed this once."""

    days: int = 7
    """Days until it expires."""
    uses: int = 1
    """Accounts that can be made with it."""

    def run(self) -> None:
        """Makes it."""
        if not 1 <= self.days <= 365 or not 1 <= self.uses <= 1000:
            raise ConfigError("--days or --uses is out of range", "use 1 to 365, and 1 to 1000")

        def add(c: sa.Connection) -> dict[str, Any]:
            made = accounts.add_invitation(c, ACTOR, self.days, self.uses)
            audit.note(c, ACTOR, "invite", made["id"])
            return made

        made = _write(self, add)
        _say(self.json, made, f"/register?invitation={made['invitation']}")


@dataclass(frozen=True)
class Invitations(_Listing):
    """List invitations that can still be used, or withdraw one."""

    withdraw: str | None = None
    """Id of an invitation that is not valid any more."""

    def run(self) -> None:
        """Lists them."""
        if (wanted := self.withdraw) is not None:

            def delete(c: sa.Connection) -> None:
                accounts.delete_invitation(c, wanted)
                audit.note(c, ACTOR, "withdraw invitation", wanted)

            _write(self, delete)
        rows = _read(self, accounts.list_invitations)
        lines = [
            f"{row['id']}  {row['left']} left until {_time(row['expires_at'])}, by {row['made_by']}"
            for row in rows
        ]
        _say(self.json, rows, *(lines or ["there is no invitation"]))


@dataclass(frozen=True)
class Audit(_Listing):
    """List who did what, the newest first."""

    limit: int = 100
    """Number of entries."""

    def run(self) -> None:
        """Lists them."""
        if not 1 <= self.limit <= 100_000:
            raise ConfigError(f"--limit is {self.limit}", "use 1 to 100000")
        rows = _read(self, audit.listed, "", self.limit)["items"]
        lines = [
            f"{_time(row['at'])}  {row['actor']}: {row['action']} {row['target']} {row['detail']}"
            for row in rows
        ]
        _say(self.json, rows, *(lines or ["there is no entry"]))


@dataclass(frozen=True)
class Status(_Listing):
    """Show models, queue, speed and disk as the running server last noted them."""

    def run(self) -> None:
        """Shows them."""
        row = _read(self, samples.last)
        if row is None:
            raise GaiaError("no server has run on this database yet", "start `gchat web`")
        state = row["status"]
        models = ", ".join(
            f"{m['id']} ({m['state']}, {m['working']} working, {m['waiting']} waiting)"
            for m in state["models"]
        )
        disk = state["disk"]
        size = "" if disk["database"] is None else f", database {disk['database'] / 2**20:.1f} MiB"
        _say(
            self.json, row,
            f"noted {_time(row['at'])} by version {state['version']}", f"models: {models}",
            f"running {row['running']}, waiting {row['queue']}, {row['tokens_per_s']:g} tokens/s, "
            f"{row['errors']} errors{size}",
        )  # fmt: skip


@dataclass(frozen=True)
class Series(_Listing):
    """Print the numbers of the last minutes that the charts show, as JSON."""

    minutes: int = 60
    """Minutes to look back."""

    def run(self) -> None:
        """Prints them."""
        if not 1 <= self.minutes <= 1440:
            raise ConfigError(f"--minutes is {self.minutes}", "use 1 to 1440")
        print(json.dumps(_read(self, samples.series, self.minutes)))


@dataclass(frozen=True)
class Preferences(Place):
    """Write rated answers as pairs for `gchat dpo`: … preferences --out pairs.jsonl."""

    out: str | None = None
    """File to write; standard output when left out."""

    def run(self) -> None:
        """Writes them."""
        lines = _read(self, preferences.lines)
        if self.out is None:
            sys.stdout.writelines(lines)
            return
        part = Path(f"{self.out}.part")
        try:
            part.write_text("".join(lines), encoding="utf-8")
            part.replace(self.out)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConfigError(f"--out {self.out!r}: {error.strerror}", "check the path") from None
        print(f"{self.out}: {len(lines)} pairs", file=sys.stderr)


VERBS: dict[str, Any] = {
    "add-user": AddUser,
    "users": Users,
    "disable": Disable,
    "enable": Enable,
    "role": Role,
    "quota": Quota,
    "reset-password": ResetPassword,
    "invite": Invite,
    "invitations": Invitations,
    "status": Status,
    "series": Series,
    "audit": Audit,
    "preferences": Preferences,
}


def _read(place: Place, work: Callable[..., T], *args: Any) -> T:
    return _do(_opened(place), work, *args, reads=True)


def _write(place: Place, work: Callable[..., T], *args: Any) -> T:
    return _do(_opened(place), work, *args)


def _opened(place: Place) -> Database:
    database = Database(database_of(place.database, must_exist=True))
    migrating.check(database)
    return database


def _do(database: Database, work: Callable[..., T], *args: Any, reads: bool = False) -> T:
    try:
        return (database.now if reads else database.write_now)(work, *args)
    except Unavailable as error:
        raise GaiaError(f"--database {database.shown}: {error}", "try again") from None
    except Fault as fault:
        raise ConfigError(fault.message) from None
    finally:
        database.close()


def _password(name: str) -> str:
    """A password from the variable or the terminal; arguments are seen by everybody.

    Raises:
        ConfigError: it is too weak, or nobody can be asked.
    """
    password = os.environ.get("GCHAT_PASSWORD")
    if password is None:
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask for a password", "set GCHAT_PASSWORD")
        password = getpass.getpass(f"Password of {name}: ")
        if getpass.getpass("Once more: ") != password:
            raise ConfigError("the two passwords differ", "begin again")
    _right(check_password, password, name)
    return password


def _right(check: Callable[..., object], *given: str) -> None:
    """Raises ConfigError where a check of the site raises Fault."""
    try:
        check(*given)
    except Fault as fault:
        raise ConfigError(fault.message) from None


def _say(as_json: bool, data: Any, *lines: str) -> None:
    """Prints data as JSON, or lines; nothing that users named forges a line or moves the cursor."""
    print(json.dumps(data) if as_json else "\n".join(map(_printable, lines)))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _time(seconds: int | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
