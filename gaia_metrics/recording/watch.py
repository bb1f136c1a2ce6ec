"""Alerts from the training process itself: not-a-number, loss spike, slow-down, stall.

They are printed, recorded in the run folder and sent as OTLP logs. The Grafana rules in deploy/
watch the same things from outside, and also see a process that is gone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gaia_metrics import names


@dataclass(frozen=True)
class WatchConfig:
    """Conditions that raise an alert.

    Attributes:
        spike_sigma: the loss is this many standard deviations above its recent mean...
        spike_share: ...and at least this share above it (a flat loss has no deviation).
        slow_share: tokens/s below this share of the recent median, `slow_steps` times in a row.
        slow_steps: see there.
        stall_steps: nothing logged for this many usual log intervals...
        stall_min_s: ...and for at least this long.
        window: how many values make up "recent".
    """

    spike_sigma: float = 6.0
    spike_share: float = 0.1
    slow_share: float = 0.5
    slow_steps: int = 5
    stall_steps: float = 20.0
    stall_min_s: float = 300.0
    window: int = 100


class Watch:
    """A sink of the worker that looks at values as they pass. `alert(level, title, text)`.

    Each kind of alert is raised once, and again only after the value was well in between.
    """

    def __init__(self, alert: Callable[[str, str, str], None], config: WatchConfig) -> None:
        self._alert, self._config = alert, config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._speeds: deque[float] = deque(maxlen=config.window)
        self._gaps: deque[float] = deque(maxlen=config.window)
        self._slow = 0
        self._raised: set[str] = set()
        self._last_log = time.monotonic()
        self._last_ns = 0

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Look at one `log()`."""
        if system:
            return
        if self._last_ns:
            self._gaps.append((time_ns - self._last_ns) / 1e9)
        self._last_ns, self._last_log = time_ns, time.monotonic()
        self._raised.discard("stall")
        if not math.isfinite(sum(values.values())):  # one call for the usual case
            for name, value in values.items():
                if not math.isfinite(value):
                    text = f"{name}={value} at step {step}"
                    self._raise(f"nan:{name}", "error", "not a number", text)
        loss = values.get(names.LOSS)
        if loss is not None and math.isfinite(loss):
            self._see_loss(step, loss)
        speed = values.get(names.TOKENS_PER_S)
        if speed is not None:
            self._see_speed(step, speed)

    def record(self, record: dict) -> None:
        """Texts and histograms are not looked at."""

    def flush(self, fsync: bool) -> None:
        """Called every tick: has anything been logged?"""
        if not self._gaps:
            return
        usual = sorted(self._gaps)[len(self._gaps) // 2]
        limit = max(self._config.stall_min_s, self._config.stall_steps * usual)
        quiet = time.monotonic() - self._last_log
        if quiet > limit:
            self._raise("stall", "warn", "stalled", f"nothing was logged for {quiet:.0f} s")

    def _see_loss(self, step: int, loss: float) -> None:
        config, recent = self._config, self._losses
        if len(recent) >= 20:
            mean = sum(recent) / len(recent)
            # A product becomes infinite where a power raises OverflowError.
            deviation = math.sqrt(sum((v - mean) * (v - mean) for v in recent) / len(recent))
            limit = mean + max(config.spike_sigma * deviation, config.spike_share * abs(mean))
            if loss > limit:
                text = f"{names.LOSS}={loss:.4g} at step {step}, recent mean {mean:.4g}"
                self._raise("spike", "warn", "loss spike", text)
            else:
                self._raised.discard("spike")
        recent.append(loss)

    def _see_speed(self, step: int, speed: float) -> None:
        config, recent = self._config, self._speeds
        if len(recent) >= 20:
            usual = sorted(recent)[len(recent) // 2]
            if speed < config.slow_share * usual:
                self._slow += 1
                if self._slow >= config.slow_steps:
                    text = f"{speed:.4g} tokens/s at step {step}, usually {usual:.4g}"
                    self._raise("slow", "warn", "throughput dropped", text)
                return  # a slow stretch must not become the usual speed
            self._slow = 0
            self._raised.discard("slow")
        recent.append(speed)

    def _raise(self, key: str, level: str, title: str, text: str) -> None:
        if key not in self._raised:
            self._raised.add(key)
            self._alert(level, title, text)
