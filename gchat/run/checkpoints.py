"""The checkpoints of a run: listed for people, and one of them chosen by `--step`.

Nothing is written, no array is read, and what is being written or was cut off is left out.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from gaia import storage
from gaia.errors import CheckpointError, ConfigError
from gaia.seal import CHECKSUMS
from gchat.config import CONFIG, TrainConfig
from gchat.run.folder import read_config
from gchat.run.names import VAL_BPB

NAMED = ("last", "best")


@dataclass(frozen=True)
class Options:
    """List the checkpoints of a run: steps with size, time and validation bits per byte."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    json: bool = False
    """Print one JSON object."""


class Saved(NamedTuple):
    """A finished checkpoint."""

    step: int
    bytes: int
    saved_at: float | None
    """Seconds since 1970; None where the checkpoint does not say."""
    val_bpb: float | None
    """Validation bits per byte at this very step; None where it was not validated."""


def saved_checkpoints(config: TrainConfig) -> list[Saved]:
    """The finished checkpoints of a run, oldest first.

    Args:
        config: of the run, as `read_config` gives it.
    """
    bpb = dict(_validations(config.run.folder / "metrics.jsonl"))
    saved = []
    for name in storage.list_names(config.checkpoints):
        if name.isdigit():
            step = int(name)
            size = _size(storage.join(config.checkpoints, name))
            if size is not None:
                at = _time(storage.join(config.checkpoints, name))
                saved.append(Saved(step, size, at, bpb.get(step)))
    return sorted(saved)


def best_of(saved: list[Saved]) -> int | None:
    """The step with the lowest validation bits per byte, the earliest of equals; None without any.

    A checkpoint between two validations has no figure of its own, and is not guessed at.
    """
    known = [one for one in saved if one.val_bpb is not None]
    return min(known, key=lambda one: (one.val_bpb, one.step)).step if known else None


def check_step(text: str) -> None:
    """Raises ConfigError where a text is no step: `last`, `best` or a number."""
    if text not in NAMED and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"--step is {text!r}", "use a number of steps, best or last")


def choose(path: str, config: TrainConfig, step: str) -> int:
    """The step that `--step` means.

    Args:
        path: of the run, for messages.
        config: of the run.
        step: `best` or a number (`last` is what a `Checkpointer` finds intact).

    Raises:
        CheckpointError: there is no such checkpoint; the message names those there are.
    """
    saved = saved_checkpoints(config)
    if not saved:
        raise CheckpointError(f"{path!r} holds no usable checkpoint", "train it further first")
    steps = ", ".join(f"{one.step}" for one in saved)
    if step == "best":
        best = best_of(saved)
        if best is None:
            raise CheckpointError(
                f"none of the checkpoints of {path!r} ({steps}) was validated at its step",
                "name one with --step N, or save and validate at the same steps "
                "(--checkpoint.every-steps, --eval.every-steps)",
            )
        return best
    if int(step) not in {one.step for one in saved}:
        raise CheckpointError(
            f"{path!r} has no checkpoint of step {int(step)}",
            f"use one of {steps}, or best or last",
        )
    return int(step)


def read_run(path: str) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        CheckpointError: no run lies there.
    """
    folder = Path(path)
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{path!r} holds no run ({CONFIG} is missing)", "check the folder")
    return read_config(folder)


def show(options: Options) -> None:
    """Prints the list."""
    config = read_run(options.run)
    saved = saved_checkpoints(config)
    best, last = best_of(saved), saved[-1].step if saved else None
    if options.json:
        rows = [one._asdict() for one in saved]
        answer = {"run": options.run, "place": config.checkpoints, "best": best, "last": last}
        print(json.dumps(answer | {"checkpoints": rows}))
        return
    if not saved:
        print(f"{options.run} holds no finished checkpoint")
        return
    print(f"{'step':>10}  {'MB':>10}  {'saved':19}  {'val bpb':>8}")
    for one in saved:
        marks = [name for name, step in (("best", best), ("last", last)) if step == one.step]
        bpb = "-" if one.val_bpb is None else f"{one.val_bpb:.4f}"
        line = f"{one.step:>10}  {one.bytes / 1e6:>10,.1f}  {_clock(one.saved_at):19}  {bpb:>8}"
        print(f"{line}  {', '.join(marks)}".rstrip())


def _size(folder: str) -> int | None:
    """Bytes of a checkpoint's files, by its checksums; None where it was never finished."""
    place = storage.join(folder, CHECKSUMS)
    try:
        if not storage.exists(place):
            return None
        files = json.loads(storage.read_bytes(place))["files"]
        return sum(int(size) for size, _ in files.values())
    except (storage.StorageError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is being pruned, or damaged


def _time(folder: str) -> float | None:
    """The time at which a checkpoint was committed, as Orbax wrote it: copies keep it."""
    try:
        facts = json.loads(storage.read_bytes(storage.join(folder, "_CHECKPOINT_METADATA")))
        return int(facts["commit_timestamp_nsecs"]) / 1e9
    except (storage.StorageError, OSError, ValueError, KeyError, TypeError):
        return None


def _validations(path: Path) -> Iterator[tuple[int, float]]:
    """(step, bits per byte) of each validation; the newest attempt's come last."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
            step, value = int(record["step"]), record[VAL_BPB]
        except (ValueError, KeyError, TypeError):
            continue  # another line, or the last one of a run that writes it now
        if isinstance(value, int | float):
            yield step, float(value)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
