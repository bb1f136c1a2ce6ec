"""Google credentials: found and refreshed by google-auth, over gml's own HTTP client."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from gaia.extras import install
from gml.errors import AuthError, Unavailable

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "run: gcloud auth application-default login"


class SignIn:
    """The credentials of this process, looked for once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: Any = None

    def token(self) -> str:
        """An access token; raises AuthError with the command that mends it."""
        given = os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN")
        if given:
            return given
        try:
            import google.auth
            import google.auth.exceptions
        except ImportError:
            raise AuthError(
                "google-auth is not installed",
                install("google"),
            ) from None
        with self._lock:
            try:
                if self._credentials is None:
                    self._credentials, _ = google.auth.default(scopes=[SCOPE])
                if not self._credentials.valid:
                    self._credentials.refresh(_Transport())
            except google.auth.exceptions.DefaultCredentialsError:
                raise AuthError("no Google credentials on this machine", LOGIN) from None
            except google.auth.exceptions.RefreshError as error:
                text = str(error.args[0]) if error.args else "refused"
                raise AuthError(
                    f"the Google credentials have expired ({text[:120]})", LOGIN
                ) from None
            except google.auth.exceptions.TransportError as error:
                raise Unavailable(f"Google's sign-in does not answer ({error})") from None
            return self._credentials.token


class _Transport:
    """google-auth's transport on httpx2: saves `requests` as a dependency."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30,
        **_: Any,
    ) -> _Response:
        import google.auth.exceptions
        import httpx2

        try:
            answer = httpx2.request(
                method, url, content=body, headers=dict(headers or {}), timeout=timeout or 30
            )
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise google.auth.exceptions.TransportError(str(error)) from None
        return _Response(answer.status_code, dict(answer.headers), answer.content)


class _Response:
    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status = status
        self.headers = headers
        self.data = data
