"""Requests to the engine and its answers: plain data, no device work.

Log-probabilities have one meaning everywhere: of the distribution after the repetition penalty and
the temperature, before anything is cut off (top-k, top-p, min-p, a mask). Where the temperature is
0 they are those at temperature 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from gaia.errors import ConfigError
from gchat.ranges import MAX_SEED

MAX_LOGPROBS = 20
"""Alternatives per token that can be asked for."""
MAX_STOP_IDS = 8
"""Stop ids that the device looks for; the host finds further ones a few tokens later."""
MAX_STOPS = 16
MAX_SAMPLES = 1024
MAX_DRAFT = 16
"""Tokens that a step may draft."""

Finish = Literal["stop", "length", "cancelled", "error"]


def check_draft(speculate: int) -> None:
    """Raises ConfigError where a step cannot draft so many tokens."""
    if not 0 <= speculate <= MAX_DRAFT:
        raise ConfigError(f"speculate is {speculate}", f"use 0 (off) to {MAX_DRAFT}")


@dataclass(frozen=True)
class SamplingConfig:
    """Choice of the next token: penalty, temperature, top-k, top-p of what is left, min-p."""

    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability."""
    seed: int = 0
    """Same seed, same text (on the same kind of machine)."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Divide positive logits of tokens that occurred by it, multiply negative ones; 1 is none."""

    def check(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}", "use 0 or more")
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(f"top_k is {self.top_k}", "use 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}", "use a share in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}", "use a share in [0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}", "use a number above 0; 1 is off"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}", f"use 0 to {MAX_SEED}")


class LogitMask(Protocol):
    """Says after each token which ones may follow, as a grammar does; one object per sample."""

    def allowed(self) -> np.ndarray | None:
        """Bit i of word i // 32 set where id i may follow: uint32 [ceil(V / 32)]; None for any."""
        ...

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. Sample i is drawn with keys of (seed, i, position)."""

    ids: Sequence[int]
    """Token ids of the prompt, at least one (begin with BOS)."""
    max_new_tokens: int = 128
    """Limit of the tokens to add; the model's positions limit prompt and answer together."""
    sampling: SamplingConfig = SamplingConfig()
    stop_ids: Sequence[int] | None = None
    """Ids that end the answer and are no part of it; None takes the engine's."""
    stop: Sequence[str] = ()
    """Texts that end the answer and are no part of its text."""
    n: int = 1
    """Samples of the same prompt, which is read once."""
    logprobs: int | None = None
    """Log-probability of each token, and of this many most likely ones beside it."""
    mask: Callable[[], LogitMask] | None = None
    """Makes the mask of one sample."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Additions to the logits of some ids before the draw; log-probabilities are without them."""
    prompt_logprobs: int | None = None
    """Log-probability of each token of the prompt after those before it (at temperature 1), and
    of this many most likely ones beside it; the whole prompt is read for that."""
    first: int = 0
    """The i of the first of the n samples: many samples may be asked for in parts."""

    def check(self, vocab: int, longest: int) -> None:
        """Raises ConfigError naming what cannot work, for a model of `vocab` ids."""
        self.sampling.check()
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}", "use at least 1")
        if not 1 <= self.n <= MAX_SAMPLES:
            raise ConfigError(f"n is {self.n}", f"use 1 to {MAX_SAMPLES}")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= MAX_LOGPROBS:
                raise ConfigError(f"{name} is {count}", f"use 0 to {MAX_LOGPROBS}")
        for number, value in self.logit_bias.items():
            if not 0 <= number < vocab or not math.isfinite(value):
                raise ConfigError(
                    f"logit_bias holds {value} for id {number}",
                    f"use finite numbers for ids 0 to {vocab - 1}",
                )
        if len(self.stop) > MAX_STOPS or "" in self.stop:
            raise ConfigError(
                f"stop holds {len(self.stop)} texts, {self.stop.count('')} of them empty",
                f"use up to {MAX_STOPS}, none empty",
            )
        if not len(self.ids):
            raise ConfigError("a prompt has no tokens", "begin prompts with BOS")
        if wrong := next((i for i in self.ids if not 0 <= i < vocab), None):
            raise ConfigError(
                f"a prompt holds id {wrong}, the model's are 0 to {vocab - 1}",
                "encode it with the tokenizer of the run",
            )
        if len(self.ids) >= longest:
            raise ConfigError(
                f"a prompt has {len(self.ids)} tokens, the model's seq_len is {longest}",
                "shorten the prompt",
            )


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely ones at its place, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """News of one sample of a request; its last one has `finish`."""

    request: int
    """Number that `submit` gave the request."""
    index: int
    """Sample of the request, 0 … n - 1."""
    ids: tuple[int, ...] = ()
    """New tokens, without the stop id that may have ended them."""
    text: str = ""
    """New text: whole characters only, cut before a stop text."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of `ids`, where the request asked for them."""
    finish: Finish | None = None
    stopped_by: int | str | None = None
    """Stop id or stop text that ended the answer."""
    stop_logprob: TokenLogprob | None = None
    """Log-probability of the stop id: training needs it, the text does not."""
    error: str = ""
    """One line that says why, where `finish` is "error"."""
    cached: int = 0
    """Prompt tokens that were not read again, in the last event."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """Log-probabilities of the prompt's tokens but the first, in the first event of sample 0 of a
    request that asked for them."""
