"""Times and ids of the site."""

import secrets
import time

DAY_S = 86_400


def now() -> int:
    """Seconds since 1970, whole. Shown to people and used for expiry, never for order."""
    return int(time.time())


def today() -> int:
    """Days since 1970, in UTC: quotas begin anew with each."""
    return now() // DAY_S


def new_id() -> str:
    """An id that nobody guesses: 120 random bits, safe in addresses."""
    return secrets.token_urlsafe(15)


def new_secret() -> str:
    """A secret of 256 random bits, safe in addresses and cookies."""
    return secrets.token_urlsafe(32)
