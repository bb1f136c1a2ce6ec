"""Event files of TensorBoard as foreign runs: one run per folder that holds any."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.importing.source import ForeignRun, Item, Progress, Start, Values
from gaia_metrics.recording.histogram import of_buckets

PATTERN = "*tfevents*"
OWN_FACTS = "gaia/config"  # the text that a sink of ours begins with
TEXT_SUFFIX = "/text_summary"  # PyTorch's SummaryWriter adds it to every text
RESERVED = {"step", "time"}  # keys of metrics.jsonl's own
START = 1  # SessionLog.START


def find(path: Path) -> list[ForeignRun]:
    """Find the runs at or below `path`, an event file or a folder.

    Raises:
        MetricsError: there is none.
    """
    if path.is_file():
        return [_run(path, path.parent, [path])]
    folders: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob(PATTERN)):
        if file.is_file():
            folders.setdefault(file.parent, []).append(file)
    if not folders:
        raise MetricsError(f"{path} holds no event files ({PATTERN})", "check the path")
    return [_run(path, folder, files) for folder, files in folders.items()]


def _run(root: Path, folder: Path, files: list[Path]) -> ForeignRun:
    inner = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else "."
    name = folder.resolve().name if inner == "." else inner
    # File names hold time, host and process id, wherever the folder is moved to.
    run = ForeignRun(("tensorboard", files[0].name), name, files, project="tensorboard")

    def read(progress: Progress) -> Iterator[Item]:
        reader = _Reader(run)
        for file in files:
            yield from reader.items(file, progress)
        if not reader.begun:
            raise FormatError(f"{files[0]} holds no readable event", "give files of TensorBoard")

    run.read = read
    return run


class _Reader:
    """Reads the files of one run into items, and its facts into `run`."""

    def __init__(self, run: ForeignRun) -> None:
        load: Any = importlib.import_module  # an extra, absent in a base install
        self._loader = load("tensorboard.backend.event_processing.event_file_loader")
        self._array = load("tensorboard.util.tensor_util").make_ndarray
        self._hparams = load("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
        self._run = run
        self._plugins: dict[str, str] = {}  # of each tag, stated with its first value
        self.begun = False  # an event was read

    def items(self, file: Path, progress: Progress) -> Iterator[Item]:
        """Yield what one file holds; a torn end ends it."""
        size, told = os.path.getsize(file), 0
        for event in self._loader.EventFileLoader(str(file)).Load():
            length = min(event.ByteSize() + 16, size - told)  # the frame has 16 bytes
            told += length
            progress(length)
            time_ns = int(event.wall_time * 1e9)
            if not self.begun:
                self.begun, self._run.started = True, event.wall_time
                yield Start(-1, time_ns)
            if event.session_log.status == START and event.step > 0:
                yield Start(event.step - 1, time_ns)
            for value in event.summary.value:
                yield from self._value(value, event.step, time_ns)
        progress(size - told)

    def _value(self, value: Any, step: int, time_ns: int) -> Iterator[Item]:
        plugin = value.metadata.plugin_data.plugin_name
        if plugin:
            self._plugins[value.tag] = plugin
        plugin = self._plugins.get(value.tag, "")
        name = f"train/{value.tag}" if value.tag in RESERVED else value.tag
        if plugin == "hparams":
            self._hyperparameters(value.metadata.plugin_data.content)
        elif plugin == "scalars" and value.HasField("tensor"):
            number = float(self._array(value.tensor).item())
            yield Values(step, time_ns, {name: number})
        elif plugin == "histograms":
            buckets = self._array(value.tensor)
            if len(buckets):
                edges = [float(buckets[0][0]), *(float(right) for _, right, _ in buckets)]
                counts = [float(count) for _, _, count in buckets]
                yield self._record("histogram", name, step, time_ns) | of_buckets(edges, counts)
        elif plugin == "text":
            for part in self._array(value.tensor).ravel():
                text = part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
                yield from self._text(name.removesuffix(TEXT_SUFFIX), text, step, time_ns)
        else:
            self._run.skip(plugin or value.WhichOneof("value") or "unknown")

    def _text(self, name: str, text: str, step: int, time_ns: int) -> Iterator[Item]:
        if name == OWN_FACTS:
            self._own_facts(text)
            return
        level = name.removeprefix("alerts/")
        if name != level and level in ("info", "warn", "error"):
            title, _, text = text.partition(": ")
            record = self._record("alert", title, step, time_ns)
            yield record | {"text": text, "level": level}
        else:
            yield self._record("text", name, step, time_ns) | {"text": text}

    def _own_facts(self, text: str) -> None:
        """Take the facts that a sink of ours wrote at the start of each attempt."""
        facts = json.loads("\n".join(line[4:] for line in text.splitlines()))
        run = self._run
        run.name, run.project = facts["name"], facts["project"]
        run.config, run.tags, run.notes = facts["config"], facts["tags"], facts["notes"]

    def _hyperparameters(self, content: bytes) -> None:
        start = self._hparams.FromString(content).session_start_info
        for name, value in start.hparams.items():
            kind = value.WhichOneof("kind")
            if kind in ("number_value", "string_value", "bool_value"):
                self._run.config[name] = getattr(value, kind)

    def _record(self, kind: str, name: str, step: int, time_ns: int) -> dict[str, Any]:
        return {"kind": kind, "name": name, "step": step, "time_ns": time_ns}
