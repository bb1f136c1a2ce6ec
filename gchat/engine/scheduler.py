"""The order of work: requests wait, take a row, have their prompt read, decode, and leave.

Host bookkeeping only; `engine.py` runs the programs that it asks for. Prompts are read one after
the other, a piece between two calls of decoding, so that a long one does not stall the rows that
decode, and so that the samples of one prompt find it already read.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gchat.engine.programs import Decoded, Rows, Scored
from gchat.engine.requests import (
    MAX_STOP_IDS,
    Event,
    Finish,
    LogitMask,
    Request,
    TokenLogprob,
)
from gchat.engine.sampler import Knobs
from gchat.engine.slots import Slot, Slots, pieces
from gchat.engine.text import TextStream


@dataclass
class Sample:
    """One of the answers that a request asked for."""

    number: int
    index: int
    request: Request
    stop_ids: tuple[int, ...]
    tell: Callable[[Event], None]
    text: TextStream | None
    mask: LogitMask | None
    prompt: np.ndarray
    """All its ids but the last, which the first step of decoding reads."""
    token: int
    """The last token, not read yet."""
    left: int
    """Tokens that may still come."""
    pieces: deque[tuple[int, int]] = field(default_factory=deque)
    """(start, size) of what of the prompt is still to be read."""
    words: np.ndarray | None = None
    """Bits of the ids that the mask allows next; None for any."""
    planned: bool = False
    cached: int = 0
    """Tokens of the prompt that another had read."""
    position: int = -1
    """Position of `token`; -1 while the prompt is read."""
    scored: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities of the prompt's tokens from the second on, where they are wanted."""

    @property
    def scores(self) -> bool:
        """The prompt is scored while it is read; once for all samples."""
        return self.request.prompt_logprobs is not None and self.index == 0


class Scheduler:
    """Samples in order, and the rows of the cache.

    Args:
        slots: rows of the cache.
        piece: tokens of a prompt that are read at once.
        vocab: rows of the embedding, for masks.

    Attributes:
        tokens: that all rows were given so far.
        row_steps: steps that took, summed over rows; fewer than tokens where drafts came true.
    """

    def __init__(self, slots: int, piece: int, vocab: int) -> None:
        self.slots = Slots(slots, piece)
        self.waiting: deque[Sample] = deque()
        self.reading: deque[Slot] = deque()
        self.tokens = self.row_steps = 0
        self._mask_words = -(-vocab // 32)
        self._no_mask = np.zeros((slots, self._mask_words), np.uint32)

    @property
    def idle(self) -> bool:
        """True where nobody waits or decodes."""
        return not self.waiting and all(slot.sample is None for slot in self.slots.all)

    def decoding(self) -> list[Slot]:
        """Rows that have their prompt and go on."""
        return [s for s in self.slots.all if s.sample is not None and s.sample.position >= 0]

    def admit(self) -> list[Slot]:
        """Gives free rows to those who waited longest; returns these rows."""
        taken = []
        while self.waiting and self.slots.free():
            sample = self.waiting.popleft()
            taken.append(self.slots.take(sample, sample.prompt))
        self.reading.extend(taken)
        return taken

    def begin(self, slot: Slot) -> Slot | None:
        """Plans the reading of a row's prompt; returns the row to copy first, if any."""
        sample: Sample = slot.sample
        sample.planned = True
        source = None
        if not sample.scores:
            source, sample.cached = self.slots.source(slot, sample.prompt)
        slot.read = sample.prompt[: sample.cached]
        sample.pieces.extend(pieces(sample.cached, len(sample.prompt), self.slots.piece))
        return source if sample.cached and source is not slot else None

    def piece(self, slot: Slot) -> tuple[np.ndarray, int]:
        """The next ids of a row's prompt, filled up with 0, and their first position."""
        start, size = slot.sample.pieces.popleft()
        ids = slot.sample.prompt[start : start + size]
        # What another program has read is not equal to the last bit: nobody takes it over.
        if not slot.sample.scores:
            slot.read = slot.sample.prompt[: start + len(ids)]
        return np.pad(ids, (0, size - len(ids))), start

    def following(self, slot: Slot, start: int, size: int) -> np.ndarray:
        """The ids that follow those of a piece, filled up with 0."""
        ids = np.asarray(slot.sample.request.ids[start + 1 : start + size + 1], np.int32)
        return np.pad(ids, (0, size - len(ids)))

    def note_scores(self, slot: Slot, start: int, scored: Scored) -> None:
        """Takes the log-probabilities of what follows a piece that began at `start`."""
        sample: Sample = slot.sample
        count = sample.request.prompt_logprobs or 0
        for c, number in enumerate(
            sample.request.ids[start + 1 : start + len(scored.logprob_C) + 1]
        ):
            top = _top(scored.top_CN[c, :count], scored.top_logprob_CN[c, :count])
            sample.scored.append(TokenLogprob(int(number), float(scored.logprob_C[c]), top))

    def ready(self, slot: Slot) -> None:
        """The row has its prompt: it decodes from now on."""
        s: Sample = slot.sample
        s.position = len(s.prompt)
        if s.scores:
            s.tell(Event(s.number, s.index, prompt_logprobs=tuple(s.scored)))

    def ask_masks(self) -> None:
        """Asks the masks what may follow; a sample whose mask cannot say ends with an error."""
        for slot in self.decoding():
            sample: Sample = slot.sample
            if sample.mask is None:
                continue
            try:
                sample.words = sample.mask.allowed()
            except Exception as error:
                self.end(slot, "error", error=f"the mask failed: {_line(error)}")
                continue
            words = sample.words
            if words is not None and (len(words) > self._mask_words or not np.any(words)):
                why = "allows no token" if len(words) <= self._mask_words else "is too long"
                self.end(slot, "error", error=f"the mask {why}")

    def rows(self) -> Rows:
        """The next work of the rows."""
        B = len(self.slots.all)
        token, position = np.zeros(B, np.int32), np.full(B, -1, np.int32)
        left, stop = np.zeros(B, np.int32), np.full((B, MAX_STOP_IDS), -1, np.int32)
        temperature, top_p = np.zeros(B, np.float32), np.ones(B, np.float32)
        min_p, penalty = np.zeros(B, np.float32), np.ones(B, np.float32)
        top_k, key = np.zeros(B, np.int32), np.zeros((B, 2), np.uint32)
        logprobs, masked, mask = np.zeros(B, bool), np.zeros(B, bool), self._no_mask
        alone, biased = np.zeros(B, bool), np.zeros(B, bool)
        for slot in self.decoding():
            b, s = slot.number, slot.sample
            ask = s.request.sampling
            token[b], position[b], left[b] = s.token, s.position, s.left
            stop[b, : len(s.stop_ids[:MAX_STOP_IDS])] = s.stop_ids[:MAX_STOP_IDS]
            temperature[b], top_k[b], top_p[b] = ask.temperature, ask.top_k, ask.top_p
            min_p[b], penalty[b] = ask.min_p, ask.repetition_penalty
            key[b] = ask.seed, s.request.first + s.index
            logprobs[b], biased[b] = bool(s.request.logprobs), bool(s.request.logit_bias)
            alone[b] = s.mask is not None
            if s.words is not None:
                mask = mask.copy() if mask is self._no_mask else mask
                mask[b, : len(s.words)], masked[b] = s.words, True
        knobs = Knobs(
            temperature, top_k, top_p, min_p, penalty, logprobs, key, masked, mask, biased
        )
        return Rows(token, position, left, stop, alone, knobs)

    def one_by_one(self) -> bool:
        """True where a row must be asked for its mask after each token, or has none yet to show."""
        samples = [slot.sample for slot in self.decoding()]
        return any(s.mask is not None or s.position == len(s.prompt) for s in samples)

    # ── News ────────────────────────────────────────────────────────────────────────────────────

    def take_in(self, decoded: Decoded) -> None:
        """Hands the tokens of a call to their samples; those that have ended leave their rows."""
        ids_TB = decoded.ids_TB[: int(decoded.used)]
        self.row_steps += int(decoded.steps_B.sum())
        self.tokens += int((ids_TB >= 0).sum())
        for slot in self.decoding():
            self._take_in(slot, ids_TB[:, slot.number], decoded)

    def _take_in(self, slot: Slot, ids_T: Any, decoded: Decoded) -> None:
        s: Sample = slot.sample
        ids: list[int] = []
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        for t, token in enumerate(ids_T.tolist()):
            if token < 0:  # the row's draft was wrong, or it has ended
                continue
            logprob = _logprob(s.request, token, decoded, t, slot.number)
            if error := _impossible(s, token, logprob):
                return self.end(slot, "error", ids, text, logprobs, error=error)
            if token in s.stop_ids:
                return self.end(slot, "stop", ids, text, logprobs, stopped_by=token, last=logprob)
            s.token, s.position, s.left = token, s.position + 1, s.left - 1
            ids.append(token)
            if s.request.logprobs is not None:
                logprobs.append(logprob)
            if s.mask is not None and (error := _told(s, token)):
                return self.end(slot, "error", ids, text, logprobs, error=error)
            if s.text is not None:
                text.append(s.text.add(token))
                if s.text.stopped_by is not None:
                    stop = s.text.stopped_by
                    return self.end(slot, "stop", ids, text, logprobs, stopped_by=stop)
            if s.left == 0:
                return self.end(slot, "length", ids, text, logprobs)
        s.tell(Event(s.number, s.index, tuple(ids), "".join(text), tuple(logprobs)))
        return None

    def end(
        self,
        slot: Slot,
        finish: Finish,
        ids: Sequence[int] = (),
        text: Sequence[str] = (),
        logprobs: Sequence[TokenLogprob] = (),
        *,
        stopped_by: int | str | None = None,
        last: TokenLogprob | None = None,
        error: str = "",
    ) -> None:
        """Tells a sample's last news and frees its row."""
        s: Sample = slot.sample
        slot.sample = None
        if slot in self.reading:
            self.reading.remove(slot)
        rest = s.text.end() if s.text is not None else ""
        s.tell(
            Event(
                s.number, s.index, tuple(ids), "".join(text) + rest, tuple(logprobs), finish,
                stopped_by, last if s.request.logprobs is not None else None, error, s.cached,
            )
        )  # fmt: skip

    def drop(self, numbers: set[int]) -> None:
        """Ends what waits or decodes for these requests."""
        for sample in [s for s in self.waiting if s.number in numbers]:
            self.waiting.remove(sample)
            sample.tell(Event(sample.number, sample.index, finish="cancelled"))
        for slot in self.slots.all:
            if slot.sample is not None and slot.sample.number in numbers:
                self.end(slot, "cancelled")

    def fail(self, cause: BaseException) -> None:
        """Ends all that has a row: its keys and values are lost."""
        error = _line(cause)
        for slot in self.slots.all:
            if slot.sample is not None:
                self.end(slot, "error", error=error)
        self.slots.forget()


def _impossible(sample: Sample, token: int, logprob: TokenLogprob) -> str:
    """Says why a token cannot have been chosen; empty where it can."""
    if sample.words is not None and not sample.words[token // 32] >> (token % 32) & 1:
        return f"the mask allows only ids that the model does not have, {token} was chosen"
    return "" if math.isfinite(logprob.logprob) else "logits are not finite"


def _told(sample: Sample, token: int) -> str:
    """Tells the mask which token was chosen; says what went wrong, if anything."""
    assert sample.mask is not None
    try:
        sample.mask.accept(token)
    except Exception as error:
        return f"the mask failed: {_line(error)}"
    return ""


def _line(error: BaseException) -> str:
    """The error as one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _logprob(request: Request, token: int, d: Any, t: int, b: int) -> TokenLogprob:
    count = request.logprobs or 0
    top = _top(d.top_TBN[t, b, :count], d.top_logprob_TBN[t, b, :count])
    return TokenLogprob(token, float(d.logprob_TB[t, b]), top)


def _top(top_N: Any, logprob_N: Any) -> tuple[tuple[int, float], ...]:
    pairs = zip(top_N, logprob_N, strict=True)
    return tuple((int(i), float(p)) for i, p in pairs if p > -math.inf)
