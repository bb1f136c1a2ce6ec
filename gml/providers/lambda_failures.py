"""Lambda's errors in gml's terms."""

from __future__ import annotations

from gml.errors import AuthError, Denied, GmlError, QuotaError, StockOut, Unavailable, UsageError
from gml.http import ApiError


def translate(error: ApiError) -> GmlError:
    """Lambda's error codes in gml's terms; the message is not a contract, the code is."""
    code, text = error.reason, error.message
    if error.status == 401 or code == "global/invalid-api-key":
        return AuthError("Lambda does not accept the API key", "run `gml init lambda`")
    if code.endswith("insufficient-capacity"):
        return StockOut(f"Lambda: {text}", "see `gml offers`, or try --retry-until-up")
    if code == "global/quota-exceeded":
        return QuotaError(
            f"Lambda's quota: {text}", "raise it at https://cloud.lambda.ai (support)"
        )
    if code in ("global/account-inactive", "global/invalid-address") or error.status == 403:
        return Denied(f"Lambda denies it: {text}", "check the account at https://cloud.lambda.ai")
    if error.status == 404 or code == "global/object-does-not-exist":
        return UsageError(f"Lambda knows no such thing: {text}", "see `gml offers`")
    if error.status == 429 or error.status >= 500 or code.startswith("provider/"):
        return Unavailable(f"Lambda answers {error.status} {code} ({text})", "try again later")
    return UsageError(f"Lambda refuses the request: {code}: {text}", "see `gml doctor`")
