"""Accounts: log in and out, register, password, settings, API keys."""

from typing import Any, Literal

from pydantic import Field
from starlette.responses import JSONResponse, Response

from gchat.serve.bodies import Strict
from gchat.serve.site import accounts, audit
from gchat.serve.site.accounts import LIFE_S, User, hashed
from gchat.serve.site.door import cookie, csrf_of
from gchat.serve.site.faults import Fault
from gchat.serve.site.names import check_password, key_of, name_of
from gchat.serve.site.routes import Call, Routes
from gchat.serve.site.sampling import Sampling

ROUTES = Routes()
_LONG = 2000
"""Characters of what somebody types as a password; too many cost time and are no password."""


class Login(Strict):
    """Name and password."""

    name: str = Field(max_length=_LONG)
    password: str = Field(max_length=_LONG)


class Register(Login):
    """Name and password of a new account."""

    invitation: str | None = Field(None, max_length=_LONG)


class Password(Strict):
    """A change of the password."""

    old: str = Field(max_length=_LONG)
    new: str = Field(max_length=_LONG)


class Settings(Strict):
    """Settings of a user."""

    default_model: str | None = Field(None, max_length=200)
    system: str | None = Field(None, max_length=20_000)
    sampling: Sampling | None = None
    theme: Literal["light", "dark", "system"] | None = None


class Me(Strict):
    """Changes of the user himself."""

    settings: Settings


class NewKey(Strict):
    """Name of a new API key."""

    name: str = Field("key", min_length=1, max_length=64)


@ROUTES.add("POST", "/api/login", "open", Login)
async def _login(call: Call) -> Response:
    """Logs in: begins a session with a cookie of its own."""
    site, body = call.site, call.body
    if site.rules.single_user is not None:
        raise Fault(409, "this site has one user, who needs no password")
    there = await site.database.read(accounts.user_by_name, body.name)
    account = key_of(body.name)
    known = there is not None and await site.database.read(
        accounts.known_here, there[0].id, call.address
    )
    site.attempts.check(account, call.address, known)
    site.attempts.begin(account, call.address)
    right, rehashed = await site.passwords.check(body.password, there[1] if there else None)
    if there is None or not right:
        raise Fault(401, "name or password is wrong")
    user = there[0]
    if user.disabled:
        raise Fault(403, "this account is disabled; ask an administrator")
    site.attempts.worked(account, call.address)
    if rehashed is not None:
        await site.database.write(accounts.rehash, user.id, rehashed)
    return await _begun(call, user)


@ROUTES.add("POST", "/api/register", "open", Register)
async def _register(call: Call) -> Response:
    """Makes an account and logs in."""
    site, body = call.site, call.body
    rule = site.rules.registration
    if rule == "closed" or site.rules.single_user is not None:
        raise Fault(403, "registration is closed; ask an administrator for an account")
    if rule == "invitation" and not body.invitation:
        raise Fault(403, "registration needs an invitation", "invitation")
    name_of(body.name)
    check_password(body.password, body.name)
    site.registrations.check("", call.address, known=True)
    site.registrations.begin("", call.address)
    password = await site.passwords.hash(body.password)

    def add(c: Any) -> User:
        invitation = body.invitation if rule == "invitation" else None
        user = accounts.add_user(c, body.name, password, invitation=invitation)
        audit.note(c, user.name, "register", user.name, address=call.address)
        return user

    return await _begun(call, await site.database.write(add))


async def _begun(call: Call, user: User) -> Response:
    """The answer that begins a session; the one before it, if any, ends."""

    def begin(c: Any) -> str:
        if call.maybe_user is not None:
            accounts.end_session(c, call.secret)
        return accounts.begin_session(c, user.id, call.address)

    secret = await call.site.database.write(begin)
    body = {"name": user.name, "role": user.role, "csrf": csrf_of(secret)}
    response = JSONResponse(body, headers={"Cache-Control": "no-store"})
    response.headers.append("Set-Cookie", cookie(call.request.scope, "session", secret, LIFE_S))
    return response


@ROUTES.add("POST", "/api/logout")
async def _logout(call: Call) -> Response:
    """Ends this session."""
    await call.site.database.write(accounts.end_session, call.secret)
    return _ended(call)


@ROUTES.add("POST", "/api/logout-everywhere")
async def _logout_everywhere(call: Call) -> Response:
    """Ends all sessions of this user."""
    await call.site.database.write(accounts.end_sessions, call.user.id)
    return _ended(call)


def _ended(call: Call) -> Response:
    response = JSONResponse({}, headers={"Cache-Control": "no-store"})
    response.headers.append("Set-Cookie", cookie(call.request.scope, "session", "", 0))
    return response


@ROUTES.add("POST", "/api/password", body=Password)
async def _password(call: Call) -> Response:
    """Changes the password; all other sessions end, and this one goes on under a new secret."""
    site, user = call.site, call.user
    stored = await site.database.read(accounts.password_of, user.id)
    site.attempts.check(key_of(user.name), call.address, known=True)
    site.attempts.begin(key_of(user.name), call.address)
    if not (await site.passwords.check(call.body.old, stored))[0]:
        raise Fault(403, "the old password is wrong", "old")
    site.attempts.worked(key_of(user.name), call.address)
    try:
        check_password(call.body.new, user.name)
    except Fault as fault:
        raise Fault(fault.status, fault.message, "new") from None
    password = await site.passwords.hash(call.body.new)

    def change(c: Any) -> None:
        accounts.set_password(c, user.id, password, keep=hashed(call.secret))
        audit.note(c, user.name, "change password", user.name, address=call.address)

    await site.database.write(change)
    return await _begun(call, user)


@ROUTES.add("GET", "/api/me")
async def _me(call: Call) -> dict[str, Any]:
    """The user who is logged in."""
    used = await call.site.database.read(accounts.used_today, call.user.id)
    return {**call.site.user_json(call.user), "used": used}


@ROUTES.add("PATCH", "/api/me", body=Me)
async def _change_me(call: Call) -> dict[str, Any]:
    """Changes settings of the user; those not named stay."""
    changed = call.body.settings.model_dump(exclude_unset=True)
    settings = {**(call.user.settings or {}), **changed}
    settings = {name: value for name, value in settings.items() if value is not None}
    await call.site.database.write(accounts.set_settings, call.user.id, settings)
    return {**call.site.user_json(call.user), "settings": settings}


@ROUTES.add("GET", "/api/keys")
async def _keys(call: Call) -> dict[str, Any]:
    """The user's API keys, without their secrets."""
    return {"items": await call.site.database.read(accounts.list_keys, call.user.id)}


@ROUTES.add("POST", "/api/keys", body=NewKey)
async def _new_key(call: Call) -> dict[str, Any]:
    """Makes an API key; its secret is told this once."""

    def add(c: Any) -> dict[str, Any]:
        audit.note(c, call.user.name, "make key", call.body.name, address=call.address)
        return accounts.add_key(c, call.user.id, call.body.name)

    return await call.site.database.write(add)


@ROUTES.add("DELETE", "/api/keys/{key_id}")
async def _delete_key(call: Call) -> None:
    """Deletes an API key: it is refused from now on."""

    def delete(c: Any) -> None:
        accounts.delete_key(c, call.user.id, call.param("key_id"))
        audit.note(c, call.user.name, "delete key", call.param("key_id"), address=call.address)

    await call.site.database.write(delete)
