"""The application: the site's routes, and OpenAI's paths for users' own keys."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gchat.serve.app import make_app
from gchat.serve.errors import ApiError
from gchat.serve.site import (
    account_routes,
    admin_routes,
    chat_routes,
    conversation_routes,
    page_routes,
    web,
)
from gchat.serve.site.database import Unavailable
from gchat.serve.site.door import ADDRESS, FAULT, SECRET, USER, Door
from gchat.serve.site.faults import Fault
from gchat.serve.site.page_routes import page
from gchat.serve.site.routes import Call, Route, answered
from gchat.serve.site.site import Site
from gchat.serve.sse import ClientGone

ROUTES: list[Route] = [
    *page_routes.ROUTES,
    *account_routes.ROUTES,
    *conversation_routes.ROUTES,
    *chat_routes.ROUTES,
    *admin_routes.ROUTES,
]
"""All routes of the site."""
_OPENAI = ("/v1/", "/health", "/metrics", "/tokenize", "/detokenize", "/tokenizer_info")


def make_site_app(site: Site) -> ASGIApp:
    """The ASGI application of a site."""
    app = FastAPI(
        title="gchat web", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
        redirect_slashes=False,
    )  # fmt: skip
    for route in ROUTES:
        _add(app, site, route)
    _describe_bodies(app)
    for kind in (Fault, Unavailable, ApiError, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, _problem)
    app.state.site = site

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        await (await _problem(Request(scope), scope[FAULT]))(scope, receive, send)

    door = Door(app, site, web.HEADERS, refused)
    openai = make_app(site.service, max_bytes=site.rules.max_bytes)

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        chosen = openai if scope.get("path", "").startswith(_OPENAI) else door
        await chosen(scope, receive, send)

    return either


def _add(app: FastAPI, site: Site, route: Route) -> None:
    async def answer(request: Request) -> Response:
        scope = request.scope
        call = Call(site, request, scope.get(USER), scope.get(SECRET, ""), scope.get(ADDRESS, ""))
        return await answered(route, call)

    names = [part[1:-1].partition(":")[0] for part in route.path.split("/") if part[:1] == "{"]
    extra: dict[str, Any] = {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    }
    if route.body is not None:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        extra["requestBody"] = {
            "required": True, "content": {"application/json": {"schema": schema}}
        }  # fmt: skip
    app.add_api_route(
        route.path, answer, methods=[route.method], name=f"{route.method} {route.path}",
        response_class=HTMLResponse if route.page else JSONResponse,
        description=route.answer.__doc__ or "", openapi_extra=extra,
    )  # fmt: skip


def _describe_bodies(app: FastAPI) -> None:
    """Adds the bodies' schemas to the description: routes read their bodies themselves."""
    bodies = [(route.body, "validation") for route in ROUTES if route.body is not None]
    _, made = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        described = plain()
        components = described.setdefault("components", {})
        components.setdefault("schemas", {}).update(made.get("$defs", {}))
        return described

    app.openapi = openapi  # type: ignore[method-assign]


async def _problem(request: Request, error: Exception) -> Response:
    """The answer to a request that cannot be answered: JSON, or a page for people."""
    if isinstance(error, ClientGone | ClientDisconnect):
        return Response(status_code=499)  # nobody reads it; nginx's number, for the log
    fault = _fault(error)
    if request.url.path.startswith("/api/"):
        return JSONResponse(fault.body(), fault.status, fault.headers)
    return page(
        request.app.state.site, request.scope, "error", fault.status, fault.headers,
        status=fault.status, message=fault.message,
    )  # fmt: skip


def _fault(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return error
    if isinstance(error, Unavailable):
        return Fault(503, str(error), after_s=5)
    if isinstance(error, ApiError):
        after = error.headers.get("Retry-After")
        return Fault(error.status, error.message, error.param, float(after) if after else None)
    if isinstance(error, HTTPException):
        known = {404: "there is no such page", 405: "not by this method"}
        return Fault(error.status_code, known.get(error.status_code, str(error.detail)))
    return Fault(500, "an error of the server; its log has it")  # so has the traceback
