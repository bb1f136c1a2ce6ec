"""The time, by the clouds' clocks: deadlines are absolute, and a laptop's clock may be wrong.

Every answer of a service carries its time (`Date`, RFC 9110 6.6.1). Once one has come in, `now` is
this machine's time with the difference taken off; differences of a few seconds are latency and the
header's resolution, and count for nothing.
"""

from __future__ import annotations

import time

# Less than this is latency, and that the header has no fractions of a second.
NOISE_S = 5.0
# From this on the user is told.
WARN_S = 30.0


class ServiceClock:
    """The difference between the services' clocks and ours."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def note(self, date: str, sent: float, received: float) -> None:
        """Takes the time of an answer.

        Args:
            date: its `Date` header; nonsense is passed over.
            sent: our time in unix seconds when the request went out.
            received: and when the answer was there.
        """
        from email.utils import parsedate_to_datetime  # 10 ms that cached lists do without

        try:
            service = parsedate_to_datetime(date).timestamp() + 0.5
        except (TypeError, ValueError):
            return
        difference = (sent + received) / 2 - service
        margin = NOISE_S + (received - sent) / 2
        self.ahead_s = difference if abs(difference) > margin else 0.0

    def now(self) -> float:
        """Unix seconds, by the service's clock once one has answered."""
        return time.time() - self.ahead_s

    def forget(self) -> None:
        """Goes by this machine's clock alone again."""
        self.ahead_s = 0.0


# Of this process. All services are taken to agree with each other.
service_clock = ServiceClock()
