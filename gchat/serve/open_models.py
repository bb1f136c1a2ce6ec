"""Runs, loaded and made ready to be asked."""

import sys
import time

import numpy as np

from gaia.parallel import make_mesh
from gaia.runtime import start
from gchat.chat_format import read_format
from gchat.engine.engine import Engine
from gchat.engine.requests import SamplingConfig
from gchat.engine.tools import Tools, has_tools
from gchat.run.loading import load_run
from gchat.serve.driver import Driver
from gchat.serve.fair_queue import FairQueue
from gchat.serve.keys import Keys
from gchat.serve.limits import Rates
from gchat.serve.local_model import LocalModel
from gchat.serve.metrics import Metrics
from gchat.serve.open_upstreams import open_upstreams
from gchat.serve.options import Answering
from gchat.serve.service import Service


def open_service(options: Answering, keys: Keys, rates: Rates | None = None) -> Service:
    """Loads all runs.

    Args:
        options: of the server.
        keys: of those who may ask.
        rates: that they may use up; those of the options when left out.

    Raises:
        CheckpointError: a run cannot be used.
        ConfigError: an option does not fit a run.
    """
    runs = options.runs()
    start()  # before devices are asked for; a run sets its own precision
    mesh = make_mesh(options.mesh) if runs else None
    loaded = {name: load_run(folder, mesh, step=options.step) for name, folder in runs.items()}
    engines = {
        name: run.engine(slots=options.slots, weights=options.weights, kv=options.kv)
        for name, run in loaded.items()
    }
    service = Service(
        {},
        Driver(list(engines.values())),
        Metrics(),
        keys,
        rates or Rates(options.rate, options.token_rate),
        options.timeout,
    )
    for name, run in loaded.items():
        tokenizer = run.tokenizer
        form = read_format(runs[name], tokenizer, wanted=options.format)
        calls = options.calculator and form.kind == "native" and has_tools(tokenizer)
        service.models[name] = LocalModel(
            name,
            engines[name],
            tokenizer,
            form,
            FairQueue(options.slots, options.max_queue),
            service.driver,
            service.metrics,
            step=run.step,
            tools=Tools(tokenizer) if calls else None,
            max_tokens=options.max_tokens,
        )
        if options.warm_up:
            warm_up(name, engines[name], tokenizer.vocab_size)
    if options.upstream:
        service.models |= open_upstreams(options, service)
    watch(service)
    return service


def warm_up(name: str, engine: Engine, vocab: int) -> None:
    """Compiles the programs of prompts of all lengths, and that of decoding."""
    began = time.monotonic()
    rng = np.random.default_rng(0)
    lengths = [n + 1 for n in (16, 32, 64, 128, 256) if n + 2 < engine.seq_len] or [1]
    for length in lengths:
        ids = rng.integers(0, vocab, length).tolist()
        engine.generate([ids], max_new_tokens=1, sampling=SamplingConfig(0.0))
    print(f"{name}: ready after {time.monotonic() - began:.1f} s of compiling", file=sys.stderr)


def watch(service: Service) -> None:
    """Adds the numbers that are read when somebody asks for them."""
    metrics = service.metrics
    metrics.watch("gchat_engine_steps", "Steps of the engines", lambda: service.driver.steps)
    for name, model in service.models.items():
        queue = model.queue
        metrics.watch("gchat_waiting", "Answers that wait", lambda q=queue: q.waiting, model=name)
        metrics.watch(
            "gchat_working", "Answers at the engine", lambda q=queue: q.working, model=name
        )
