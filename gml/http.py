"""JSON over HTTP through httpx2: retries with backoff, errors as data, no secrets in logs.

httpx2 is httpx under its new name (same author, same interface; httpx itself has stood still since
0.28). It is imported with the first request only: help, completion and cached lists do without.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gml.clock import service_clock
from gml.errors import Unavailable
from gml.model import ApiRequest

if TYPE_CHECKING:
    import httpx2

# Statuses that a later try may heal. 501 and 505 never do.
TRANSIENT = (408, 429, 500, 502, 503, 504)
# Limits count by the minute; so many times `backoff_s` are waited for one (3 minutes by default).
RATE_PATIENCE = 360.0
_RATE = re.compile(
    r"RATE_LIMIT_EXCEEDED|[rR]ateLimitExceeded|rate-limited|[Rr]ate [Ll]imit [Ee]xceeded"
    r"|(?:per|in) (?:\d+ )?(?:second|minute)s?\b"
)


class ApiError(Exception):
    """The service answered with an error.

    `reason` is its machine-readable code, `retry_after` the seconds it asked us to wait. `first`:
    no earlier attempt of the same call went out, so nothing of it can have been carried out.
    """

    first = True

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Any = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after = retry_after


class NetworkError(Exception):
    """No answer arrived; the request may or may not have been carried out."""


class Http:
    """Sends `ApiRequest`s of one service over kept-open connections. Thread-safe.

    Args:
        base: address without a trailing slash.
        headers: called before each request, so that tokens are fresh; its values are never logged.
        tries: attempts for transient statuses and network errors.
        backoff_s: first pause, doubled each time, with jitter; `Retry-After` wins over it.
    """

    def __init__(
        self,
        base: str,
        headers: Callable[[], dict[str, str]],
        *,
        tries: int = 5,
        backoff_s: float = 0.5,
        timeout_s: float = 30.0,
    ) -> None:
        self.base = base
        self.headers = headers
        self.tries = tries
        self.backoff_s = backoff_s
        self.timeout_s = timeout_s

    def send(self, request: ApiRequest, *, tries: int | None = None) -> dict[str, Any]:
        """The JSON answer.

        Args:
            request: what to send.
            tries: overrides the instance's; 1 for calls that must not be repeated blindly.

        Raises:
            ApiError: the service refused it, for good or `tries` times.
            NetworkError: no answer, `tries` times.
        """
        attempts, begun, first = tries or self.tries, time.monotonic(), True
        attempt = 0  # rate limits do not count as attempts: they are waited for
        while True:
            last = attempt == attempts - 1
            try:
                return self._once(request)
            except ApiError as error:
                error.first, first = first, False
                if attempts > 1 and is_rate_limit(error):
                    waited = time.monotonic() - begun
                    if waited >= RATE_PATIENCE * self.backoff_s:
                        raise
                    self._pause(min(attempt + 3, 5), error.retry_after)
                    continue
                if last or error.status not in TRANSIENT or is_quota(error):
                    raise
                self._pause(attempt, error.retry_after)
            except NetworkError:
                first = False
                if last:
                    raise
                self._pause(attempt, None)
            attempt += 1

    def _pause(self, attempt: int, retry_after: float | None) -> None:
        wait = self.backoff_s * 2**attempt * random.uniform(0.7, 1.3)
        time.sleep(min(60.0, max(wait, retry_after or 0.0)))

    def _once(self, request: ApiRequest) -> dict[str, Any]:
        import httpx2

        path = urllib.parse.quote(request.path, safe="/:@-._~%")
        sent = time.time()
        try:
            answer = _client().request(
                request.method,
                f"{self.base}/{path}",
                params=request.params or None,
                json=request.body,
                headers={"Accept": "application/json", **self.headers()},
                timeout=self.timeout_s,
            )
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            text = str(error) or type(error).__name__
            raise NetworkError(f"{self.base}: {text}") from None
        service_clock.note(answer.headers.get("Date", ""), sent, time.time())
        if not answer.is_success:
            raise _api_error(answer)
        return _parse(answer.content)

    def ask_time(self) -> None:
        """Learns the service's time: any answer has it, a refusal too. Never raises."""
        import httpx2

        sent = time.time()
        with contextlib.suppress(httpx2.RequestError, httpx2.InvalidURL):
            answer = _client().get(f"{self.base}/", timeout=5.0)
            service_clock.note(answer.headers.get("Date", ""), sent, time.time())


@functools.cache
def _client() -> httpx2.Client:
    """One pool of connections for all services: reading the system's certificates takes a while."""
    import httpx2

    # Credentials go to the configured host only: a redirect is an error, not followed.
    return httpx2.Client(follow_redirects=False)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw or b"{}")
    except ValueError:
        raise NetworkError("the answer was not JSON") from None
    return value if isinstance(value, dict) else {"value": value}


def _api_error(answer: httpx2.Response) -> ApiError:
    reason, message, details = "", answer.reason_phrase, None
    try:
        body = json.loads(answer.content)["error"]
        # Google: {"code", "status", "message", "details"}; Lambda: {"code", "message"}.
        reason = body.get("status") or str(body.get("code") or "")
        message = body.get("message") or message
        details = body.get("details") or body.get("errors") or body.get("suggestion")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = answer.content[:200].decode(errors="replace") or message
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    return ApiError(answer.status_code, reason, message, details, seconds)


def is_quota(error: ApiError) -> bool:
    """Tells a quota from the request rate; only the text of a 429 tells them apart."""
    text = f"{error.message} {error.details or ''}"
    return (
        error.status in (403, 429)
        and not is_rate_limit(error)
        and ("Quota limit" in text or "QUOTA_EXCEEDED" in text or "quotaExceeded" in text)
    )


def is_rate_limit(error: ApiError) -> bool:
    """Tells whether only too much was asked in a short time: a later try will be answered."""
    text = f"{error.reason} {error.message} {error.details or ''}"
    return error.status in (403, 429) and _RATE.search(text) is not None


def is_refusal(error: ApiError) -> bool:
    """Tells whether the call certainly changed nothing: refused at its first attempt."""
    return error.first and error.status < 500


def unavailable(error: NetworkError | ApiError, what: str) -> Unavailable:
    """The user's view of a service that does not answer."""
    return Unavailable(f"{what} does not answer ({error})", "check the network and try again")
