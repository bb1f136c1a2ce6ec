"""Addresses that the server may fetch pages from: those of the public internet, and no others.

Addresses inside are how a question makes the server read what its user may not: the cloud's
metadata, databases, admin pages. The check is of the address that is connected to, not of its
spelling: decimal, octal, mapped into IPv6 or behind a name that changes, all end here.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")  # all that is assigned for the internet so far
# Translators of a network's own (64:ff9b:1::/48) are inside: where the IPv4 address stands in
# theirs is theirs to say (RFC 8215).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_TRANSLATED = ipaddress.ip_network("::ffff:0:0:0/96")  # RFC 2765
# What `is_global` lets through: the rest of IETF's block (Oracle's metadata lie there; Python knows
# parts of it), relays of 6to4, and Azure's wire server, which is answered inside.
_INSIDE = tuple(
    ipaddress.ip_network(one) for one in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
_NUMBER = re.compile(r"(0x[0-9a-f]*|\d+)$", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62}\.)*[a-z0-9_-]{0,62}", re.IGNORECASE)


class FetchError(Exception):
    """A page that is not fetched; one line that says why."""


def is_public(address: str) -> bool:
    """Tells whether an address is one of the public internet, whatever form of IP it has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if (inner := _ipv4_inside(ip)) is not None:
            return is_public(str(inner))
        if ip not in _IPV6_PUBLIC:
            return False
    inside = any(ip in network for network in _INSIDE)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not inside


def _ipv4_inside(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to, by mapping, translation or a tunnel."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if any(ip in network for network in (_NAT64, _COMPATIBLE, _TRANSLATED)):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def checked_url(url: str, schemes: frozenset[str], ports: frozenset[int] | None) -> SplitResult:
    """The parts of a URL that may be asked, as far as its text tells.

    Raises:
        FetchError: it may not.
    """
    if len(url) > 2000 or any(character <= " " or character == "\x7f" for character in url):
        raise FetchError("the address is too long, or holds spaces")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host = host.encode("idna").decode() if not host.isascii() else host
    except (ValueError, UnicodeError):
        raise FetchError("the address cannot be read") from None
    if parts.scheme not in schemes:
        raise FetchError(f"addresses begin with {' or '.join(sorted(schemes))}")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise FetchError("the address holds a user's name")
    if ports is not None and port is not None and port not in ports:
        raise FetchError(f"port {port} is not asked")
    if not host or not _well_spelt(host):
        raise FetchError("the address names no host")
    return parts._replace(netloc=_netloc(host, port), fragment="")


def _well_spelt(host: str) -> bool:
    """Tells whether a host is a name, or an address in its one usual form.

    `0177.0.0.1`, `0x7f.1` and `2130706433` are 127.0.0.1 to some resolvers: they are never meant.
    """
    try:
        return str(ipaddress.ip_address(host)) == host or ":" in host
    except ValueError:
        last = host.rstrip(".").rsplit(".", 1)[-1]
        return bool(_NAME.fullmatch(host)) and not _NUMBER.match(last)


def _netloc(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host.rstrip(".").lower()
    return name if port is None else f"{name}:{port}"
