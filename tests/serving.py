"""A server over a tiny random model, on loopback, in a thread of this process."""

import asyncio
import contextlib
import functools
import json
import threading
import time

import httpx2

import tiny
from gchat.chat_format import format_of
from gchat.engine.engine import Engine
from gchat.model import GPTConfig
from gchat.serve.app import make_app
from gchat.serve.driver import Driver
from gchat.serve.fair_queue import FairQueue
from gchat.serve.http_server import HttpServer, listen
from gchat.serve.local_model import LocalModel
from gchat.serve.metrics import Metrics
from gchat.serve.open_models import watch
from gchat.serve.service import Service
from gchat.tokenizer import train_bpe

SEQ_LEN, SLOTS = 1024, 4
TEXT = '{"name": "get_weather", "arguments": {"city": "Oslo", "n": 12}} The quick brown fox. '


@functools.cache
def tokenizer():
    return train_bpe([TEXT * 40], 330)


def endless():
    """A bias under which no answer ends by itself."""
    return {str(i): -100 for i in tokenizer().specials.values()}


@functools.cache
def model():
    """(graph, params) of a model of one layer."""
    config = GPTConfig(
        depth=1, dim=32, head_dim=16, hidden=32, seq_len=SEQ_LEN, compute_dtype="float32"
    )  # fmt: skip
    return tiny.make(config.derive(tokenizer().vocab_size, tokenizer().padded_vocab_size))


@functools.cache
def engine():
    return Engine(
        *model(), seq_len=SEQ_LEN, stop_ids=(tokenizer().bos_id,), slots=SLOTS, piece=64,
        decode_bytes=tokenizer().decode_bytes,
    )  # fmt: skip


def make_service(max_queue=64, wanted="chat", **options):
    driver = Driver([engine()])
    service = Service({}, driver, Metrics(), **options)
    service.models["tiny"] = LocalModel(
        "tiny", engine(), tokenizer(), format_of(tokenizer(), wanted=wanted),
        FairQueue(SLOTS, max_queue), driver, service.metrics,
    )  # fmt: skip
    watch(service)
    return service


class Running:
    """A server that runs.

    Attributes:
        url: http://127.0.0.1:PORT
        http: a client of it.
    """

    def __init__(self, service, drain_s=5.0, **limits):
        self.service = service
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = HttpServer(make_app(service, **limits), service, drain_s=drain_s)
        if not service.driver.alive:
            service.driver.start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server ended while it started"
            time.sleep(0.005)
        self.http = httpx2.Client(base_url=self.url, timeout=300)  # a first question compiles

    def _run(self):
        asyncio.run(self.server.serve(sockets=[self._listener]))

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def events(self, path, **body):
        """Data of the events of a stream, decoded; "[DONE]" as it is."""
        with self.http.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield line[6:] if line[6:] == "[DONE]" else json.loads(line[6:])

    def idle(self, seconds=60):
        """Waits until nothing waits or runs; tells whether all came back."""
        model = self.service.models["tiny"]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if model.engine.idle and not (
                model.queue.waiting or model.queue.working or model.asked
            ):
                return True
            time.sleep(0.01)
        return False

    def stop(self):
        self.http.close()
        self.server.handle_exit(15, None)
        self._thread.join(30)
        self.service.driver.stop()
        self._listener.close()
        assert not self._thread.is_alive()


def until(condition, seconds=60):
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def running(service=None, **options):
    server = Running(service or make_service(), **options)
    try:
        yield server
    finally:
        server.stop()
