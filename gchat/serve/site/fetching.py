"""Pages of the web, fetched so that nobody is led inside by it.

Each connection resolves its host once, checks every address of the answer and connects to one of
those: a name that changes between the look and the connection (rebinding) gains nothing. TLS is
checked against the name. Redirects are followed here, each like a new address. What comes back is
limited in size, time and kind, and never asks for anything further.
"""

import asyncio
import codecs
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlunsplit

import httpcore2

from gchat.serve.site.addresses import FetchError, checked_url, is_public
from gchat.serve.site.page_text import read_page
from gchat.serve.site.storable import storable

_AGENT = "Mozilla/5.0 (compatible; gaia-chat; reads a page that a search found)"
_KINDS = ("text/html", "application/xhtml+xml", "text/plain")
_CHARSET = re.compile(r"""charset=["']?([\w-]{1,40})""", re.IGNORECASE)
_CHARSETS = frozenset(
    {
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "ascii", "koi8-r", "koi8-u"),
        *(f"iso8859-{part}" for part in range(1, 17) if part != 12),
        *(f"cp{page}" for page in (866, 874, 932, 949, *range(1250, 1259))),
        *("mac-roman", "mac-cyrillic", "tis-620", "gb2312", "gbk", "gb18030", "big5", "big5hkscs"),
        *("euc_jp", "iso2022_jp", "shift_jis", "euc_kr"),
    }
)
"""Codecs of pages by Python's names, as encoding.spec.whatwg.org lists them. Python knows others:
for names (slow with long texts) and for its own source, which write halves of characters."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    answer = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in answer]


@dataclass(frozen=True)
class Limits:
    """Bounds of what is fetched.

    Attributes:
        seconds: for all of a page, redirects included.
        max_bytes: of a body; the rest is left.
        max_text: characters of a page's text that are kept.
        redirects: that are followed.
        schemes: of addresses; `http` may be read by anybody on the way.
        ports: that may be named; None: any.
        allowed: tells whether an address and port may be connected to.
        resolve: addresses of a host.
        tls: None: the system's certificates.
    """

    seconds: float = 8.0
    max_bytes: int = 2_000_000
    max_text: int = 6000
    redirects: int = 4
    schemes: frozenset[str] = frozenset({"https"})
    ports: frozenset[int] | None = frozenset({443})
    allowed: Callable[[str, int], bool] = field(default=lambda address, port: is_public(address))
    resolve: Callable[[str, int], Awaitable[list[str]]] = _resolve
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Page:
    """A page that was fetched; `url` is where redirects ended."""

    url: str
    title: str
    text: str


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connections to addresses that were checked, in the step that uses them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inner: Any = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolves, checks and connects.

        Raises:
            FetchError: an address of the host is not public.
        """
        try:
            literal = ":" in host or host.replace(".", "").isdigit()
            addresses = [host] if literal else await self._limits.resolve(host, port)
        except (OSError, UnicodeError):
            raise FetchError("the host's name is not known") from None
        # One address inside among others is enough: a mixed answer is how rebinding begins.
        if not addresses or not all(self._limits.allowed(one, port) for one in addresses):
            raise FetchError("the host's address is not one of the public internet")
        return await self._inner.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )

    async def connect_unix_socket(self, path: str, *args: Any, **options: Any) -> Any:
        """Refuses: no address leads to one."""
        raise FetchError("sockets of this machine are not asked")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await self._inner.sleep(seconds)


async def fetch(url: str, limits: Limits = Limits()) -> Page:
    """Fetches a page and reads its text.

    Raises:
        FetchError: it may not be fetched, cannot be, or is no text.
    """
    try:
        async with (
            asyncio.timeout(limits.seconds),
            httpcore2.AsyncConnectionPool(
                ssl_context=limits.tls, network_backend=_CheckedBackend(limits), retries=0
            ) as pool,
        ):
            for _ in range(limits.redirects + 1):
                parts = checked_url(url, limits.schemes, limits.ports)
                url = urlunsplit(parts)
                page = await _once(pool, url, limits)
                if isinstance(page, Page):
                    return page
                url = urljoin(url, page)
    except TimeoutError:
        raise FetchError(f"the page took more than {limits.seconds:g} s") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
        raise FetchError(f"the page could not be fetched ({type(error).__name__})") from None
    except (OSError, ValueError, UnicodeError, httpcore2.UnsupportedProtocol):
        raise FetchError("the page could not be fetched") from None
    raise FetchError(f"the page redirects more than {limits.redirects} times")


async def _once(pool: httpcore2.AsyncConnectionPool, url: str, limits: Limits) -> Page | str:
    """The page, or the address that it redirects to."""
    headers: dict[str | bytes, str | bytes] = {
        "User-Agent": _AGENT,
        "Accept": "text/html,application/xhtml+xml,text/plain;q=0.8",
        # What is compressed could unfold into any size.
        "Accept-Encoding": "identity",
    }
    times = dict.fromkeys(("connect", "read", "write", "pool"), limits.seconds)
    async with pool.stream("GET", url, headers=headers, extensions={"timeout": times}) as response:
        given = {name.decode("latin-1").lower(): value.decode("latin-1")
                 for name, value in response.headers}  # fmt: skip
        if response.status in _REDIRECTS and "location" in given:
            return given["location"]
        if response.status != 200:
            raise FetchError(f"the page answered {response.status}")
        kind = given.get("content-type", "").split(";")[0].strip().lower()
        if kind not in _KINDS:
            raise FetchError(f"the page is {kind[:60] or 'of no kind that is told'}, not text")
        if given.get("content-encoding", "identity") != "identity":
            raise FetchError("the page is compressed, which was not asked for")
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) >= limits.max_bytes:
                break
    text = _decoded(bytes(body[: limits.max_bytes]), given.get("content-type", ""))
    title = ""
    if kind != "text/plain":
        title, text = await asyncio.to_thread(read_page, text)  # other answers go on meanwhile
    return Page(url, storable(title[:300]), storable(text[: limits.max_text]))


def _decoded(body: bytes, content_type: str) -> str:
    named = _CHARSET.search(content_type) or _CHARSET.search(body[:1024].decode("latin-1"))
    charset = named[1] if named else "utf-8"
    try:
        known = codecs.lookup(charset).name in _CHARSETS
        return body.decode(charset if known else "utf-8", "replace")
    except LookupError:
        return body.decode("utf-8", "replace")
