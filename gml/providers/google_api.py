"""Signed JSON calls to Google's APIs, and their errors in gml's terms.

google-auth finds the credentials; calls go through `gml.http`. The generated clients are not used
here: google-cloud-compute takes 4 s to import, google-cloud-tpu 1 s, and the latter lacks
`runDuration`. They serve as test oracles against the same fakes.
"""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, NoReturn

from gml.config import Config
from gml.errors import AuthError, Denied, GmlError, QuotaError, StockOut, Unavailable, UsageError
from gml.http import ApiError, Http, NetworkError, is_quota, is_refusal, unavailable
from gml.model import ApiRequest

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "run: gcloud auth application-default login"
_NO_CAPACITY = re.compile(
    r"no more capacity|RESOURCE_POOL_EXHAUSTED|STOCKOUT|Insufficient (reserved )?capacity"
    r"|does not have enough resources|resources_unavailable|out of resources",
    re.IGNORECASE,
)
_ROLES = {"tpu": "roles/tpu.admin", "compute": "roles/compute.instanceAdmin.v1",
          "container": "roles/container.admin", "storage": "roles/storage.admin"}  # fmt: skip
_QUOTA = re.compile(r"[Qq]uota (?:limit |metric )?'([\w./-]+)'")


class GoogleApi:
    """One signed-in view of Google's services. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._https: dict[str, Http] = {}
        self._lock = threading.Lock()
        self._credentials: Any = None

    def http(self, service: str) -> Http:
        """The connection of a service (`tpu`, `compute`, `storage`, …)."""
        if service not in self._https:
            self._https[service] = Http(
                self.config.endpoint(service), self._headers, backoff_s=self.config.backoff_s
            )
        return self._https[service]

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

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
                "install gml with its google extra: uv tool install 'gaia[google]'",
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
        found, token = [], ""
        while True:
            page = self.get(
                service, path, {**(params or {}), **({"pageToken": token} if token else {})}
            )
            if page is None:
                return found
            found.append(page)
            token = page.get("nextPageToken", "")
            if not token:
                return found

    # ---- buckets

    def bucket_location(self, bucket: str) -> str:
        """A bucket's location in lower case (`us-east5`, `us`); raises UsageError when unknown."""
        check_bucket(bucket)
        found = self.get("storage", f"storage/v1/b/{bucket}")
        if found is None:
            raise UsageError(f"bucket gs://{bucket} does not exist", "check the name")
        return str(found.get("location", "")).lower()

    def upload(self, bucket: str, name: str, value: dict[str, Any]) -> None:
        """Writes a small JSON object."""
        check_bucket(bucket)
        request = ApiRequest(
            "storage",
            "POST",
            f"upload/storage/v1/b/{bucket}/o",
            {"uploadType": "media", "name": name},
            value,
        )
        try:
            self.send(request)
        except ApiError as error:
            raise translate(error, self.config) from None

    def download(self, bucket: str, name: str) -> dict[str, Any]:
        """Reads a small JSON object; {} where there is none."""
        check_bucket(bucket)
        # The object's name is one path segment: its slashes stay escaped.
        quoted = urllib.parse.quote(name, safe="")
        return self.get("storage", f"storage/v1/b/{bucket}/o/{quoted}", {"alt": "media"}) or {}


def check_bucket(name: str) -> None:
    """Raises UsageError for what can't be a bucket's name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name):
        raise UsageError(f"{name[:80]!r} is not a bucket name", "write gs://BUCKET/PATH")


def translate(error: ApiError, config: Config) -> GmlError:
    """An API error as the user should see it: quota, stock-out, permission and mistakes apart."""
    text, details = error.message, str(error.details or "")
    if error.status == 401:
        return AuthError(f"Google does not accept the credentials ({text[:120]})", LOGIN)
    if is_quota(error) or "QUOTA" in details or _QUOTA.search(text):
        return quota_error(text, config)
    if _NO_CAPACITY.search(text) or _NO_CAPACITY.search(details):
        return StockOut(text[:300], "try another zone, --spot, or --retry-until-up")
    if error.status == 403:
        return _denied(text, details, config)
    if error.status == 404 and "access is unauthorized" in text:
        return StockOut(text[:300], "this zone is not open to the project; try another --zone")
    if error.status == 429 or error.status >= 500:
        return Unavailable(f"Google answers {error.status} ({text[:200]})", "try again later")
    if error.status == 404:
        return UsageError(f"Google knows no such thing: {text[:300]}", "check project and zone")
    return UsageError(f"Google refuses the request: {text[:400]}", "see `gml doctor`")


def quota_error(text: str, config: Config) -> QuotaError:
    """Quota with its name and the page where it is raised."""
    match = _QUOTA.search(text)
    page = f"https://console.cloud.google.com/iam-admin/quotas?project={_project(config)}"
    where = f"{page} (filter: {match[1]})" if match else page
    return QuotaError(
        text[:300].rstrip("."), f"raise it at {where}, or take another region or --spot"
    )


def _project(config: Config) -> str:
    """For commands that the user is told to run."""
    return config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "") or "PROJECT"


def _denied(text: str, details: str, config: Config) -> Denied:
    if "SERVICE_DISABLED" in details or "has not been used in project" in text:
        match = re.search(r"\b([a-z]+\.googleapis\.com)", f"{text} {details}")
        service = match[1] if match else "tpu.googleapis.com"
        return Denied(
            f"{service} is not enabled in the project",
            f"run: gcloud services enable {service} --project {_project(config)}",
        )
    match = re.search(r"[Pp]ermission '?([a-z]+(?:\.[a-zA-Z]+)+)'?", text)
    if match is None:
        remedy = "is it the right project and account? gcloud projects list; gcloud auth list"
        return Denied(f"Google denies it: {text[:300]}", remedy)
    role = _ROLES.get(match[1].split(".", 1)[0], "the role that has it")
    return Denied(
        f"Google denies it: permission {match[1]} is missing",
        f"run: gcloud projects add-iam-policy-binding {_project(config)} "
        f"--member user:YOU --role {role}",
    )


def raise_operation_error(error: Mapping[str, Any], config: Config) -> NoReturn:
    """Raises what a finished operation says: `google.rpc.Status`, or Compute's `errors` list."""
    if "errors" in error:
        first = error["errors"][0] if error["errors"] else {}
        code, text = str(first.get("code", "")), str(first.get("message", "failed"))
        if "QUOTA" in code:
            raise quota_error(text, config)
        if _NO_CAPACITY.search(code) or _NO_CAPACITY.search(text):
            raise StockOut(text[:300], "try another zone, --spot, or --retry-until-up")
        raise Unavailable(f"{code}: {text[:300]}")
    code, text = int(error.get("code", 2)), str(error.get("message", "failed"))
    if _QUOTA.search(text):
        raise quota_error(text, config)
    if code in (8, 9) or _NO_CAPACITY.search(text):
        raise StockOut(text[:300], "try another zone, --spot, or --retry-until-up")
    if code == 7:
        raise _denied(text, "", config)
    if code == 3:
        raise UsageError(f"Google refuses the request: {text[:300]}")
    raise Unavailable(f"the operation failed with code {code}: {text[:300]}")


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


def wait_pauses(first_s: float, limit_s: float = 5.0):
    """Sleeps a little longer each time it is advanced."""
    pause = first_s
    while True:
        time.sleep(pause)
        yield pause
        pause = min(limit_s, pause * 1.5)
