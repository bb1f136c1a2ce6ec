"""Progress of a run: throughput and time left, on one terminal line or a line now and then."""

import contextlib
import math
import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from gchat.config import TrainConfig, price_per_hour
from gchat.evals.progress_line import clock
from gchat.model_shape import flops_per_token
from gchat.run import names


class Progress:
    """Times steps from completion to completion, leaving out evaluation and saving.

    Args:
        config: a derived configuration.
        peak: FLOP/s that utilisation is measured against.
        peak_source: what that figure is, for people.
    """

    def __init__(self, config: TrainConfig, peak: float, peak_source: str) -> None:
        amounts, self._log_interval = config.training.amounts, config.run.log_interval
        self.peak, self.peak_source = peak, peak_source
        self.steps = amounts.steps
        self.tokens_per_step = amounts.batch_size * config.model.seq_len
        self.flops_per_step = flops_per_token(config.model) * self.tokens_per_step
        self._target_bpb, self._target_core = config.run.target_bpb, config.run.target_core
        self._price = price_per_hour(config)
        self.seconds = 0.0
        """Seconds of training so far over all attempts, evaluation and saving included."""
        self.cost = 0.0
        """US dollars so far, each attempt's seconds at the price of its machine."""
        self.began = time.time()
        """Seconds since 1970 at which the first attempt opened the run."""
        self.idle = 0.0
        """Seconds since then for which the run was finished, before somebody resumed it."""
        self.seconds_to_target: float | None = None
        self.seconds_to_target_core: float | None = None
        self._recent: deque[float] = deque(maxlen=50)
        self._mark = self._since = time.perf_counter()
        self._terminal = sys.stdout.isatty()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, so that a resumed run reports the whole of its time."""
        self._count_time()
        return {
            "seconds": self.seconds,
            "cost": self.cost,
            "seconds_to_target": self.seconds_to_target,
            "seconds_to_target_core": self.seconds_to_target_core,
            "began": self.began,
            "idle": self.idle,
        }

    def restore(self, state: Mapping[str, Any], *, finished_at: float | None = None) -> None:
        """The counterpart of `state`.

        Args:
            state: of a checkpoint; those before version 0.2 do not say when the run began.
            finished_at: time at which the run had ended, where it had reached its last step.
        """
        opened = self.began
        self.seconds = float(state["seconds"])
        self.cost = float(state.get("cost", self._price * self.seconds / 3600))
        self.seconds_to_target = state["seconds_to_target"]
        self.seconds_to_target_core = state.get("seconds_to_target_core")  # not in older ones
        self.began = float(state.get("began", opened))
        self.idle = float(state.get("idle", 0.0))
        if finished_at is not None:
            self.idle += max(0.0, opened - finished_at)

    def start(self) -> None:
        """Starts the clock: the loop begins now."""
        self._mark = self._since = time.perf_counter()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self.cost += (now - self._since) * self._price / 3600
        self._since = now

    def step(self, step: int, loss: float, data_wait: float) -> dict[str, float]:
        """Records that a step was completed just now; returns its `perf/…` values."""
        now = time.perf_counter()
        took, self._mark = now - self._mark, now
        self._count_time()
        self._recent.append(took)
        self._show(step, loss)
        return {
            "perf/step_ms": took * 1e3,
            "perf/tokens_per_s": self.tokens_per_step / took,
            "perf/mfu": self.flops_per_step / took / self.peak,
            "perf/data_wait_ms": data_wait * 1e3,
            "perf/data_wait_share": data_wait / took,
            "train/tokens": step * self.tokens_per_step,
            "train/flops": step * self.flops_per_step,
            "train/seconds": self.seconds,
        } | ({"run/cost_per_hour": self._price} if self._price else {})

    def forget_target(self, state: Mapping[str, Any] | None) -> None:
        """Takes back when the targets were reached, to what it was at a checkpoint or the start."""
        self.seconds_to_target = state["seconds_to_target"] if state else None
        self.seconds_to_target_core = state.get("seconds_to_target_core") if state else None

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Prints an evaluation and notes when the target was first reached."""
        bpb = values.get(names.VAL_BPB, math.inf)
        if self._target_bpb and self.seconds_to_target is None and bpb <= self._target_bpb:
            self.seconds_to_target = self.seconds
        core = values.get(names.CORE, -math.inf)
        target = self._target_core
        if target is not None and self.seconds_to_target_core is None and core >= target:
            self.seconds_to_target_core = self.seconds
        self.say(f"step {step}: " + ", ".join(_described(values)))

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Counts the work inside as time of the run, not of a training step."""
        if self._terminal:
            self._over(f"{what} …")
        began = time.perf_counter()
        yield
        self._mark += time.perf_counter() - began
        self._count_time()

    def _show(self, step: int, loss: float) -> None:
        typical = statistics.median(self._recent)
        rate = self.tokens_per_step / typical
        mfu = self.flops_per_step / typical / self.peak
        left = clock((self.steps - step) * typical)
        text = (
            f"step {step}/{self.steps}  loss {loss:.4f}  {rate:,.0f} tok/s  "
            f"MFU {mfu:.1%}  ETA {left}"
        )
        if self._terminal:
            done = round(20 * step / max(1, self.steps))
            self._over(f"[{'█' * done}{'·' * (20 - done)}] {text}")
            if step == self.steps:
                print()
        elif step % self._log_interval == 0 or step in (1, self.steps):
            print(text, flush=True)

    def _over(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="", flush=True)

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self._terminal:
            self._over("")
            print("\r", end="")
        print(text, flush=True)


def _described(values: Mapping[str, float]) -> Iterator[str]:
    """Evaluations in words: a text's bits per byte with its loss, anything else as it is."""
    texts = [name.removesuffix("_bpb") for name in values if name.endswith("_bpb")]
    for text in sorted(texts):
        name = text.removeprefix("eval/")
        yield f"{name} {values[text + '_bpb']:.4f} bpb (loss {values[text + '_loss']:.4f})"
    of_texts = {f"{text}_{kind}" for text in texts for kind in ("bpb", "loss", "perplexity")}
    tasks = (names.CORE_TASK, names.CHAT_TASK)  # too many for a line
    of_tasks = {name for name in values if name.startswith(tasks)}
    rest = values.keys() - of_texts - of_tasks
    for name in sorted(rest or (of_tasks if not texts else ())):
        yield f"{name.removeprefix('eval/')} {values[name]:.4f}"
