"""Administration: users, invitations, status, charts, audit, preferences."""

import asyncio
import time
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field
from starlette.responses import Response

from gchat.serve.bodies import Strict
from gchat.serve.site import accounts, audit, preferences, samples
from gchat.serve.site.faults import Fault
from gchat.serve.site.names import check_password
from gchat.serve.site.routes import Call, Routes

ROUTES = Routes()


class UserChanges(Strict):
    """Fields of a user; those not named stay, and a quota of null is none."""

    disabled: bool | None = None
    role: Literal["user", "admin"] | None = None
    quota: int | None = Field(None, ge=0, lt=2**53)


class NewPassword(Strict):
    """A password that an administrator sets; left out, one is made."""

    password: str | None = Field(None, max_length=2000)


class NewInvitation(Strict):
    """An invitation to be."""

    days: int = Field(7, ge=1, le=365)
    uses: int = Field(1, ge=1, le=1000)


@ROUTES.add("GET", "/api/admin/users", "admin")
async def _users(call: Call) -> dict[str, Any]:
    """All users, with the tokens that they used today."""
    return {"items": await call.site.database.read(accounts.list_users)}


@ROUTES.add("PATCH", "/api/admin/users/{user_id}", "admin", UserChanges)
async def _change_user(call: Call) -> dict[str, Any]:
    """Disables or enables a user, or changes role or quota; a disabled user is out at once."""
    values = call.body.model_dump(exclude_unset=True)
    for name in ("disabled", "role"):
        if name in values and values[name] is None:
            raise Fault(400, f"{name} is null", name)
    if not values:
        raise Fault(400, "nothing is to be changed: name disabled, role or quota")
    user_id = call.param("user_id")

    def change(c: sa.Connection) -> accounts.User:
        user = accounts.change_user(c, user_id, **values)
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        audit.note(c, call.user.name, "change user", user.name, told, call.address)
        return user

    user = await call.site.database.write(change)
    if user.disabled:
        await call.site.answers.stop(lambda one: one.user_id == user.id)
    return {"id": user.id, "name": user.name, "role": user.role, "disabled": user.disabled,
            "quota": user.quota}  # fmt: skip


@ROUTES.add("POST", "/api/admin/users/{user_id}/reset-password", "admin", NewPassword)
async def _reset_password(call: Call) -> dict[str, Any]:
    """Sets a user's password, which is told this once; all of the user's sessions end."""
    user = await call.site.database.read(accounts.user_by_id, call.param("user_id"))
    password = call.body.password or accounts.new_password()
    check_password(password, user.name)
    made = await call.site.passwords.hash(password)

    def change(c: sa.Connection) -> None:
        accounts.set_password(c, user.id, made)
        audit.note(c, call.user.name, "reset password", user.name, address=call.address)

    await call.site.database.write(change)
    return {"name": user.name, "password": password}


@ROUTES.add("GET", "/api/admin/invitations", "admin")
async def _invitations(call: Call) -> dict[str, Any]:
    """Invitations that can still be used."""
    return {"items": await call.site.database.read(accounts.list_invitations)}


@ROUTES.add("POST", "/api/admin/invitations", "admin", NewInvitation)
async def _invite(call: Call) -> dict[str, Any]:
    """Makes an invitation; its address is told this once."""

    def add(c: sa.Connection) -> dict[str, Any]:
        made = accounts.add_invitation(c, call.user.name, call.body.days, call.body.uses)
        audit.note(c, call.user.name, "invite", made["id"], address=call.address)
        return made

    made = await call.site.database.write(add)
    secret = made.pop("invitation")
    return {**made, "url": f"/register?invitation={secret}"}


@ROUTES.add("DELETE", "/api/admin/invitations/{invitation_id}", "admin")
async def _withdraw(call: Call) -> None:
    """Withdraws an invitation."""

    def delete(c: sa.Connection) -> None:
        accounts.delete_invitation(c, call.param("invitation_id"))
        audit.note(c, call.user.name, "withdraw invitation", call.param("invitation_id"),
                   address=call.address)  # fmt: skip

    await call.site.database.write(delete)


@ROUTES.add("GET", "/api/admin/status", "admin")
async def _status(call: Call) -> dict[str, Any]:
    """State of models, queue, disk and site, now."""
    users = await call.site.database.read(accounts.count_users)
    now = await asyncio.to_thread(samples.status, call.site)
    return {**now, "users": users, "uptime_s": round(time.monotonic() - call.site.began)}


@ROUTES.add("GET", "/api/admin/series", "admin")
async def _series(call: Call) -> dict[str, Any]:
    """Numbers of the last minutes, for charts."""
    minutes = call.number("minutes", 60, 1440)
    return await call.site.database.read(samples.series, minutes)


@ROUTES.add("GET", "/api/admin/audit", "admin")
async def _audit(call: Call) -> dict[str, Any]:
    """The audit log, the newest entry first."""
    limit = call.number("limit", 100, 500)
    return await call.site.database.read(audit.listed, call.query("before"), limit)


@ROUTES.add("GET", "/api/admin/preferences", "admin")
async def _preferences(call: Call) -> Response:
    """Pairs of answers to one message, rated good and bad, as `gchat dpo` reads them."""
    lines = await call.site.database.read(preferences.lines)
    await call.site.database.write(
        audit.note, call.user.name, "export preferences", address=call.address
    )
    headers = {"Content-Disposition": 'attachment; filename="preferences.jsonl"'}
    return Response("".join(lines), media_type="application/x-ndjson", headers=headers)
