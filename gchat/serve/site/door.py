"""The door of the site: headers, size of bodies, sessions, and requests that other sites forge.

Plain ASGI: Starlette's `BaseHTTPMiddleware` would hide that a client has gone away.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gchat.serve.guard import LimitedBody, too_large
from gchat.serve.site import accounts
from gchat.serve.site.attempts import network
from gchat.serve.site.clock import new_secret
from gchat.serve.site.database import Unavailable
from gchat.serve.site.faults import Fault
from gchat.serve.site.site import Site

USER, SECRET, ADDRESS, FRESH = "gchat.user", "gchat.secret", "gchat.address", "gchat.fresh"
FAULT = "gchat.fault"
"""Names in an ASGI scope."""
_READING = ("GET", "HEAD", "OPTIONS")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_log = logging.getLogger("gchat.serve")


def csrf_of(secret: str) -> str:
    """The token that proves a page of this site sent the request."""
    return hashlib.sha256(f"csrf:{secret}".encode()).hexdigest()


def cookie_name(scope: Scope, kind: str) -> str:
    """Name of a cookie; under TLS one that no other host, and no plain HTTP, can set."""
    return f"__Host-gchat_{kind}" if scope["scheme"] == "https" else f"gchat_{kind}"


def cookie(scope: Scope, kind: str, value: str, seconds: int) -> str:
    """A Set-Cookie header; no script reads the cookie, no other site sends it."""
    secure = "; Secure" if scope["scheme"] == "https" else ""
    name = cookie_name(scope, kind)
    return f"{name}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"


class Door:
    """Lets requests in with their user, or raises a Fault that `app` answers.

    Args:
        app: that answers.
        site: whose sessions count.
        headers: of every answer.
        fault: that answers a problem, which stands in the scope.
    """

    def __init__(
        self, app: ASGIApp, site: Site, headers: Mapping[str, str], fault: ASGIApp
    ) -> None:
        self._app, self._site, self._headers, self._fault = app, site, headers, fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection's request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
                if fresh := scope.get(FRESH):
                    headers.append("Set-Cookie", cookie(scope, "visitor", fresh, 86400))
            await send(message)

        try:
            try:
                await self._admit(scope)
            except (Fault, Unavailable) as problem:
                scope[FAULT] = problem
                await self._fault(scope, receive, with_headers)
                return
            body = LimitedBody(receive, self._site.rules.max_bytes, 60.0)
            await self._app(scope, body, with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "(other)")
            seconds = time.monotonic() - began
            metrics = self._site.service.metrics
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            if not route.startswith("/static"):
                user = scope.get(USER)
                holder = "-" if user is None else f"user:{user.id}"
                method = scope["method"] if scope["method"].isalpha() else "(other)"
                _log.info("%s %s %s %.3fs %s", method[:10], route, status, seconds, holder)

    async def _admit(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        client = scope.get("client") or ("unknown", 0)
        scope[ADDRESS] = network(client[0])
        size = headers.get(b"content-length", "0")
        if size.isdigit() and int(size[:20]) > self._site.rules.max_bytes:
            too_much = too_large(self._site.rules.max_bytes)
            raise Fault(413, too_much.message)
        if scope["path"].startswith("/static/"):
            return
        # As browsers read it: the standard library's reader stops at what other programs of this
        # host may have set, and whoever has such a cookie could never log in.
        cookies = cookie_parser(headers.get(b"cookie", ""))
        await self._know_user(scope, headers, cookies)
        if scope["method"] not in _READING:
            self._check_origin(scope, headers)
            given = headers.get(b"x-csrf-token", "")
            right = csrf_of(scope[SECRET])
            if scope.get(FRESH) or not hmac.compare_digest(given.encode(), right.encode()):
                raise Fault(403, "this page is out of date: reload it", "csrf")

    async def _know_user(
        self, scope: Scope, headers: Mapping[bytes, str], cookies: Mapping[str, str]
    ) -> None:
        site = self._site
        secret = cookies.get(cookie_name(scope, "session"), "")
        scope[USER] = None
        if secret and site.rules.single_user is None:
            there = await site.database.read(accounts.session_user, secret)
            if there is not None:
                scope[USER], late = there
                scope[SECRET] = secret
                if late:
                    site.database.note(accounts.note_use, secret)
                return
        visitor = cookies.get(cookie_name(scope, "visitor"), "")
        if not 40 <= len(visitor) <= 60:
            visitor = scope[FRESH] = new_secret()
        scope[SECRET] = visitor
        if site.rules.single_user is not None:
            host = headers.get(b"host", "").rpartition(":")
            name = host[0] if host[2].isdigit() and host[0] else headers.get(b"host", "")
            if name not in _LOCAL:  # a name of somebody else's that leads here: rebinding
                raise Fault(403, "this site is reached as localhost only")
            scope[USER] = await site.database.read(accounts.user_by_id, site.rules.single_user)

    def _check_origin(self, scope: Scope, headers: Mapping[bytes, str]) -> None:
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
            origin is not None and origin != f"{scope['scheme']}://{host}"
        ):
            raise Fault(
                403,
                "the request comes from another site; behind a proxy, see --trust-proxy",
                "origin",
            )
