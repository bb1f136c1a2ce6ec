"""One training of a sweep: its identity, its process, and what became of it.

A cell is a code tree, the options of `gchat train`, a seed and a data set. Its identity is a hash
of these, so that a sweep run again trains only what is missing, and another commit, option,
content of a preset, of a manifest or of the run to begin with is another cell.
"""

import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gaia.config import load_preset
from gaia.data.manifest import MANIFEST, load_manifest
from gaia.errors import ConfigError, GaiaError
from gaia.interrupt import hearing
from gaia.storage.files import join, read_bytes
from gaia.writer_lock import WriterLock
from gchat.config import CONFIG_DIR
from gchat.research.measure import measure_of
from gchat.research.options import field_of, refuse_owned, relative_place
from gchat.research.source_tree import Code
from gchat.run.folder import BAD_STEPS
from gchat.run.live import FACTS
from gchat.run.lock import LOCK
from gchat.run.series import Series, read_series

POLL_S = 0.5
KILL_S = 120.0
"""Seconds after which a training that was asked to stop is killed."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)
REDONE = ("failed", "interrupted")
"""Statuses of cells that a sweep trains again."""


@dataclass(frozen=True)
class Cell:
    """One training. `arguments` are those of `gchat train`, without seed, data and folder."""

    variant: str
    size: str
    seed: int
    arguments: tuple[str, ...]
    code: Code
    data_dir: str
    data_hash: str
    preset_hash: str = ""
    start_hash: str = ""

    @property
    def id(self) -> str:
        """Identity: 12 hexadecimal digits."""
        parts = [
            self.code.commit, self.code.changes, list(self.arguments), self.seed, self.data_hash,
            *([self.preset_hash] if self.preset_hash else []),
            *([["start", self.start_hash]] if self.start_hash else []),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name for people and folders."""
        words = (self.variant, self.size, f"s{self.seed}", self.id[:6])
        return "-".join(word for word in words if word)


@dataclass(frozen=True)
class Result:
    """A line of `results.jsonl`."""

    id: str
    variant: str
    size: str
    seed: int
    status: str
    """done, diverged, stopped (early), failed, or interrupted."""
    bpb: float | None
    """Bits per byte of the validation text at the end."""
    tokens: int
    flops: float
    seconds: float
    """Training, evaluation and saving; without the start of the process."""
    curve: list[list[float]] = field(default_factory=list)
    """Evaluations: [tokens, FLOPs, seconds, bits per byte]."""
    error: str = ""
    commit: str = ""
    arguments: list[str] = field(default_factory=list)
    data: str = ""
    run_dir: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0
    """Unix time of the end, in s."""
    start_seconds: float = 0.0
    """Seconds of starts: until the first step had ended (compilation, the first evaluation), and
    what the first step of each later attempt took more than others."""
    measure: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration that decide what the figures mean; its folder may be gone."""


def preset_hash(arguments: Sequence[str]) -> str:
    """Hash of the fields of a preset that is a file; empty for one that ships with the code.

    Args:
        arguments: of `gchat train`, the preset first.

    Raises:
        ConfigError: the file is no preset, has a path that runs would not find, or one that all
            of them would share.
    """
    if (fields := preset_fields(arguments)) is None:
        return ""
    refuse_owned(arguments[0], fields)
    if relative := relative_place(fields):
        name, place = relative
        raise ConfigError(
            f"{name} of {arguments[0]} is {place!r}, and runs start in the folder of their code",
            "write the whole path",
        )
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def preset_fields(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The fields of a preset that is a file; None for one that ships with the code."""
    if not arguments or arguments[0].startswith("-") or not Path(arguments[0]).is_file():
        return None
    return load_preset(Path(arguments[0]), CONFIG_DIR)


def data_hash(folder: str, arguments: Sequence[str] = ()) -> str:
    """Hash of the manifests that a training reads: shards, tokenizer and validation text.

    Args:
        folder: of the data set.
        arguments: of `gchat train`, the preset first; they may name a mixture.

    Raises:
        DataError: a folder holds no data set.
    """
    digest = hashlib.sha256()
    for place in (folder, *_mixture(arguments)):
        load_manifest(place)  # what is no data set is named there
        digest.update(read_bytes(join(place, MANIFEST)))
    return digest.hexdigest()


def _mixture(arguments: Sequence[str]) -> list[str]:
    """Places of `data.mixture`, of a preset that is a file and typed: `--data.mixture a DIR …`."""
    of_data = (preset_fields(arguments) or {}).get("data") or {}
    places = [str(place) for place in (of_data.get("mixture") or {}).values()]
    pairs: list[str] = []
    within = False
    for word in arguments:
        if word.startswith("--"):
            within = field_of(word) == "data.mixture"
        elif within:
            pairs.append(word)
    return [*places, *pairs[1::2]]


@cache
def fingerprint() -> dict[str, Any]:
    """The host and the versions that a result depends on; its accelerator the run itself knows."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    watch: Callable[[Result], bool] = lambda so_far: False,
    timeout_s: float = float("inf"),
) -> Result:
    """Trains a cell in a process of its own, or goes on where it was killed.

    Args:
        cell: what to train.
        folder: the run's folder.
        watch: called with what is known, every half second at most; True stops the training early.
        timeout_s: the training is stopped after so many seconds, its start included.

    Returns:
        The result; a training that fails or diverges is one, too.

    Raises:
        FolderInUse: a training that outlived the sweep that began it is still at work there.
    """
    command = [sys.executable, "-m", "gchat.train", *cell.arguments]
    command += ["--data-dir", cell.data_dir, "--training.seed", str(cell.seed)]
    command += ["--run-dir", str(folder), "--run.name", cell.variant]
    if _goes_on(folder):
        command += ["--resume", "--allow-restart"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    environment = os.environ | {"PYTHONPATH": cell.code.path, "PYTHONUNBUFFERED": "1"}
    stopped, began, asked, look = "", time.monotonic(), 0.0, 0.0
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=cell.code.path, env=environment, stdout=out, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with hearing(_leave, *_ENDING):  # no training outlives the sweep that runs it
                while process.poll() is None:
                    time.sleep(POLL_S)
                    now = time.monotonic()
                    ends = now - began > timeout_s
                    if not stopped and not ends and now >= look:
                        ends = watch(_so_far(cell, folder))
                        # A long log takes long to read: at most a fiftieth of the time.
                        look = time.monotonic() + 50 * (time.monotonic() - now)
                    if not stopped and ends:
                        stopped, asked = "stopped", time.monotonic()
                        process.send_signal(signal.SIGTERM)
                    elif stopped and time.monotonic() - asked > KILL_S:
                        process.kill()
        except BaseException:
            _end(process)
            raise
    return _judge(cell, folder, log, process.returncode, stopped)


def _goes_on(folder: Path) -> bool:
    """Tells whether a cell is to go on from a checkpoint; where not, its folder is taken away.

    Raises:
        FolderInUse: a training that outlived a killed sweep still writes there. Its folder is not
            to be deleted, and another one beside it would fail and slow down those that follow.
    """
    if not folder.exists():
        return False
    with WriterLock(folder / LOCK, f"a training in {folder}"):
        # A kill in the first save leaves a folder and no checkpoint: then it begins again.
        goes_on = any(folder.glob("checkpoints/[0-9]*"))
        if not goes_on:
            shutil.rmtree(folder)
    return goes_on


def _leave(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the training to save and stop; ends it where it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except BaseException:
        process.kill()
        process.wait()


def _judge(cell: Cell, folder: Path, log: Path, code: int, stopped: str) -> Result:
    so_far = asdict(_so_far(cell, folder))
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else f"exit status {code}"
    summary = _json(folder / "summary.json")
    if code == 0 and summary.get("finished"):
        # The log leaves out what is not finite: an earlier evaluation would pass for the last.
        judged = bool(so_far["curve"]) and so_far["curve"][-1][0] == so_far["tokens"]
        status = "done" if judged else "diverged"
        error = "" if judged else "validation after the last step is not finite"
    elif code > 0 and _ended_by_a_bad_step(folder):
        status, error = "diverged", said
    elif stopped:
        status, error = stopped, ""
    elif code == 0 or code in (130, -signal.SIGINT):
        status, error = "interrupted", said
    else:
        status, error = "failed", said
    return Result(
        **so_far | {
            "status": status,
            "error": error[:500],
            "bpb": so_far["bpb"] if status in ("done", "stopped") else None,
            "machine": fingerprint() | _device(folder),
            "time": time.time(),
            "measure": measure_of(folder) if status == "done" else {},
        }
    )  # fmt: skip


def _device(folder: Path) -> dict[str, Any]:
    """The device that JAX trained on (`1 x NVIDIA H200`, `1 x cpu`), where the run wrote it."""
    said = [_json(folder / name).get("device") for name in (FACTS, "summary.json")]
    return {"device": (said[0] or said[1])} if any(said) else {}


def _ended_by_a_bad_step(folder: Path) -> bool:
    """Tells a training that its policy stopped from one that skipped a step and failed later."""
    path = folder / BAD_STEPS
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return bool(lines) and json.loads(lines[-1])["action"] == "stop"
    except (ValueError, KeyError, TypeError):
        return False  # torn by a kill


def _so_far(cell: Cell, folder: Path) -> Result:
    """Reads the state of a training from its folder."""
    try:
        series: Series = read_series(folder / "metrics.jsonl")
    except (OSError, ValueError):  # not there yet, or a line that is just being written
        series = {}
    by_step = {name: dict(points) for name, points in series.items()}
    tokens, flops, seconds = (
        by_step.get(f"train/{name}", {}) for name in ("tokens", "flops", "seconds")
    )
    curve = [
        [tokens.get(step, 0.0), flops.get(step, 0.0), seconds.get(step, 0.0), value]
        for step, value in series.get("eval/val_bpb", [])
    ]
    return Result(
        id=cell.id,
        variant=cell.variant,
        size=cell.size,
        seed=cell.seed,
        status="running",
        bpb=curve[-1][3] if curve else None,
        tokens=int(max(tokens.values(), default=0)),
        flops=max(flops.values(), default=0.0),
        seconds=round(max(seconds.values(), default=0.0), 3),
        start_seconds=round(_start_seconds(by_step, _json(folder / "run.json")), 3),
        curve=curve,
        commit=cell.code.said,
        arguments=list(cell.arguments),
        data=cell.data_hash[:12],
        run_dir=str(folder),
    )


def _start_seconds(by_step: Mapping[str, Mapping[int, float]], run: Mapping[str, Any]) -> float:
    """Seconds that the starts of all attempts took (`Result.start_seconds`)."""
    seconds = by_step.get("train/seconds", {})
    first = min(seconds, default=0)
    resumed = {int(attempt["resume_step"]) + 1 for attempt in run.get("attempts", [])} - {first}
    times = by_step.get("perf/step_ms", {})
    usual = statistics.median(times.values()) if times else 0.0
    late = sum(max(0.0, times[step] - usual) for step in resumed if step in times) / 1000
    return seconds.get(first, 0.0) + late


def read_results(path: Path) -> dict[str, Result]:
    """Results by identity, the newest of each; a line torn by a kill is left out."""
    results: dict[str, Result] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):
                continue
            results[result.id] = result
    return results


def append_result(path: Path, result: Result) -> None:
    """Adds a line, on disk when this returns.

    Raises:
        GaiaError: the disk is full, or the folder cannot be written.
    """
    line = json.dumps(asdict(result)).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # the last one was torn
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise GaiaError(f"{path} cannot be written ({error.strerror})", "make room") from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
