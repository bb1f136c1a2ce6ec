"""Users, their sessions, API keys and invitations, in the database. Each function is one step."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from gchat.serve.keys import PREFIX
from gchat.serve.site.clock import DAY_S, new_id, new_secret, now, today
from gchat.serve.site.faults import Fault, missing
from gchat.serve.site.names import key_of, name_of
from gchat.serve.site.tables import api_keys, invitations, sessions, usage, users

LIFE_S, IDLE_S = 30 * DAY_S, 7 * DAY_S
"""A session ends after this long, and after this long without use."""
_SEEN_S = 300
_MOST_KEYS = 50
_USE_NOTED_S = 300  # between two notes of a key's last use
ROLES = ("user", "admin")


@dataclass(frozen=True)
class User:
    """Somebody with an account."""

    id: str
    name: str
    role: str = "user"
    disabled: bool = False
    quota: int | None = None
    """Tokens a day; any number where it is None."""
    settings: dict[str, Any] | None = None

    @property
    def admin(self) -> bool:
        """Tells whether he administers the site."""
        return self.role == "admin"


_USER = (
    users.c.id, users.c.name, users.c.role, users.c.disabled, users.c.quota, users.c.settings
)  # fmt: skip


def hashed(secret: str) -> str:
    """The form in which a random secret is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


# ── Users ───────────────────────────────────────────────────────────────────────────────────────


def add_user(
    c: sa.Connection,
    name: str,
    password_hash: str,
    role: str = "user",
    invitation: str | None = None,
) -> User:
    """Makes an account, and uses an invitation up where one is given.

    Raises:
        Fault: the name is taken, looks like a taken one, or the invitation is not valid.
    """
    shown, key, skeleton = name_of(name)
    if invitation is not None:
        used = c.execute(
            sa.update(invitations)
            .where(
                invitations.c.hash == hashed(invitation),
                invitations.c.left > 0,
                invitations.c.expires_at > now(),
            )
            .values(left=invitations.c.left - 1)
        )
        if used.rowcount != 1:
            raise Fault(403, "the invitation is used up, expired or withdrawn", "invitation")
    user = User(new_id(), shown, role)
    row = {"id": user.id, "name": shown, "key": key, "skeleton": skeleton, "role": role,
           "password": password_hash, "created_at": now()}  # fmt: skip
    try:
        c.execute(sa.insert(users).values(row))
    except IntegrityError:
        raise Fault(409, "this name is taken, or looks like one that is", "name") from None
    return user


def user_by_id(c: sa.Connection, user_id: str) -> User:
    """A user.

    Raises:
        Fault: there is none.
    """
    row = c.execute(sa.select(*_USER).where(users.c.id == user_id)).first()
    if row is None:
        raise missing("user")
    return User(*row)


def user_by_name(c: sa.Connection, name: str) -> tuple[User, str] | None:
    """A user and the hash of the password."""
    row = c.execute(sa.select(*_USER, users.c.password).where(users.c.key == key_of(name))).first()
    return None if row is None else (User(*row[:-1]), row[-1])


def password_of(c: sa.Connection, user_id: str) -> str:
    """The hash of a user's password."""
    return c.execute(sa.select(users.c.password).where(users.c.id == user_id)).scalar_one()


def set_password(c: sa.Connection, user_id: str, password_hash: str, keep: str = "") -> None:
    """Changes a password, and ends all sessions but the one whose hash is `keep`."""
    c.execute(sa.update(users).where(users.c.id == user_id).values(password=password_hash))
    end_sessions(c, user_id, keep)


def rehash(c: sa.Connection, user_id: str, password_hash: str) -> None:
    """Stores the same password under a new hash."""
    c.execute(sa.update(users).where(users.c.id == user_id).values(password=password_hash))


def change_user(c: sa.Connection, user_id: str, **values: Any) -> User:
    """Changes role, quota, or whether a user is disabled; a disabled one is logged out.

    Raises:
        Fault: there is no such user, or nobody would be left to administer the site.
    """
    before = user_by_id(c, user_id)
    c.execute(sa.update(users).where(users.c.id == user_id).values(values))
    admins = sa.select(sa.func.count()).where(users.c.role == "admin", ~users.c.disabled)
    if before.admin and not c.execute(admins).scalar_one():
        raise Fault(409, "nobody would be left to administer the site")
    after = user_by_id(c, user_id)
    if after.disabled or after.role != before.role:
        end_sessions(c, user_id)
    return after


def count_users(c: sa.Connection) -> int:
    """Number of accounts that are not disabled."""
    chosen = sa.select(sa.func.count()).select_from(users).where(~users.c.disabled)
    return c.execute(chosen).scalar_one()


def new_password() -> str:
    """A password for somebody who forgot his."""
    return "-".join(secrets.token_hex(2) for _ in range(5))


def set_settings(c: sa.Connection, user_id: str, settings: dict[str, Any]) -> None:
    """Stores a user's settings."""
    c.execute(sa.update(users).where(users.c.id == user_id).values(settings=settings))


def list_users(c: sa.Connection) -> list[dict[str, Any]]:
    """All users, with what they used today."""
    used = sa.select(usage.c.tokens).where(usage.c.user_id == users.c.id, usage.c.day == today())
    seen = sa.select(sa.func.max(sessions.c.seen_at)).where(sessions.c.user_id == users.c.id)
    rows = c.execute(
        sa.select(
            users.c.id, users.c.name, users.c.role, users.c.disabled, users.c.quota,
            users.c.created_at, sa.func.coalesce(used.scalar_subquery(), 0).label("used"),
            seen.scalar_subquery().label("last_seen"),
        ).order_by(users.c.key)
    )  # fmt: skip
    return [dict(row._mapping) for row in rows]


# ── Sessions ────────────────────────────────────────────────────────────────────────────────────


def begin_session(c: sa.Connection, user_id: str, address: str) -> str:
    """Begins a session with a secret of its own, which is returned."""
    secret, moment = new_secret(), now()
    row = {"hash": hashed(secret), "user_id": user_id, "created_at": moment, "seen_at": moment,
           "address": address[:64]}  # fmt: skip
    c.execute(sa.insert(sessions).values(row))
    c.execute(sa.delete(sessions).where(sessions.c.created_at < moment - 4 * LIFE_S))
    return secret


def session_user(c: sa.Connection, secret: str) -> tuple[User, bool] | None:
    """Whose session it is, and whether it is time to note that it was used."""
    moment = now()
    row = c.execute(
        sa.select(*_USER, sessions.c.seen_at)
        .join(sessions, sessions.c.user_id == users.c.id)
        .where(
            sessions.c.hash == hashed(secret),
            sessions.c.ended_at.is_(None),
            sessions.c.created_at > moment - LIFE_S,
            sessions.c.seen_at > moment - IDLE_S,
            ~users.c.disabled,
        )
    ).first()
    return None if row is None else (User(*row[:-1]), row[-1] < moment - _SEEN_S)


def note_use(c: sa.Connection, secret: str) -> None:
    """Notes that a session was used."""
    c.execute(sa.update(sessions).where(sessions.c.hash == hashed(secret)).values(seen_at=now()))


def end_session(c: sa.Connection, secret: str) -> None:
    """Ends one session."""
    one = sa.update(sessions).where(
        sessions.c.hash == hashed(secret), sessions.c.ended_at.is_(None)
    )
    c.execute(one.values(ended_at=now()))


def end_sessions(c: sa.Connection, user_id: str, keep: str = "") -> None:
    """Ends all sessions of a user but the one whose hash is `keep`."""
    c.execute(
        sa.update(sessions)
        .where(
            sessions.c.user_id == user_id, sessions.c.hash != keep, sessions.c.ended_at.is_(None)
        )
        .values(ended_at=now())
    )


def known_here(c: sa.Connection, user_id: str, address: str) -> bool:
    """Tells whether this user has logged in from this address before."""
    chosen = sa.select(sessions.c.hash).where(
        sessions.c.user_id == user_id, sessions.c.address == address[:64]
    )
    return c.execute(chosen.limit(1)).first() is not None


# ── API keys of users ───────────────────────────────────────────────────────────────────────────


def add_key(c: sa.Connection, user_id: str, name: str) -> dict[str, Any]:
    """Makes a key, whose secret is told this once.

    Raises:
        Fault: there are too many.
    """
    count = sa.select(sa.func.count()).where(api_keys.c.user_id == user_id)
    if c.execute(count).scalar_one() >= _MOST_KEYS:
        raise Fault(409, f"there are {_MOST_KEYS} keys already; delete one")
    secret = PREFIX + new_secret()
    row = {"id": new_id(), "user_id": user_id, "name": name, "created_at": now()}
    c.execute(sa.insert(api_keys).values(row | {"hash": hashed(secret)}))
    return {"id": row["id"], "name": name, "created_at": row["created_at"], "key": secret}


def list_keys(c: sa.Connection, user_id: str) -> list[dict[str, Any]]:
    """A user's keys, without their secrets."""
    used = api_keys.c.used_at.label("last_used")
    shown = (api_keys.c.id, api_keys.c.name, api_keys.c.created_at, used)
    rows = c.execute(sa.select(*shown).where(api_keys.c.user_id == user_id).order_by(shown[2]))
    return [dict(row._mapping) for row in rows]


def delete_key(c: sa.Connection, user_id: str, key_id: str) -> None:
    """Deletes a user's key; Fault where he has none of this id."""
    mine = sa.delete(api_keys).where(api_keys.c.id == key_id, api_keys.c.user_id == user_id)
    if not c.execute(mine).rowcount:
        raise missing("key")


def key_user(c: sa.Connection, secret: str) -> tuple[User, bool] | None:
    """The user whose key it is, and whether its last use is to be noted again."""
    row = c.execute(
        sa.select(*_USER, api_keys.c.used_at)
        .join(api_keys, api_keys.c.user_id == users.c.id)
        .where(api_keys.c.hash == hashed(secret), ~users.c.disabled)
    ).first()
    if row is None:
        return None
    *user, used_at = row
    return User(*user), used_at is None or used_at < now() - _USE_NOTED_S


def note_key_use(c: sa.Connection, secret: str) -> None:
    """Notes that a key was used just now."""
    mine = sa.update(api_keys).where(api_keys.c.hash == hashed(secret))
    c.execute(mine.values(used_at=now()))


# ── Invitations ─────────────────────────────────────────────────────────────────────────────────


def add_invitation(c: sa.Connection, made_by: str, days: int, uses: int) -> dict[str, Any]:
    """Makes an invitation, whose secret is told this once."""
    secret = new_secret()
    row = {"id": new_id(), "made_by": made_by, "created_at": now(),
           "expires_at": now() + days * DAY_S, "left": uses}  # fmt: skip
    c.execute(sa.insert(invitations).values(row | {"hash": hashed(secret)}))
    return row | {"invitation": secret}


def list_invitations(c: sa.Connection) -> list[dict[str, Any]]:
    """Invitations that can still be used."""
    shown = [column for column in invitations.c if column.name != "hash"]
    valid = sa.and_(invitations.c.left > 0, invitations.c.expires_at > now())
    rows = c.execute(sa.select(*shown).where(valid).order_by(invitations.c.created_at))
    return [dict(row._mapping) for row in rows]


def delete_invitation(c: sa.Connection, invitation_id: str) -> None:
    """Withdraws an invitation; Fault where there is none."""
    if not c.execute(sa.delete(invitations).where(invitations.c.id == invitation_id)).rowcount:
        raise missing("invitation")


# ── Use ─────────────────────────────────────────────────────────────────────────────────────────


def used_today(c: sa.Connection, user_id: str) -> int:
    """Tokens that a user has used today."""
    chosen = sa.select(usage.c.tokens).where(usage.c.user_id == user_id, usage.c.day == today())
    return c.execute(chosen).scalar() or 0


def add_use(c: sa.Connection, user_id: str, tokens: int) -> None:
    """Counts tokens of a user."""
    of_today = sa.and_(usage.c.user_id == user_id, usage.c.day == today())
    more = sa.update(usage).where(of_today).values(tokens=usage.c.tokens + tokens)
    if not c.execute(more).rowcount:
        c.execute(sa.insert(usage).values(user_id=user_id, day=today(), tokens=tokens))
