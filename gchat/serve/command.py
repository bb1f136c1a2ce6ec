"""`gchat serve`: the life of the process."""

import asyncio
import gc
import logging
import sys
from pathlib import Path

from gaia.errors import ConfigError
from gchat.serve import keys as api_keys
from gchat.serve.options import Serve


def serve(options: Serve) -> None:
    """Serves until a signal; returns when all is in order."""
    options.check()
    if options.new_key is not None:
        _make_key(options)
        return
    keys = api_keys.read(options.api_keys) if options.api_keys else api_keys.Keys()
    from gchat.serve.app import make_app
    from gchat.serve.http_server import HttpServer, listen
    from gchat.serve.open_models import open_service

    listener = listen(options.host, options.port)  # before minutes of loading
    with listener:
        service = open_service(options, keys)
        app = make_app(service, max_bytes=round(options.max_body_mib * 2**20))
        server = HttpServer(app, service, drain_s=options.drain)
        log_to_stderr()
        leave_to_rest()
        listener.listen(2048)  # whoever reads the next line may ask at once
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        names = ", ".join(service.models)
        print(f"serving {names} on http://{shown}:{port}/v1", file=sys.stderr, flush=True)
        service.driver.start()
        try:
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            service.driver.stop()
    print("gchat serve: ended", file=sys.stderr, flush=True)


def _make_key(options: Serve) -> None:
    assert options.new_key is not None
    if not options.api_keys or options.api_keys.startswith("env:"):
        raise ConfigError("--new-key is given without a file", "add --api-keys FILE")
    key, line = api_keys.new(options.new_key)
    api_keys.add(Path(options.api_keys), line)
    print(key)
    print(f"{options.api_keys} holds its hash; the key itself is shown this once", file=sys.stderr)


def log_to_stderr() -> None:
    """Log lines of the server and of uvicorn's warnings; nothing of requests' contents."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_is_no_cancellation)
    for name, level in (("gchat.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.setLevel(level)
        log.propagate = False


def leave_to_rest() -> None:
    """Takes what is loaded out of the garbage collector's reach, for the life of the process.

    A full collection stops all threads. Over some 260,000 objects of libraries, none of which is
    garbage, it takes 0.2 s, which answers that are being written and every page have to wait.
    """
    gc.collect()
    gc.freeze()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Drops uvicorn's tracebacks of requests that a second signal cut off: nothing failed."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
