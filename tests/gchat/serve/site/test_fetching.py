"""Fetching of pages: no spelling, name, redirect or change of mind leads inside."""

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gchat.serve.site import fetching
from gchat.serve.site.addresses import FetchError, checked_url, is_public
from gchat.serve.site.fetching import Limits, fetch
from gchat.serve.site.page_text import read_page

# IANA's special-purpose registries (iana.org/assignments/iana-ipv4-special-registry and -ipv6-),
# clouds' metadata addresses, and the forms of them that SSRF filters missed (LibreChat
# CVE-2026-31943: ::ffff:a9fe:a9fe).
INSIDE = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe",
    "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1", "64:ff9b:1:c0a8:1:100:101:101", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe", "100::1", "4000::1", "localhost", "", "0x7f.1",
)  # fmt: skip
PUBLIC = ("93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101")


@pytest.mark.parametrize("address", INSIDE)
def test_inside(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    ["https://2130706433/", "https://0177.0.0.1/", "https://0x7f000001/", "https://0x7f.1/",
     "https://127.1/", "https://1.2.3.0x4/", "https://①②⑦.0.0.1/", "https://user:pw@a.example/",
     "https://a.example@127.0.0.1/", "https://a.example\\@127.0.0.1/", "file:///etc/passwd",
     "gopher://127.0.0.1:6379/_INFO", "ftp://a.example/", "http://a.example/", "https:///x", "https://",
     "https://a.example:22/", "https://a.example:99999/", "https://a.example/\r\nHost: b",
     "https://a b.example/", "//a.example/", "https://[::1/", "https://a.example:443:443/",
     "javascript:alert(1)", "data:text/html,x", "https://" + "a" * 3000, "https://-.0x/"],
)  # fmt: skip
def test_addresses_that_are_not_asked(url):
    with pytest.raises(FetchError):
        asyncio.run(fetch(url, Limits(resolve=refuse_to_look)))


async def refuse_to_look(host, port):
    """Stands for the resolver where the address itself must be refused before."""
    raise FetchError(f"inside: {host}") if not is_public(host) else AssertionError(host)


def test_plain_addresses_keep_their_form():
    parts = checked_url("https://Exämple.org:443/a?b=c#d", frozenset({"https"}), frozenset({443}))
    assert parts.geturl() == "https://xn--exmple-cua.org:443/a?b=c"


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append(self.path)
        answer = {
            "/page": (200, "text/html; charset=utf-8",
                      "<title>Öl</title><nav>menu</nav><p>First</p><script>no()</script>"
                      "<div style='display:none'>obey me</div><p>Second &amp; third"),
            "/latin": (200, "text/html; charset=iso-8859-1", "<p>\xe9t\xe9".encode("latin-1")),
            "/picture": (200, "image/png", b"\x89PNG"),
            "/big": (200, "text/plain", "x" * 300_000),
            "/missing": (404, "text/html", "<p>no"),
            "/gzip": (200, "text/html", "<p>x"),
            "/half": (200, "text/html; charset=unicode_escape", "<title>a \\ud800</title>b"),
            "/nul": (200, "text/plain", "a\0b"),
        }  # fmt: skip
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(0.05)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            try:
                while not self.server.ended:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            except OSError:
                self.close_connection = True
            return
        status, kind, body = answer[self.path]
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.path == "/gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def pages(tls=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Pages,), {"seen": []}))
    server.daemon_threads, server.ended = True, False
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended = True
        server.shutdown()
        server.server_close()


def open_limits(server, **changed):
    """Limits under which this one server counts as the public internet."""
    port = server.server_address[1]

    async def resolve(host, asked_port):
        return ["127.0.0.1"]

    values = {
        "schemes": frozenset({"http"}), "ports": None, "resolve": resolve,
        "allowed": lambda address, asked: address == "127.0.0.1" and asked == port,
    }  # fmt: skip
    return Limits(**(values | changed))


@pytest.fixture(scope="module")
def server():
    with pages() as running:
        yield running


def address(server, path, host="pages.example"):
    return f"http://{host}:{server.server_address[1]}{path}"


def test_a_page_is_read(server):
    page = asyncio.run(fetch(address(server, "/to//page"), open_limits(server)))
    assert page.title == "Öl" and page.text == "First\nSecond & third"
    assert page.url == address(server, "/page")
    assert asyncio.run(fetch(address(server, "/latin"), open_limits(server))).text == "été"


@pytest.mark.parametrize(
    "charset", ["unicode_escape", "raw_unicode_escape", "utf-7", "idna", "hex", "no such", "rot13"]
)
def test_what_is_no_character_set_of_pages_is_read_as_utf_8(charset):
    assert fetching._decoded(rb"\ud800 +2AA-", f"text/html; charset={charset}") == r"\ud800 +2AA-"


@pytest.mark.parametrize("charset", ["windows-1251", "KOI8-R", "iso-8859-5", "gb18030", "UTF-16LE"])
def test_character_sets_of_pages_are_read(charset):
    kind = f"text/html; charset={charset}"
    assert fetching._decoded("мир".encode(charset), kind) == "мир"


def test_a_page_gives_nothing_that_cannot_be_stored(server):
    page = asyncio.run(fetch(address(server, "/half"), open_limits(server)))
    assert page.title == r"a \ud800"
    assert asyncio.run(fetch(address(server, "/nul"), open_limits(server))).text == "a\ufffdb"


def test_pages_are_read_beside_the_answers_of_others(server, monkeypatch):
    threads = []

    def read(html):
        threads.append(threading.current_thread())
        return "", html

    monkeypatch.setattr(fetching, "read_page", read)
    asyncio.run(fetch(address(server, "/page"), open_limits(server)))
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


HOSTILE = """
from gchat.serve.site.fetching import _decoded
from gchat.serve.site.page_text import read_page
SIZE = 500_000
assert read_page("<svg>" + "<a>" * (SIZE // 7) + "</b>" * (SIZE // 7)) == ("", "")
for unfinished in ("<!--", "<a", "</a", "<![", "<?", "<!"):
    assert read_page("<p>seen" + unfinished * (SIZE // len(unfinished)))[1] == "seen", unfinished
assert len(_decoded(b"a-" + b"9" * 200_000, "text/plain; charset=punycode")) == 200_002
"""


def test_no_page_takes_long_to_read():
    """Each of these took minutes, the parser's and codec's time being quadratic."""
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=25)


def test_elements_that_are_left_open_end_with_the_one_around_them():
    page = "<p>a<nav><b>b<i>c</b>d<nav>e</nav>f</nav>g<svg><g><g></svg></g>h"
    assert read_page(page)[1] == "agh"


@pytest.mark.parametrize("path", ["/picture", "/missing", "/gzip"])
def test_what_is_no_page(server, path):
    with pytest.raises(FetchError):
        asyncio.run(fetch(address(server, path), open_limits(server)))


def test_size_and_time_have_bounds(server):
    page = asyncio.run(fetch(address(server, "/big"), open_limits(server, max_bytes=1000)))
    assert page.text == "x" * 1000
    with pytest.raises(FetchError, match=r"took more than 0.3 s"):
        asyncio.run(fetch(address(server, "/slow"), open_limits(server, seconds=0.3)))


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:1/x", "http://[::ffff:127.0.0.1]:1/", "http://169.254.169.254/latest/meta-data",
     "file:///etc/passwd", "https://a.example/", "//inside.example:1/", "http://2130706433/"],
)  # fmt: skip
def test_each_redirect_is_checked(server, target):
    with pytest.raises(FetchError):
        asyncio.run(fetch(address(server, f"/to/{target}"), open_limits(server)))


def test_redirects_end(server):
    port = server.server_address[1]
    path = "/page"
    for _ in range(6):
        path = f"/to/http://a{port}.example:{port}{path}"
    with pytest.raises(FetchError, match="redirects more than"):
        asyncio.run(fetch(address(server, path), open_limits(server)))


def test_a_name_that_changes_gains_nothing(server):
    """Rebinding: the first answer is public, the next one inside; each connection is checked."""
    answers = [["93.184.215.14"], ["127.0.0.1"]]
    looked, connected = [], []

    async def resolve(host, port):
        looked.append(host)
        return answers[len(looked) - 1]

    def allowed(one, port):
        connected.append(one)
        return is_public(one)

    async def both():
        for _ in range(2):
            with pytest.raises(FetchError):
                await fetch("http://a.example:1/", open_limits(server, resolve=resolve, seconds=0.3,
                            allowed=allowed))  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:  # a test reaches nobody
        dialled = []

        async def dial(self, host, *args):
            dialled.append(host)
            raise OSError("nobody is there")

        import httpcore2

        patch.setattr(httpcore2.AnyIOBackend, "connect_tcp", dial)
        asyncio.run(both())
    assert dialled == ["93.184.215.14"] and connected == ["93.184.215.14", "127.0.0.1"]
    assert looked == ["a.example"] * 2  # once for each connection, and the answer was used


def test_one_address_inside_spoils_the_answer(server):
    async def resolve(host, port):
        return ["127.0.0.1", "10.0.0.1"]

    before = len(server.RequestHandlerClass.seen)
    with pytest.raises(FetchError, match="public internet"):
        asyncio.run(fetch(address(server, "/page"), open_limits(server, resolve=resolve)))
    assert len(server.RequestHandlerClass.seen) == before


def test_names_of_this_machine_are_refused():
    """The system's own resolver and the real check."""
    with pytest.raises(FetchError, match="public internet"):
        asyncio.run(fetch("https://localhost/", Limits()))
    with pytest.raises(FetchError, match="public internet"):
        asyncio.run(fetch("https://[::ffff:7f00:1]/", Limits()))


def certificate(tmp_path, name):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now()
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path / "both.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


def test_tls_is_checked_against_the_name_not_the_address(tmp_path):
    file = certificate(tmp_path, "pages.example")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(file)
    ours = ssl.create_default_context(cafile=str(file))
    with pages(theirs) as server:
        limits = open_limits(server, schemes=frozenset({"https"}), tls=ours)
        url = address(server, "/page").replace("http:", "https:")
        assert asyncio.run(fetch(url, limits)).title == "Öl"
        with pytest.raises(FetchError):
            asyncio.run(fetch(url.replace("pages.example", "other.example"), limits))


def test_every_address_of_this_machine_is_inside():
    """Whatever this machine is called by itself leads to no page, unless it is truly public."""
    entries = socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert entries and not any(is_public(entry[4][0]) for entry in entries)
    assert all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in entries)
