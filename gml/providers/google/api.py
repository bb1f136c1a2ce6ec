"""Signed JSON calls to Google's APIs; README.md says why they are not its generated clients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from gml.config import Config
from gml.http import ApiError, Http, NetworkError, is_refusal, unavailable
from gml.model import ApiRequest
from gml.providers.google.failures import translate
from gml.providers.google.signin import SignIn


class GoogleApi:
    """One signed-in view of Google's services. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._https: dict[str, Http] = {}
        self.sign_in = SignIn()

    def http(self, service: str) -> Http:
        """The connection of a service (`tpu`, `compute`, `storage`, …)."""
        if service not in self._https:
            self._https[service] = Http(
                self.config.endpoint(service), self._headers, backoff_s=self.config.backoff_s
            )
        return self._https[service]

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.sign_in.token()}"}

    def send(self, request: ApiRequest, *, tries: int | None = None) -> dict[str, Any]:
        """The answer, with every failure as a GmlError except 404 and 409, which stay ApiErrors."""
        try:
            return self.http(request.service).send(request, tries=tries)
        except ApiError as error:
            if error.status in (404, 409, 412):
                raise
            failure = translate(error, self.config)
            failure.refused = is_refusal(error)
            raise failure from None
        except NetworkError as error:
            raise unavailable(error, f"Google's {request.service} API") from None

    def get(self, service: str, path: str, params: Mapping[str, str] | None = None) -> dict | None:
        """GET, None for 404."""
        try:
            return self.send(ApiRequest(service, "GET", path, dict(params or {})))
        except ApiError as error:
            if error.status == 404:
                return None
            raise translate(error, self.config) from None

    def pages(self, service: str, path: str, params: Mapping[str, str] | None = None) -> list[dict]:
        """All pages of a list."""
        pages_read, token = [], ""
        while True:
            page = self.get(
                service, path, {**(params or {}), **({"pageToken": token} if token else {})}
            )
            if page is None:
                return pages_read
            pages_read.append(page)
            token = page.get("nextPageToken", "")
            if not token:
                return pages_read


def wait_pauses(first_s: float, limit_s: float = 5.0) -> Iterator[float]:
    """Sleeps a little longer each time it is advanced."""
    pause = first_s
    while True:
        time.sleep(pause)
        yield pause
        pause = min(limit_s, pause * 1.5)
