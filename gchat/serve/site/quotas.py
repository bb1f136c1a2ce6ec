"""Tokens that users may have a day, and API keys of users in place of a file's."""

from gchat.serve.errors import ApiError, busy
from gchat.serve.keys import Keys
from gchat.serve.limits import Rates
from gchat.serve.site import accounts
from gchat.serve.site.accounts import User
from gchat.serve.site.clock import DAY_S, now, today
from gchat.serve.site.database import Database, Unavailable

_HEAD = "user:"


def holder_of(user: User) -> str:
    """Name of a user among those who hold keys."""
    return _HEAD + user.id


class Quotas(Rates):
    """Rates of `gchat serve`, and the tokens of each user a day, kept in the database.

    Args:
        requests: that a user may send in a minute.
        tokens: that a user may use in a minute.
        database: that holds the counts; written every few seconds, by `save`.
    """

    def __init__(self, requests: float | None, tokens: float | None, database: Database) -> None:
        super().__init__(requests, tokens)
        self._database = database
        self._users: dict[str, tuple[int | None, int, int]] = {}
        self._unsaved: dict[str, int] = {}

    async def know(self, user: User) -> None:
        """Reads what a user may have and has used, before he is let in."""
        used = await self._database.read(accounts.used_today, user.id)
        self._users[holder_of(user)] = (user.quota, used, today())

    def begin(self, holder: str) -> None:
        """Counts a request; ApiError where a rate or the day's quota is used up."""
        quota, used, day = self._users.get(holder, (None, 0, today()))
        used = (used if day == today() else 0) + self._unsaved.get(holder, 0)
        if quota is not None and used >= quota:
            raise busy(f"your {quota:,} tokens of today are used up", DAY_S - now() % DAY_S)
        super().begin(holder)

    def used(self, holder: str, tokens: int) -> None:
        """Counts tokens of a request that has been answered, or broken off."""
        super().used(holder, tokens)
        if holder.startswith(_HEAD) and tokens:
            self._unsaved[holder] = self._unsaved.get(holder, 0) + tokens

    async def save(self) -> None:
        """Writes counts to the database."""
        unsaved, self._unsaved = self._unsaved, {}
        try:
            if unsaved:
                await self._database.write(_save, unsaved)
        except BaseException:
            for holder, tokens in unsaved.items():
                self._unsaved[holder] = self._unsaved.get(holder, 0) + tokens
            raise
        for holder, tokens in unsaved.items():
            quota, used, day = self._users.get(holder, (None, 0, today()))
            self._users[holder] = (quota, used + tokens, day)


def _save(c: object, unsaved: dict[str, int]) -> None:
    for holder, tokens in unsaved.items():
        accounts.add_use(c, holder.removeprefix(_HEAD), tokens)  # type: ignore[arg-type]


class UserKeys(Keys):
    """API keys that users made for themselves.

    Args:
        database: that holds their hashes.
        quotas: that learn of a user before he asks.
    """

    def __init__(self, database: Database, quotas: Quotas) -> None:
        super().__init__()
        self._database, self._quotas = database, quotas

    @property
    def needed(self) -> bool:
        """Tells that a request needs a key."""
        return True

    async def holder(self, key: str) -> str | None:  # type: ignore[override]
        """Name of the user whose key it is; None for a wrong one.

        Raises:
            ApiError: the database cannot be read.
        """
        try:
            known = await self._database.read(accounts.key_user, key)
            if known is None:
                return None
            user, unnoted = known
            if unnoted:  # a write every few minutes, and not for each request
                self._database.note(accounts.note_key_use, key)
            await self._quotas.know(user)
        except Unavailable as error:
            raise ApiError(503, str(error), headers={"Retry-After": "5"}) from None
        return holder_of(user)
