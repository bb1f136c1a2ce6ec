"""The run folder: files that a run writes beside its metrics, and where a run is found again.

RUN/config.yaml  tokenizer.json  metrics.jsonl  checkpoints/  samples.txt  bad_steps.jsonl
    report.md  curves.png  summary.json

A run lies where its files lie: config.yaml names no folder of its own, so that a run can be moved,
copied or mounted elsewhere. Addresses outside of it are stored absolute.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gaia.config import load_yaml, to_yaml
from gaia.errors import ConfigError
from gaia.guards import BadStep
from gaia.storage import StorageError, gcs, is_remote, list_names, open_atomic
from gchat import applied
from gchat.config import (
    CHECKPOINTS,
    CONFIG,
    TrainConfig,
    load_tree,
    without_places,
)
from gchat.run import mirror
from gchat.run_length import LENGTHS
from gchat.tokenizer import Tokenizer

BAD_STEPS = "bad_steps.jsonl"
IMPORTED = "import.json"
"""File that says where an imported model comes from (gchat.importing)."""


class RunFolder:
    """Holds everything that a run writes, under one local folder.

    Args:
        path: the folder; nothing is written before `write_config`.
        first: process 0; the others write nothing.
    """

    def __init__(self, path: Path, *, first: bool = True) -> None:
        self.path, self._first = path, first

    def write_config(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Writes config.yaml (resolved) and the tokenizer, so that the folder explains itself."""
        if not self._first:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        text = to_yaml(_portable(config)) + applied.recorded()
        write_atomically(self.path / CONFIG, text)
        tokenizer.save(str(self.path / "tokenizer.json"))

    def append_samples(self, step: int, text: str) -> None:
        """Adds to samples.txt; a full disk is told, and costs no more than the sample."""
        if not self._first:
            return
        try:
            with open(self.path / "samples.txt", "a", encoding="utf-8") as file:
                file.write(f"── step {step}\n{text}\n")
        except OSError as error:
            print(f"no sample of step {step} in {self.path}: {error.strerror}", flush=True)

    def cut_samples(self, step: int) -> None:
        """Removes the samples of steps above `step`, which the run is about to take again."""
        path = self.path / "samples.txt"
        if not self._first or not path.exists():
            return
        kept, keep = [], True
        # A last line without an end is torn, by a kill or a full disk, even inside a character.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            head = line.removeprefix("── step ").strip()
            if line.startswith("── step ") and head.isdigit():
                keep = int(head) <= step
            if keep:
                kept.append(f"{line}\n")
        write_atomically(path, "".join(kept))

    def note_bad_step(self, bad: BadStep, rows: Sequence[int], action: str) -> str:
        """Adds a line to bad_steps.jsonl, on disk before this returns; what to tell people.

        Raises:
            StorageError: it cannot be written, and a resumed run would not know of the step.
        """
        record = {"step": bad.step, "batch": bad.batch, "reason": bad.reason, "action": action}
        record |= {"rows": list(rows), "time": time.time()}
        if self._first:
            try:
                _append_line(self.path / BAD_STEPS, json.dumps(record).encode())
            except OSError as error:
                problem = (
                    f"step {bad.step} is bad, and {BAD_STEPS} in {self.path} cannot be written"
                )
                raise StorageError(f"{problem} ({error.strerror})", "make room") from None
        some = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
        return f"{bad.reason} at step {bad.step} (batch {bad.batch}: rows {some})"

    def skipped_batches(self) -> list[int]:
        """Lists the batches that rollbacks have left out, also those no checkpoint knows of."""
        path, batches = self.path / BAD_STEPS, set()
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
                record = json.loads(line)
                if record["action"] == "rollback":
                    batches.add(int(record["batch"]))
        return sorted(batches)


def _append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file of lines, on disk before this returns."""
    with open(path, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        torn = file.read(1) not in (b"", b"\n")  # by a kill in the middle of a line
        file.write(b"\n" * torn + line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def last_time(path: Path) -> float | None:
    """Seconds since 1970 of the last line of metrics.jsonl; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return float(json.loads(path.read_bytes().splitlines()[-1])["time"])
    return None


def check_free(config: TrainConfig) -> None:
    """Raises ConfigError where a run, or the checkpoints of one, lie already."""
    path, checkpoints = config.run.folder, config.checkpoints
    if (path / CONFIG).exists():
        raise ConfigError(
            f"run.dir {str(path)!r} already holds a run",
            "add --resume to go on with it, or choose another --run.name",
        )
    if any(name.isdigit() for name in list_names(checkpoints)):
        raise ConfigError(
            f"checkpoint.dir {checkpoints!r} already holds checkpoints",
            "choose another, or --resume the run they belong to",
        )
    mirror.check_free(config.run.mirror)
    if is_remote(checkpoints):
        gcs.check_writable(checkpoints)


def lengths(folder: Path) -> dict[str, Any]:
    """Steps, tokens and tokens per parameter of the run in a folder, as `{"training.steps": …}`."""
    training = read_config(folder).training
    return {f"training.{name}": getattr(training, name) for name in LENGTHS}


def check_resumable(path: Path) -> None:
    """Refuses a folder whose run cannot go on here.

    Raises:
        ConfigError: no run lies there, or one that was imported and never trained.
        CheckpointError: it was trained with ideas that this code lacks.
    """
    if not (path / CONFIG).exists():
        raise ConfigError(
            f"run.dir {str(path)!r} holds no run to resume", "leave out --resume to begin"
        )
    if (path / IMPORTED).exists():
        raise ConfigError(
            f"run.dir {str(path)!r} holds an imported model, without the state of an optimizer",
            f"begin a new run with --init-from {path}",
        )
    applied.check(path / CONFIG, to_train=True)


def read_config(folder: Path, args: Sequence[str] = (), prog: str = "gchat train") -> TrainConfig:
    """Reads the configuration of the run in `folder`, wherever that folder lies now.

    Args:
        folder: of a run, of this version or an earlier one.
        args: overrides, `--group.field value …`.
        prog: program name in help.

    Raises:
        ConfigError: it holds no run, or the file is damaged.
    """
    config = load_tree(without_places(load_yaml(folder / CONFIG)), args, prog=prog)
    return replace(config, run=replace(config.run, dir=str(folder)))


def _portable(config: TrainConfig) -> TrainConfig:
    """The configuration as config.yaml keeps it: no folder of its own, the others absolute."""
    checkpoint, data = config.checkpoint, config.data
    inside = _absolute(config.checkpoints) == _absolute(str(config.run.folder / CHECKPOINTS))
    own = None if inside or checkpoint.dir is None else _absolute(checkpoint.dir)
    return replace(
        config,
        run=replace(config.run, dir=None),
        checkpoint=replace(checkpoint, dir=own),
        data=replace(
            data,
            # Of a text the folder follows from the text.
            dir=None if data.dir is None or data.text else _absolute(data.dir),
            text=data.text and _absolute(data.text),
            tokenizer=_tokenizer(data.tokenizer),
            mixture=_all_absolute(data.mixture),
        ),
        eval=replace(
            config.eval,
            files=_all_absolute(config.eval.files),
            core_bundle=config.eval.core_bundle and _absolute(config.eval.core_bundle),
            chat_tasks=tuple(map(_absolute_source, config.eval.chat_tasks)),
        ),
    )


def _absolute_source(task: str) -> str:
    """NAME=SOURCE or json:PATH with an absolute path."""
    sign = ":" if task.startswith("json:") else "="
    name, _, source = task.partition(sign)
    here = source and not source.startswith("hf://")
    return f"{name}{sign}{_absolute(source)}" if here else task


def _tokenizer(name: str) -> str:
    return name if name in ("gpt2", "bpe") else _absolute(name)


def _absolute(place: str) -> str:
    return place if is_remote(place) else os.path.abspath(place)


def _all_absolute(places: Mapping[str, str]) -> dict[str, str]:
    return {name: _absolute(place) for name, place in places.items()}


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content in one step, so that a reader never sees half of it.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with open_atomic(path) as file:
        file.write(text.encode())
