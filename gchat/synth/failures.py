"""Errors of a client as a worker's failed attempts: whose fault they are, what waiting helps."""

from gaia.errors import GaiaError
from gaia_metrics.redaction import redact_text
from gchat.client import ClientError
from gchat.queue import Failed

_EVERYBODYS = (429, 502, 503, 529)
"""Statuses of an endpoint that is overloaded or not there: no item is to blame."""


def failed(error: GaiaError, cost: float = 0.0) -> Failed:
    """The attempt that an error ended.

    A limit of the endpoint, or none that answers, makes the worker wait. A wrong key or a spent
    budget stops it. What a later attempt may heal (500, a time-out, an answer that is none) spends
    one of the item's attempts; a question that the endpoint refuses is given up.

    Args:
        error: of the client.
        cost: US dollars that the attempt took.
    """
    text = redact_text(str(error))
    if not isinstance(error, ClientError):
        return Failed(f"question: {text}", retry=False, cost=cost)
    if error.cause in ("time-out", "broken off"):
        return Failed(f"{error.cause}: {text}", cost=cost)
    if error.after_s is not None:
        kind = f"endpoint {error.status or error.cause}"
        if error.cause == "away" or error.status in _EVERYBODYS:
            return Failed(f"{kind}: {text}", pause_s=error.after_s, cost=cost)
        return Failed(f"{kind}: {text}", cost=cost)
    if error.fatal:
        return Failed(text, fatal=True, cost=cost)
    if error.status:
        return Failed(f"refused {error.status}: {text}", retry=False, cost=cost)
    return Failed(f"answer: {text}", cost=cost)
