"""The table of routes: each says who may come, and what body it takes.

There is no other way to add a route, so that whoever lists them (tests do) has seen all.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gchat.serve.bodies import Strict, checked, read_json
from gchat.serve.errors import ApiError
from gchat.serve.site.accounts import User
from gchat.serve.site.faults import Fault
from gchat.serve.site.site import Site

Access = Literal["open", "user", "admin"]


@dataclass
class Call:
    """One request to a route.

    Attributes:
        user: who is logged in; raises a Fault for nobody, which only open routes meet.
        secret: of the session or, for visitors, of the cookie that the CSRF token comes from.
        body: as the route wants it; None where it takes none.
    """

    site: Site
    request: Request
    maybe_user: User | None
    secret: str
    address: str
    body: Any = None

    @property
    def user(self) -> User:
        """The user who is logged in."""
        if self.maybe_user is None:
            raise Fault(401, "log in first")
        return self.maybe_user

    def param(self, name: str) -> str:
        """A part of the path; what nothing can be called is nowhere."""
        return self.request.path_params[name].replace("\0", "")

    def query(self, name: str, otherwise: str = "") -> str:
        """A field of the query."""
        return self.request.query_params.get(name, otherwise).replace("\0", "")

    def number(self, name: str, otherwise: int, most: int) -> int:
        """A whole number of the query, from 1 to `most`."""
        text = self.query(name) or str(otherwise)
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
            raise Fault(400, f"{name} is no number from 1 to {most}", name)
        return int(text)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    access: Access
    answer: Handler
    body: type[Strict] | None = None
    page: bool = False
    """Errors are pages, and nobody logged in is sent to log in."""


class Routes(list[Route]):
    """Routes of one file, added by decorators."""

    def add(
        self,
        method: str,
        path: str,
        access: Access = "user",
        body: type[Strict] | None = None,
        page: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Makes a function the answer of a route."""

        def added(answer: Handler) -> Handler:
            self.append(Route(method, path, access, answer, body, page))
            return answer

        return added


async def answered(route: Route, call: Call) -> Response:
    """The answer of a route to a call.

    Raises:
        Fault: nobody, or somebody else, may come here; or the body is wrong.
    """
    if route.access != "open" and not call.user.admin and route.access == "admin":
        raise Fault(403, "only administrators may do this")
    if route.body is not None:
        try:
            given = await read_json(call.request)
            call.body = await run_in_threadpool(_cleaned, route.body, given)
        except ApiError as error:
            raise Fault(error.status, error.message, error.param) from None
    result = await route.answer(call)
    if isinstance(result, Response):
        return result
    return JSONResponse({} if result is None else result, headers={"Cache-Control": "no-store"})


def _cleaned(kind: type[Strict], given: dict[str, Any]) -> Strict:
    try:
        return checked(kind, _clean(given))
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None


def _clean(value: Any) -> Any:
    """JSON without NUL, which PostgreSQL does not store."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(one) for name, one in value.items()}
    return value
