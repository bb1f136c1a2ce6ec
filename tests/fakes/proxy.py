"""A forward proxy on loopback: CONNECT tunnels with a password, as an egress proxy of a cluster.

RFC 9110, 9.3.6: the target is host:port, any 2xx begins the tunnel; 407 with `Proxy-Authenticate`
asks for credentials (11.7.1). Squid answers so too.
"""

import base64
import contextlib
import select
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        port: where it listens.
        targets: what tunnels were asked for, in order.
        refused: how often the password was missing or wrong.
        wire: every byte that went through a tunnel.
        cut: open tunnels are closed, and new ones as well, while it is set.
    """

    credentials: str
    port: int = 0
    targets: list[str] = field(default_factory=list)
    refused: int = 0
    wire: bytearray = field(default_factory=bytearray)
    cut: threading.Event = field(default_factory=threading.Event)


def _handler(proxy: Proxy):
    wanted = f"Basic {base64.b64encode(proxy.credentials.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self):
            if self.headers.get("proxy-authorization") != wanted:
                proxy.refused += 1
                self.send_response(407)
                self.send_header("proxy-authenticate", 'Basic realm="egress"')
                self.send_header("content-length", "0")
                self.end_headers()
                return
            proxy.targets.append(self.path)
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), 10) as upstream:
                self.send_response(200, "Connection established")
                self.end_headers()
                relay(self.connection, upstream)
            self.close_connection = True

        def log_message(self, *args):
            pass

    def relay(client, upstream):
        pairs = {client: upstream, upstream: client}
        while not proxy.cut.is_set():
            for source in select.select(list(pairs), [], [], 0.05)[0]:
                try:
                    data = source.recv(1 << 16)
                except OSError:
                    return
                if not data:
                    return
                proxy.wire += data
                pairs[source].sendall(data)

    return Handler


@contextlib.contextmanager
def serve(credentials: str = "me:p@ss"):
    """Run a proxy on a free port until the block ends."""
    proxy = Proxy(credentials)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.cut.set()
        server.shutdown()
        server.server_close()
