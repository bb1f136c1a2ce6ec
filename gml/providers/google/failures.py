"""Google's error answers in gml's terms: quota, missing capacity, permission and mistakes apart."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from gml.config import Config
from gml.errors import (
    AuthError,
    Denied,
    Elsewhere,
    GmlError,
    QuotaError,
    RateLimited,
    StockOut,
    Unavailable,
    UsageError,
)
from gml.http import ApiError, is_rate_limit
from gml.providers.google.signin import LOGIN

_ROLES = {"tpu": "roles/tpu.admin", "compute": "roles/compute.instanceAdmin.v1",
          "container": "roles/container.admin", "storage": "roles/storage.admin"}  # fmt: skip
_QUOTA = re.compile(r"[Qq]uota (?:limit |metric )?'([\w./-]+)'")


class Meaning(enum.Enum):
    """The next step after an answer that refuses."""

    SIGN_IN = "sign in again"
    WAIT = "wait: too many requests in a short time"
    QUOTA = "try another region, or raise the quota"
    CAPACITY = "try another zone, or this one later"
    ELSEWHERE = "try another zone; this one never has it for this project"
    DENIED = "enable the API, or grant the permission"
    UNAVAILABLE = "try again later"
    UNKNOWN = "check project and zone"
    MISTAKE = "mend the request"


# The first row whose status (any, where empty) and pattern fit decides. The pattern is looked for
# in reason, message and details. Public reports of each answer: tests/gml/test_answers.py.
_ANSWERS: tuple[tuple[tuple[int, ...], str, Meaning], ...] = (
    ((401,), "", Meaning.SIGN_IN),
    # org policy (412 at Compute Engine), TPU API, Compute Engine
    ((), r"gcp\.resourceLocations|LOCATION_POLICY_VIOLATED", Meaning.ELSEWHERE),
    ((), r"[Ll]ocation \S+ is not found or access is unauthorized", Meaning.ELSEWHERE),
    ((), r"accelerator \S+ was not found in zone", Meaning.ELSEWHERE),
    ((), r"[Mm]achine type with name '\S+' does not exist in zone", Meaning.ELSEWHERE),
    (
        (),
        r"(?i:no more capacity|RESOURCE_POOL_EXHAUSTED|STOCKOUT|Insufficient (?:reserved )?capacity"
        r"|does not have enough resources|resources_unavailable|out of resources)",
        Meaning.CAPACITY,
    ),
    ((), r"QUOTA|quotaExceeded|[Qq]uota (?:limit |metric )?'[\w./-]+'", Meaning.QUOTA),
    ((403,), "", Meaning.DENIED),
    ((404,), "", Meaning.UNKNOWN),
    ((429, 500, 501, 502, 503, 504), "", Meaning.UNAVAILABLE),
    ((), "", Meaning.MISTAKE),
)


def meaning(error: ApiError) -> Meaning:
    """The next step that an answer calls for."""
    if is_rate_limit(error):
        return Meaning.WAIT
    text = f"{error.reason} {error.message} {error.details or ''}"
    for statuses, pattern, step in _ANSWERS:
        if (not statuses or error.status in statuses) and re.search(pattern, text):
            return step
    raise AssertionError("the last row fits everything")


def translate(error: ApiError, config: Config) -> GmlError:
    """An API error as the user should see it, by what has to be done next."""
    text, status = error.message, error.status
    match meaning(error):
        case Meaning.SIGN_IN:
            return AuthError(f"Google does not accept the credentials ({text[:120]})", LOGIN)
        case Meaning.WAIT:
            return RateLimited(f"Google's rate limit: {text[:200]}", "try again in a few minutes")
        case Meaning.QUOTA:
            return quota_error(text, config)
        case Meaning.CAPACITY:
            return StockOut(text[:300], "try another zone, --spot, or --retry-until-up")
        case Meaning.ELSEWHERE:
            return Elsewhere(text[:300], "try another --zone")
        case Meaning.DENIED:
            return _denied(text, str(error.details or ""), config)
        case Meaning.UNKNOWN:
            return UsageError(f"Google knows no such thing: {text[:300]}", "check project and zone")
        case Meaning.UNAVAILABLE:
            return Unavailable(f"Google answers {status} ({text[:200]})", "try again later")
        case Meaning.MISTAKE:
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


# google.rpc.Code of a finished operation, as the HTTP status of the same refusal.
_STATUS_OF_CODE = {3: 400, 5: 404, 7: 403, 8: 429, 14: 503, 16: 401}


def raise_operation_error(error: Mapping[str, Any], config: Config) -> NoReturn:
    """Raises the error of a finished operation: `google.rpc.Status`, or Compute's `errors` list."""
    if "errors" in error:
        first = error["errors"][0] if error["errors"] else {}
        reason, text = str(first.get("code", "")), str(first.get("message", "failed"))
        failure = ApiError(500, reason, text, first)
    else:
        code, text = int(error.get("code", 2)), str(error.get("message", "failed"))
        failure = ApiError(_STATUS_OF_CODE.get(code, 500), "", text, error.get("details"))
        if code in (8, 9) and meaning(failure) in (Meaning.WAIT, Meaning.UNAVAILABLE):
            # RESOURCE_EXHAUSTED and FAILED_PRECONDITION without more words: no capacity.
            raise StockOut(text[:300], "try another zone, --spot, or --retry-until-up")
    if meaning(failure) is Meaning.UNAVAILABLE:
        raise Unavailable(f"the operation failed: {failure.reason} {text[:300]}")
    raise translate(failure, config)
