"""One provider's worth of state: configuration, API, and how long its calls are waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gml.config import Config
from gml.durations import format_duration
from gml.errors import RateLimited, Unavailable
from gml.model import ApiRequest
from gml.providers.google.api import GoogleApi, wait_pauses
from gml.providers.google.failures import raise_operation_error
from gml.store import Store


@dataclass
class Session:
    """Shared by the functions of this package. `patience_s` bounds each wait for Google."""

    config: Config
    store: Store
    api: GoogleApi
    patience_s: float = 900.0

    @property
    def ssh_user(self) -> str:
        """Login name on the machines."""
        return self.config.google.ssh_user

    def location(self, zone: str) -> str:
        """`projects/…/locations/ZONE`."""
        return f"projects/{self.config.project}/locations/{zone}"

    def pauses(self, longest_s: float = 5.0):
        """Sleeps between two looks at the same thing, and yields the seconds slept."""
        return wait_pauses(min(1.0, self.config.backoff_s), longest_s)

    def wait_operation(self, request: ApiRequest, operation: dict[str, Any]) -> None:
        """Polls a long-running operation; a stock-out usually comes here, after the 200."""
        path = _operation_path(request, operation)
        waited = 0.0
        pauses = self.pauses()
        while not (operation.get("done") or operation.get("status") == "DONE"):
            waited += next(pauses)
            if waited > self.patience_s:
                raise Unavailable(f"Google's operation took over {format_duration(waited)}")
            try:
                answer = self.api.get(request.service, path)
            except RateLimited:
                continue  # asked again: it comes up all the same
            if answer is None:
                return  # forgotten by Google; the resource itself will tell
            operation = answer
        if operation.get("error"):
            raise_operation_error(operation["error"], self.config)


def _operation_path(request: ApiRequest, operation: dict[str, Any]) -> str:
    name = str(operation.get("name", ""))
    if request.service == "tpu":
        return f"{request.path.split('/', 1)[0]}/{name}"
    parts = request.path.split("/")
    if request.service == "container":  # v1/projects/P/locations/L/…
        return "/".join([*parts[:5], "operations", name])
    # compute/v1/projects/P/zones/Z/… or compute/v1/projects/P/global/…
    root = "/".join(parts[: 5 if parts[4] == "global" else 6])
    return f"{root}/operations/{name}"
