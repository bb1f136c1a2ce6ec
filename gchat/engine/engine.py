"""The engine: requests in, events out, over one cache of a fixed number of rows.

    engine = Engine(graph, params, seq_len=…, stop_ids=…, decode_bytes=tokenizer.decode_bytes)
    for event in engine.submit(Request(ids, max_new_tokens=100)):
        print(event.text, end="")

It has no thread of its own. Whoever waits for an event drives: a stream that has nothing runs
`step()` under the engine's lock, and news for other streams go to their queues. So a script, a
test or a training step gets the same order of work every time and nothing to shut down, and many
threads may wait at once. A server gives it one thread that calls `step()` while it is not `idle`.

What a request gets depends on its ids, options and seed alone, not on what runs beside it.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from gaia import parallel
from gaia.errors import ConfigError, GaiaError
from gaia.kernels.cached_attention import cache_slots
from gaia.kernels.packed import WeightFormat
from gchat.engine import programs
from gchat.engine.programs import MAX_STEPS, Decoded, DeviceState, Scored
from gchat.engine.requests import Event, Request, SamplingConfig, check_draft
from gchat.engine.scheduler import Sample, Scheduler
from gchat.engine.slots import Slot
from gchat.engine.text import TextStream

_CALL_SECONDS = 0.05  # of decoding between two looks at what else waits, and two pieces of text
_FIRST_STEPS = 8
_STEPS_WHILE_READING = 4  # a piece of a prompt takes as long as some steps: nobody waits for two


class Engine:
    """Generates continuations with a fixed set of parameters.

    Args:
        graph: static part of the model, from `nnx.split`.
        params: its parameters; copied into the form that decoding reads.
        seq_len: positions for prompt and answer together, at most those the model was made for.
        stop_ids: ids that end an answer where a request names none.
        decode_bytes: bytes of ids; without it events have no text and stop texts are refused.
        slots: answers that are decoded at once; more wait.
        piece: tokens of a prompt that are read at once, a power of two.
        weights: format of the matrices; the compute dtype where left out.
        kv: "int8" keeps keys and values in int8; the compute dtype where left out.
        speculate: tokens that a step drafts for each row, out of its own text (`lookup.py`), and
            checks; 0 is off. The text is the same, up to rounding.
    """

    def __init__(
        self,
        graph: Any,
        params: Any,
        *,
        seq_len: int,
        stop_ids: Sequence[int],
        decode_bytes: Callable[[Sequence[int]], bytes] | None = None,
        slots: int = 8,
        piece: int = 128,
        weights: WeightFormat | None = None,
        kv: str | None = None,
        speculate: int = 0,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots is {slots}", "use at least 1")
        if piece < 16 or piece & (piece - 1):
            raise ConfigError(f"piece is {piece}", "use a power of two, at least 16")
        check_draft(speculate)
        self.seq_len, self.stop_ids, self.speculate = seq_len, tuple(stop_ids), speculate
        self._decode_bytes, self._kv = decode_bytes, kv
        # Sharded or not: the compiler places decoding.
        params = parallel.automatic(params)
        tied = "head" not in params
        self._vocab, _ = params["embed"]["table"].shape
        depth = params["blocks"]["attn_norm"]["scale"].shape[0]
        self._plan = programs.plan_for(graph, params, speculate)
        config = nnx.merge(graph, params).config
        self._packing = tied, weights or config.compute_dtype, depth, self._plan.platform
        self._params = programs.pack_weights(params, *self._packing)
        self._length = cache_slots(-(-seq_len // piece) * piece)
        self._state: DeviceState | None = None
        self._scheduler = Scheduler(slots, piece, self._vocab)
        self._lock = threading.RLock()  # of the scheduler and the device's state
        self._inbox: deque[list[Sample]] = deque()
        self._cancelled: set[int] = set()
        self._next, self._mutex = 0, threading.Lock()
        self._step_seconds = _CALL_SECONDS / _FIRST_STEPS

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> "Stream":
        """Queues a request; any thread may call it, and none waits.

        Args:
            request: what to continue.
            listener: called with each event, in the thread that runs `step`, in place of the
                stream's queue; for servers. It must not block.

        Raises:
            ConfigError: the request cannot work; nothing was queued.
        """
        request.check(self._vocab, self.seq_len)
        if self._params is None:
            raise ConfigError("the engine has no parameters", "hand it some with `use`")
        if request.stop and self._decode_bytes is None:
            raise ConfigError("stop texts need a tokenizer", "give the engine decode_bytes")
        with self._mutex:
            number = self._next
            self._next += 1
        stream = Stream(self, number, request.n)
        tell = listener or stream._events.put
        self._inbox.append([self._sample(request, number, i, tell) for i in range(request.n)])
        return stream

    def _sample(
        self, request: Request, number: int, index: int, tell: Callable[[Event], None]
    ) -> Sample:
        ids = np.asarray(request.ids, np.int32)
        stop_ids = self.stop_ids if request.stop_ids is None else tuple(request.stop_ids)
        text = TextStream(self._decode_bytes, request.stop) if self._decode_bytes else None
        mask = request.mask() if request.mask else None
        left = min(request.max_new_tokens, self.seq_len - len(ids))
        return Sample(
            number, index, request, stop_ids, tell, text, mask, ids[:-1], int(ids[-1]), left
        )

    def cancel(self, number: int) -> None:
        """Ends a request at the next step; its samples get a last event `cancelled`."""
        self._cancelled.add(number)

    def use(self, params: Any | None) -> None:
        """Takes other parameters of the same model; nothing is compiled again.

        Prompts in the cache were read with the old ones and are forgotten. `None` lets go of
        parameters and cache, for a training step that wants the memory, until others come.

        Raises:
            ConfigError: requests are under way, whose answers would be of two models.
        """
        with self._lock:
            if not self.idle:
                raise ConfigError("the engine has requests under way", "wait for their answers")
            self._scheduler.slots.forget()
            self._params = None  # room for those that replace them
            if params is None:
                self._state = None
            else:
                params = parallel.automatic(params)
                self._params = programs.pack_weights(params, *self._packing)

    @property
    def idle(self) -> bool:
        """True where there is nothing to do."""
        return not self._inbox and self._scheduler.idle

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step of decoding gave a row, on average so far: 1 without drafts."""
        return self._scheduler.tokens / max(1, self._scheduler.row_steps)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 (frozen)
        on_tokens: Callable[[int, list[int]], None] = lambda row, ids: None,
    ) -> list[list[int]]:
        """Continues each prompt by up to `max_new_tokens` ids and waits for all.

        Args:
            prompts: token ids, each at least one (begin with BOS).
            max_new_tokens: upper limit; the model's `seq_len` limits prompt and answer together.
            sampling: how tokens are chosen.
            on_tokens: called with (row, new ids) as they appear.

        Raises:
            ConfigError: a prompt is empty or leaves no room, or a sampling field cannot work.
            GaiaError: an answer could not be finished.
        """
        requests = [Request(ids, max_new_tokens, sampling) for ids in prompts]
        for request in requests:
            request.check(self._vocab, self.seq_len)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        rows = {self.submit(request, events.put).number: i for i, request in enumerate(requests)}
        results: list[list[int]] = [[] for _ in prompts]
        unfinished = set(rows)
        try:
            while unfinished:
                event = self._drive(events)
                if event.finish == "error":
                    raise GaiaError(f"an answer ended: {event.error}", "try again")
                if event.finish is not None:
                    unfinished.discard(event.request)
                row = rows[event.request]
                results[row] += event.ids
                if event.ids:
                    on_tokens(row, list(event.ids))
        finally:
            for number in unfinished:
                self.cancel(number)
        return results

    # ── Working ─────────────────────────────────────────────────────────────────────────────────

    def step(self) -> bool:
        """Reads pieces of prompts, decodes a few tokens; True where there is more to do.

        An error of the device ends the requests that have a row, with an event that says so, and
        the engine goes on with the others.
        """
        with self._lock:
            scheduler = self._scheduler
            while self._inbox:
                scheduler.waiting.extend(self._inbox.popleft())
            if self._cancelled:
                numbers, self._cancelled = self._cancelled, set()
                scheduler.drop(numbers)
            scheduler.admit()
            try:
                self._read()
                self._decode()
            except BaseException as error:
                self._state = None  # it may have been given away to the program that failed
                scheduler.fail(error)
                if not isinstance(error, Exception):
                    raise
            return not self.idle

    def _read(self) -> None:
        """Reads pieces of the prompts whose turn it is, at least one.

        A token costs about as much to read as to decode: so many are read as the rows decode in a
        few steps, or rows would stand empty while the prompts that they wait for are read.
        """
        scheduler = self._scheduler
        slots = scheduler.slots
        left = max(slots.piece, len(slots.all) * _STEPS_WHILE_READING)
        while scheduler.reading:
            slot = scheduler.reading[0]
            if not slot.sample.planned:
                self._begin(slot)
            if slot.sample.pieces:
                _, size = slot.sample.pieces[0]
                if size > left:
                    return
                left -= size
                self._read_piece(slot)
            if not slot.sample.pieces:
                scheduler.ready(slot)
                scheduler.reading.popleft()

    def _read_piece(self, slot: Slot) -> None:
        scheduler = self._scheduler
        ids, start = scheduler.piece(slot)
        where = np.int32(slot.number), np.int32(start)
        if not slot.sample.scores:
            self._state = programs.read_prompt(self._plan, self._params, self._ready(), ids, *where)
            return
        following = scheduler.following(slot, start, len(ids))
        self._state, scored = programs.score_prompt(
            self._plan, self._params, self._ready(), ids, following, *where
        )
        scheduler.note_scores(slot, start, Scored(*(parallel.to_host(x) for x in scored)))

    def _begin(self, slot: Slot) -> None:
        source = self._scheduler.begin(slot)
        if source is not None:
            numbers = np.int32(source.number), np.int32(slot.number)
            self._state = programs.copy_row(self._plan, self._ready(), *numbers)
        if slot.sample.request.sampling.repetition_penalty != 1:
            seen = np.zeros(self._vocab, bool)
            seen[np.asarray(slot.sample.request.ids)] = True
            self._state = programs.set_seen(self._ready(), np.int32(slot.number), seen)
        if bias := slot.sample.request.logit_bias:
            added = np.zeros(self._vocab, np.float32)
            added[list(bias)] = list(bias.values())
            self._state = programs.set_bias(self._ready(), np.int32(slot.number), added)

    def _decode(self) -> None:
        """Decodes a few tokens for all rows that have their prompt."""
        scheduler = self._scheduler
        scheduler.ask_masks()
        if not scheduler.decoding():
            return
        steps = min(MAX_STEPS, max(1, int(_CALL_SECONDS / self._step_seconds)))
        if jax.process_count() > 1:  # whose clocks differ
            steps = _FIRST_STEPS
        if scheduler.reading:
            steps = min(steps, _STEPS_WHILE_READING)
        if scheduler.one_by_one():
            steps = 1
        began = time.perf_counter()
        self._state, decoded = programs.decode(
            self._plan, self._params, self._ready(), scheduler.rows(), np.int32(steps),
            np.bool_(bool(scheduler.waiting)),
        )  # fmt: skip
        decoded = Decoded(*(parallel.to_host(x) for x in decoded))
        self._step_seconds = (time.perf_counter() - began) / max(1, int(decoded.steps_B.max()))
        scheduler.take_in(decoded)

    def _drive(self, events: "queue.SimpleQueue[Event]") -> Event:
        """The next event of a queue, working for it while there is none."""
        while True:
            try:
                return events.get_nowait()
            except queue.Empty:
                pass
            with self._lock:
                if events.empty():  # or whoever drove meanwhile has served this one too
                    self.step()

    def _ready(self) -> DeviceState:
        state = self._state
        if state is None:
            count = len(self._scheduler.slots.all)
            state = programs.empty_state(self._plan, self._params, count, self._length, self._kv)
        return state


class Stream:
    """Events of one request, in order; iterating drives the engine. It ends with the last one.

    Attributes:
        number: of the request, for `Engine.cancel`.
    """

    def __init__(self, engine: Engine, number: int, samples: int) -> None:
        self.number = number
        self._engine, self._open = engine, samples
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        while self._open:
            event = self._engine._drive(self._events)
            self._open -= event.finish is not None
            yield event

    def cancel(self) -> None:
        """Ends the request at the next step."""
        self._engine.cancel(self.number)
