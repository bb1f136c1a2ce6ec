"""Failed logins: whoever guesses waits longer each time, and nobody else does.

Failures count for the pair of account and address, and for the address. Those of an account from
many addresses slow down addresses alone from which its owner has never come: he is not locked out.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from gchat.serve.site.faults import Fault

_LONGEST_S = 900.0
_FORGOTTEN_S = 3600.0
_KEPT = 50_000


def network(address: str) -> str:
    """The address, or of IPv6 the network that one subscriber has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class Attempts:
    """Counts failures, in memory: a restart forgives.

    Args:
        clock: seconds, monotonic.
        free: attempts that cost nothing, of an account from an address.
        many: attempts that cost nothing, of an address, or of an account from strange addresses.
        said: what somebody hears who must wait.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        free: int = 5,
        many: int = 50,
        said: str = "too many wrong passwords; try again later",
    ) -> None:
        self._clock, self._said = clock, said
        self._free: dict[str, int] = {"pair": free, "address": many, "account": many}
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def check(self, account: str, address: str, known: bool) -> None:
        """Raises Fault (429) where this address must wait before it tries this account again.

        Args:
            account: key of the name that was given, whether there is such a user or not.
            address: of the client, as `network` makes it.
            known: the owner of the account has logged in from this address before.
        """
        wait_s = 0.0
        for kind, about in _counted(account, address):
            if kind == "account" and known:
                continue
            count, last = self._failures.get((kind, about), (0, 0.0))
            over = count - self._free[kind]
            if over >= 0:
                delay_s = min(_LONGEST_S, 2.0 ** min(over, 20))
                wait_s = max(wait_s, last + delay_s - self._clock())
        if wait_s > 0:
            raise Fault(429, self._said, after_s=wait_s)

    def begin(self, account: str, address: str) -> None:
        """Notes an attempt, before its password is checked: many at once count too."""
        now = self._clock()
        for counted in _counted(account, address):
            count, last = self._failures.pop(counted, (0, now))
            count = 0 if now - last > _FORGOTTEN_S else count
            self._failures[counted] = (count + 1, now)
        while len(self._failures) > _KEPT:
            self._failures.popitem(last=False)

    def worked(self, account: str, address: str) -> None:
        """Forgets the failures of an account from this address, and the last of the others."""
        for counted in _counted(account, address):
            count, last = self._failures.pop(counted, (0, 0.0))
            if counted[0] != "pair" and count > 1:
                self._failures[counted] = (count - 1, last)


def _counted(account: str, address: str) -> tuple[tuple[str, str], ...]:
    return ("pair", f"{account}\n{address}"), ("address", address), ("account", account)
