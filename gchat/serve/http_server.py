"""The HTTP server: a listener of its own, and an end in good order.

On SIGTERM or Ctrl-C no question is taken any more, those asked are answered for some seconds, what
is left then gets an error event, and the process ends with status 0. A second signal ends at once.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from gaia.errors import ConfigError
from gchat.serve.connection import Connection
from gchat.serve.service import Service

_LAST_WORDS_S = 3.0  # for error events to go out


def listen(host: str, port: int) -> socket.socket:
    """A socket that has its address but takes no connection yet.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY where it sees that it is TCP; without it, what follows a small write
    # waits up to 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({reason})", "choose another --host or --port"
        ) from None
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn with an end in two stages.

    Args:
        app: ASGI.
        service: that is told when to stop.
        drain_s: seconds for answers that have begun.
        busy: tells whether answers are being written that no connection may be waiting for.
    """

    def __init__(
        self,
        app: Any,
        service: Service,
        *,
        drain_s: float,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False,
                # Addresses of clients are believed where an application asks for them by itself.
                proxy_headers=False, server_header=False,
                timeout_graceful_shutdown=round(drain_s + _LAST_WORDS_S),
                h11_max_incomplete_event_size=64 * 1024,
            )
        )  # fmt: skip
        self._service, self._drain_s, self._busy = service, drain_s, busy

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal; uvicorn would send it to the process again at the end."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._service.leaving = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening and waits for answers."""
        loop = asyncio.get_running_loop()
        end = loop.call_later(self._drain_s, self._service.end_all)
        try:
            await super().shutdown(sockets)
            # uvicorn waits for connections alone; an answer may go on without its reader.
            while self._busy() and not self.force_exit:
                if loop.time() >= end.when() + _LAST_WORDS_S:
                    break
                await asyncio.sleep(0.05)
        finally:
            end.cancel()
