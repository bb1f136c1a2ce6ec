"""Google's error answers in gml's terms: quota, missing capacity, permission and mistakes apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from gml.config import Config
from gml.errors import AuthError, Denied, GmlError, QuotaError, StockOut, Unavailable, UsageError
from gml.http import ApiError, is_quota
from gml.providers.google.signin import LOGIN

_NO_CAPACITY = re.compile(
    r"no more capacity|RESOURCE_POOL_EXHAUSTED|STOCKOUT|Insufficient (reserved )?capacity"
    r"|does not have enough resources|resources_unavailable|out of resources",
    re.IGNORECASE,
)
_ROLES = {"tpu": "roles/tpu.admin", "compute": "roles/compute.instanceAdmin.v1",
          "container": "roles/container.admin", "storage": "roles/storage.admin"}  # fmt: skip
_QUOTA = re.compile(r"[Qq]uota (?:limit |metric )?'([\w./-]+)'")


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
