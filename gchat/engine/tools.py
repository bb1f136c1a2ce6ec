"""Tools that a model calls within its answer: `<|python_start|>expression<|python_end|>`.

The expression is evaluated, and `<|output_start|>result<|output_end|>` is put behind it as if the
model had written it; then the model goes on. That is nanochat's way. An expression without a value
gets no output, and the model goes on behind it.

The engine knows nothing of this: the two tags stop an answer, and what follows is a request whose
prompt holds all of the answer so far. Keys of the sampler are functions of (seed, position), and
positions go on, so an answer without a call is the engine's own to the last bit.
"""

import logging
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gaia.errors import ConfigError
from gchat.engine.calculator import CalculatorError, calculate
from gchat.engine.engine import Engine
from gchat.engine.requests import Event, Finish, Request, TokenLogprob
from gchat.ranges import MAX_SEED
from gchat.tokenizer import Tokenizer

Kind = Literal["text", "call", "output"]
_log = logging.getLogger("gchat.engine")
_SEED_STEP = 0x9E3779B1  # the golden ratio's: samples of one request get seeds far apart


@dataclass(frozen=True)
class Piece:
    """News of one sample; its last one has `finish`."""

    index: int
    """Sample of the request, 0 … n - 1."""
    kind: Kind = "text"
    ids: tuple[int, ...] = ()
    """New tokens, the tags of calls and outputs with them; no stop id."""
    text: str = ""
    """New text without tags."""
    forced: bool = False
    """The model did not choose these tokens: training must not learn them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of `ids`, where the request asked for them and the model chose."""
    finish: Finish | None = None
    stopped_by: int | str | None = None
    stop_logprob: TokenLogprob | None = None
    error: str = ""
    cached: int = 0


class Tools:
    """The tags of a tokenizer, and the function between them.

    Args:
        tokenizer: one with the tags.
        call: gives the output of an expression; CalculatorError where it has none.

    Raises:
        ConfigError: the tokenizer has no such tags.
    """

    def __init__(self, tokenizer: Tokenizer, call: Callable[[str], str] = calculate) -> None:
        names = ("python_start", "python_end", "output_start", "output_end")
        if not has_tools(tokenizer):
            raise ConfigError("the tokenizer has no tags for tools", "leave tools out")
        self.start, self.end, self._output_start, self._output_end = map(tokenizer.special, names)
        self._encode, self._call = tokenizer.encode, call

    def output(self, expression: str) -> tuple[str, list[int]]:
        """The result as text and as the ids that are forced; nothing where there is no value."""
        try:
            result = self._call(expression)
        except CalculatorError:
            return "", []
        return result, [self._output_start, *self._encode(result), self._output_end]


def has_tools(tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer has the tags of calls."""
    return {"<|python_start|>", "<|output_start|>"} <= tokenizer.specials.keys()


class ToolStream:
    """A request whose answers may call tools; iterating drives the engine.

    Args:
        engine: that decodes; it must have been given decode_bytes.
        tools: for its calls.
        request: n samples are drawn as n requests, so that each can go its own way.
        listener: called with each piece, in the thread that runs `Engine.step`; else they queue.

    Raises:
        ConfigError: the request cannot work; nothing was queued.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Tools,
        request: Request,
        listener: Callable[[Piece], None] | None = None,
    ) -> None:
        if request.mask is not None:
            raise ConfigError("a request has a grammar and tools", "leave one of them out")
        self._engine, self._pieces = engine, queue.SimpleQueue[Piece]()
        self._open = request.n
        self._samples: list[_Sample] = []
        for index in range(request.n):
            sampling = request.sampling
            seed = (sampling.seed + (request.first + index) * _SEED_STEP) % (MAX_SEED + 1)
            one = replace(request, n=1, first=0, sampling=replace(sampling, seed=seed))
            self._samples.append(_Sample(engine, tools, one, index, listener or self._pieces.put))

    def __iter__(self) -> Iterator[Piece]:
        while self._open:
            try:
                piece = self._pieces.get_nowait()
            except queue.Empty:
                self._engine.step()
                continue
            self._open -= piece.finish is not None
            yield piece

    def cancel(self) -> None:
        """Ends all samples at the next step."""
        for sample in self._samples:
            sample.cancel()


class _Sample:
    """One answer: a request, and those that follow it."""

    def __init__(
        self,
        engine: Engine,
        tools: Tools,
        request: Request,
        index: int,
        tell: Callable[[Piece], None],
    ) -> None:
        self._engine, self._tools, self._index, self._tell = engine, tools, index, tell
        self._request = request
        stop_ids = engine.stop_ids if request.stop_ids is None else tuple(request.stop_ids)
        self._stop_ids = stop_ids
        self._ids = list(request.ids)
        self._left = request.max_new_tokens
        self._expression = ""
        self._cancelled = False
        self._kind: Kind = "text"
        self._cached: int | None = None
        self._submit()

    def cancel(self) -> None:
        self._cancelled = True
        self._engine.cancel(self._number)

    def _submit(self) -> None:
        """Goes on from all ids so far, until a tag or the end."""
        calling = self._kind == "call"
        request = replace(
            self._request,
            ids=tuple(self._ids),
            max_new_tokens=self._left,
            stop_ids=(self._tools.end if calling else self._tools.start, *self._stop_ids),
            stop=() if calling else self._request.stop,
        )
        self._number = self._engine.submit(request, self._hear).number
        if self._cancelled:  # meanwhile, by a thread that knew the number before
            self._engine.cancel(self._number)

    def _hear(self, event: Event) -> None:
        """Takes an event of the engine, in the thread that runs it."""
        self._take(event.ids)
        tag = event.stopped_by if event.finish == "stop" else None
        if event.finish is not None and self._cached is None:
            self._cached = event.cached  # what follows is this answer, read again
        if tag not in (self._tools.start, self._tools.end) or tag in self._stop_ids:
            self._say(
                event.ids, event.text, event.logprobs, event.finish, event.stopped_by,
                event.stop_logprob, event.error,
            )  # fmt: skip
            return
        chosen = (event.stop_logprob,) if event.stop_logprob else ()
        ids, logprobs = (*event.ids, tag), (*event.logprobs, *chosen)
        self._take((tag,))
        if self._kind == "text":
            self._say(event.ids, event.text, event.logprobs)
            self._kind, self._expression = "call", ""
            self._say(ids[-1:], "", chosen)
        else:
            self._say(ids, event.text, logprobs)
            text, forced = self._output()
            forced = forced if len(forced) <= self._left else []
            self._take(forced)
            self._kind = "output"
            if forced:
                self._say(tuple(forced), text, forced=True)
            self._kind = "text"
        self._go_on()

    def _output(self) -> tuple[str, list[int]]:
        """Asks the tool for the output; there is none where it fails, whatever the reason.

        This runs within a step of the engine: an exception would end everybody's answers.
        """
        try:
            return self._tools.output(self._expression)
        except Exception:
            _log.exception("a tool failed; its call gets no output")
            return "", []

    def _take(self, ids) -> None:
        self._ids += ids
        self._left -= len(ids)

    def _go_on(self) -> None:
        if self._cancelled:
            self._say(finish="cancelled")
        elif self._left < 1 or len(self._ids) >= self._engine.seq_len:
            self._say(finish="length")
        else:
            self._submit()

    def _say(
        self,
        ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        finish: Finish | None = None,
        stopped_by: int | str | None = None,
        stop_logprob: TokenLogprob | None = None,
        error: str = "",
        *,
        forced: bool = False,
    ) -> None:
        if self._kind == "call":
            self._expression += text
        if ids or text or finish:
            self._tell(
                Piece(
                    self._index, self._kind, ids, text, forced, logprobs, finish, stopped_by,
                    stop_logprob, error, self._cached or 0,
                )
            )  # fmt: skip
