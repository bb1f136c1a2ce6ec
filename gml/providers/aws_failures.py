"""EC2's error codes in gml's terms: each has one meaning and one next step."""

from __future__ import annotations

import re

from gml import errors
from gml.errors import GmlError, StockOut, Unavailable, UsageError

# docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: the code is the contract.
_MEANINGS: tuple[tuple[str, type[GmlError], str], ...] = (
    (r"RequestLimitExceeded|Throttling|EC2Throttled\w*", errors.RateLimited, "try again later"),
    (r"Insufficient\w*Capacity|SpotMaxPriceTooLow", StockOut, "try another region"),
    (r"MaxSpotInstanceCountExceeded|\w*LimitExceeded", errors.QuotaError,
     "raise it: https://console.aws.amazon.com/servicequotas"),
    (r"Unsupported\w*|InvalidAvailabilityZone", errors.Elsewhere, "take another region"),
    (r"AuthFailure|UnrecognizedClient\w*|InvalidClientTokenId|ExpiredToken\w*|Signature\w*",
     errors.AuthError, "run `aws configure`, or `aws sso login`"),
    (r"UnauthorizedOperation|AccessDenied\w*|OptInRequired|Blocked|PendingVerification",
     errors.Denied, "allow ec2:RunInstances, Describe*, TerminateInstances and CreateTags"),
    (r"Internal\w*|\w*Unavailable", Unavailable, "try again later"),
)  # fmt: skip


def translate(code: str, message: str, region: str) -> GmlError:
    """EC2's error codes in gml's terms."""
    text = f"EC2 in {region}: {message[:300]}"
    for pattern, kind, remedy in _MEANINGS:
        if re.fullmatch(pattern, code):
            return kind(text, remedy)
    return UsageError(f"{text} ({code})", "see `gml doctor -p aws`")
