"""Pages: shells that the server renders, and the files that they load."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from gchat.serve.site import conversations, messages, web
from gchat.serve.site.door import SECRET, USER, csrf_of
from gchat.serve.site.faults import Fault, missing
from gchat.serve.site.routes import Call, Routes
from gchat.serve.site.site import Site

ROUTES = Routes()


def page(
    site: Site,
    scope: Scope,
    name: str,
    code: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Response:
    """A page by name, for whoever asked."""
    user = scope.get(USER)
    rules = site.rules
    text = web.render(
        name,
        user=None if user is None else {"name": user.name, "role": user.role},
        csrf=csrf_of(scope.get(SECRET, "")),
        settings={
            "registration": rules.registration,
            "single_user": rules.single_user is not None,
            "search": site.find is not None,
            "site_name": rules.name,
        },
        **context,
    )
    return HTMLResponse(text, code, {"Cache-Control": "no-store", **(headers or {})})


def _for_user(call: Call, name: str) -> Response:
    if call.maybe_user is None:
        # Only a path of this site's own comes into the address.
        target = quote(call.request.url.path, safe="/")
        return RedirectResponse(f"/login?next={target}", 303)
    return page(call.site, call.request.scope, name)


@ROUTES.add("GET", "/", "open", page=True)
async def _home(call: Call) -> Response:
    """The chat."""
    return _for_user(call, "chat")


@ROUTES.add("GET", "/c/{conversation_id}", "open", page=True)
async def _conversation(call: Call) -> Response:
    """The chat with a conversation open."""
    if call.maybe_user is not None:
        await call.site.database.read(
            conversations.one, call.user.id, call.param("conversation_id")
        )
    return _for_user(call, "chat")


@ROUTES.add("GET", "/settings", "open", page=True)
async def _settings(call: Call) -> Response:
    """Settings, password and API keys."""
    return _for_user(call, "settings")


@ROUTES.add("GET", "/admin", "open", page=True)
async def _admin(call: Call) -> Response:
    """Administration."""
    if call.maybe_user is not None and not call.maybe_user.admin:
        raise Fault(403, "only administrators may do this")
    return _for_user(call, "admin")


@ROUTES.add("GET", "/login", "open", page=True)
async def _login(call: Call) -> Response:
    """The form to log in."""
    if call.maybe_user is not None:
        return RedirectResponse("/", 303)
    return page(call.site, call.request.scope, "login")


@ROUTES.add("GET", "/register", "open", page=True)
async def _register(call: Call) -> Response:
    """The form to make an account."""
    if call.maybe_user is not None:
        return RedirectResponse("/", 303)
    return page(
        call.site, call.request.scope, "register", invitation=call.query("invitation")[:100]
    )


@ROUTES.add("GET", "/share/{token}", "open", page=True)
async def _shared(call: Call) -> Response:
    """A conversation that somebody shares."""

    def read(c: Any) -> tuple[Any, Any]:
        there = conversations.shared(c, call.param("token"))
        return there, messages.tree(c, there["id"])

    there, rows = await call.site.database.read(read)
    branch = messages.path(rows, there["share_leaf"])

    def rendered() -> list[dict[str, Any]]:
        return [
            {"role": row["role"], "html": call.site.html(row["content"]), "sources": row["sources"]}
            for row in branch
        ]

    return page(
        call.site, call.request.scope, "share", headers={"X-Robots-Tag": "noindex"},
        title=there["title"], messages=await run_in_threadpool(rendered),
    )  # fmt: skip


@ROUTES.add("GET", "/static/{name:path}", "open")
async def _static(call: Call) -> Response:
    """A file of the front end."""
    there = web.static_file(call.param("name"))
    if there is None:
        raise missing("file")
    fixed = there.etag in (call.query("v"), f'"{call.query("v")}"')
    headers = {
        "ETag": there.etag if there.etag.startswith('"') else f'"{there.etag}"',
        "Cache-Control": "public, max-age=31536000, immutable" if fixed else "no-cache",
    }
    if call.request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(there.body, media_type=there.media_type, headers=headers)
