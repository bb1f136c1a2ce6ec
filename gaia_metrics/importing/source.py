"""Foreign runs as a stream of items, in the order they were recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Progress = Callable[[int], None]


class Start(NamedTuple):
    """A start of the training process; what was recorded of steps above `resume_step` is void."""

    resume_step: int
    time_ns: int


class Values(NamedTuple):
    """Values of one step, or a sample of the system."""

    step: int
    time_ns: int
    values: dict[str, float]
    system: bool = False


Item = Start | Values | dict[str, Any]  # a dict is a text, histogram or alert record


@dataclass
class ForeignRun:
    """One run of another program.

    Attributes:
        identity: names the run wherever its files are moved to.
        name: of the run.
        files: what it consists of.
        read: read(progress) yields the items; progress(bytes) is called along the way. The
            attributes below are complete once it has ended.
        skipped: kind -> how many records cannot be kept (images, audio, …).
    """

    identity: tuple[str, ...]
    name: str
    files: list[Path]
    read: Callable[[Progress], Iterator[Item]] = lambda progress: iter(())
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    host: str = ""
    commit: str = ""
    started: float = 0.0
    status: str = "finished"
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, kind: str) -> None:
        """Count a record that cannot be kept."""
        self.skipped[kind] = self.skipped.get(kind, 0) + 1
