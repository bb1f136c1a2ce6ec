"""A run mirrored as an event file of TensorBoard: `tensorboard --logdir runs` shows it.

Written with TensorBoard's own protobufs and record format; TensorFlow is not needed. An attempt is
one more event file in the same folder. Its first event says that the session starts behind the
step training resumes from, upon which TensorBoard drops what earlier files have of later steps.
Scalars are 32-bit floats there.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from gaia_metrics.recording.histogram import edges
from gaia_metrics.storage.folder import Attempt

START = 1  # SessionLog.START


class EventFile:
    """Takes records into one event file.

    Args:
        folder: the run's folder for TensorBoard.
        info: run.json's content.
        attempt: this start.
    """

    def __init__(self, folder: Path, info: dict, attempt: Attempt) -> None:
        load: Any = importlib.import_module  # an extra, absent in a base install
        self._event = load("tensorboard.compat.proto.event_pb2")
        self._summary = load("tensorboard.compat.proto.summary_pb2")
        self._tensor = load("tensorboard.compat.proto.tensor_pb2")
        self._string = load("tensorboard.compat.proto.types_pb2").DT_STRING
        writer = load("tensorboard.summary.writer.record_writer")
        folder.mkdir(exist_ok=True)
        started = attempt.started
        name = f"events.out.tfevents.{started:010.0f}.{attempt.host}.{attempt.pid}"
        file = open(folder / f"{name}.{attempt.attempt}", "xb")  # noqa: SIM115
        self._file, self._writer = file, writer.RecordWriter(file)
        self._put(started, 0, file_version="brain.Event:2")
        if attempt.resume_step >= 0:
            session = self._event.SessionLog(status=START)
            self._put(started, attempt.resume_step + 1, session_log=session)
        facts = {key: info[key] for key in ("id", "name", "project", "tags", "notes", "config")}
        # Four spaces make a block of code in the markdown that the text page draws.
        text = "\n".join(f"    {line}" for line in json.dumps(facts, indent=2).splitlines())
        self._text(started, max(0, attempt.resume_step), "gaia/config", text)
        self._writer.flush()

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Write each value as a scalar."""
        scalars = [self._summary.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._put(time_ns / 1e9, step, summary=self._summary.Summary(value=scalars))

    def record(self, record: dict) -> None:
        """Write a text, an alert (as a text) or a histogram."""
        at, step, name = record["time_ns"] / 1e9, record["step"], record["name"]
        if record["kind"] == "histogram":
            self._histogram(at, step, name, record)
        elif record["kind"] == "alert":
            self._text(at, step, f"alerts/{record['level']}", f"{name}: {record['text']}")
        else:
            self._text(at, step, name, record["text"])

    def flush(self) -> None:
        """Hand the events to the kernel."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the file, on the disk."""
        self._writer.flush()
        os.fsync(self._file.fileno())
        self._writer.close()

    def _histogram(self, at: float, step: int, name: str, record: dict) -> None:
        bounds, counts = edges(record)
        histo = self._summary.HistogramProto(
            min=record["min"],
            max=record["max"],
            num=record["count"],
            sum=record["sum"],
            # TensorBoard's buckets have a right edge only: an empty one gives the first its left.
            bucket_limit=bounds,
            bucket=[0, *counts],
        )
        value = self._summary.Summary.Value(tag=name, histo=histo)
        self._put(at, step, summary=self._summary.Summary(value=[value]))

    def _text(self, at: float, step: int, name: str, text: str) -> None:
        metadata = self._summary.SummaryMetadata(
            plugin_data=self._summary.SummaryMetadata.PluginData(plugin_name="text")
        )
        tensor = self._tensor.TensorProto(
            dtype=self._string, string_val=[text.encode("utf-8", "replace")]
        )
        tensor.tensor_shape.SetInParent()  # a scalar
        value = self._summary.Summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._put(at, step, summary=self._summary.Summary(value=[value]))

    def _put(self, wall_time: float, step: int, **what: Any) -> None:
        event = self._event.Event(wall_time=wall_time, step=max(0, step), **what)
        self._writer.write(event.SerializeToString())
