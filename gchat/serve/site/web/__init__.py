"""The pages of the site: templates, files of the front end, headers that every answer carries.

The front end is built and committed (`static/`, made from `src/` by `npm run build`): who runs the
site needs no Node. Its files are read once, by a list: no path of a request ever reaches the file
system.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_MEDIA = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
          ".svg": "image/svg+xml"}  # fmt: skip
PAGES = ("chat", "login", "register", "settings", "admin", "share", "error")
HEADERS = {
    # No inline script or style, nobody else's anything, no frames; the page's own script may make
    # HTML of strings in one place alone (trusted-types), that which shows what the server cleaned.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types gaia-cleaned"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""Headers that every answer carries: pages, JSON, streams and files."""


@dataclass(frozen=True)
class Static:
    """A file of the front end; `etag` is a hash of its bytes, without quotes."""

    body: bytes
    media_type: str
    etag: str


@functools.cache
def _files() -> dict[str, Static]:
    files = {}
    for path in sorted((_HERE / "static").iterdir()):
        if path.suffix in _MEDIA:
            body = path.read_bytes()
            etag = hashlib.sha256(body).hexdigest()[:16]
            files[path.name] = Static(body, _MEDIA[path.suffix], etag)
    return files


def static_file(name: str) -> Static | None:
    """The file of a name; None where there is none."""
    return _files().get(name)


def address(name: str) -> str:
    """The address of a file, which changes with its bytes so that it may be kept for ever.

    Raises:
        KeyError: there is no such file.
    """
    return f"/static/{name}?v={_files()[name].etag}"


@functools.cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["address"] = address
    return environment


def render(page: str, /, **context: Any) -> str:
    """The HTML of a page.

    Args:
        page: one of PAGES.
        context: user ({name, role} or None), csrf, settings ({registration, single_user, search,
            site_name}); of a shared conversation title and messages ([{role, html}]), of an error
            status and message.
    """
    known = {"user": None, "csrf": "", "title": "", "messages": [], "status": 0, "message": ""}
    settings: dict[str, Any] = {"site_name": "gaia", "registration": "closed"}
    settings |= {"single_user": False, "search": False}
    context["settings"] = settings | context.get("settings", {})
    return _templates().get_template(f"{page}.html").render(known | context | {"page": page})
