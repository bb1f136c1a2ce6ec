"""The run folder: what a run writes beside its metrics, and who may write into it.

RUN/config.yaml  tokenizer.json  metrics.jsonl  checkpoints/  samples.txt  bad_steps.jsonl
    report.md  curves.png  summary.json
"""

import contextlib
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaia.config import differences, flatten, to_dict, to_yaml
from gaia.errors import CheckpointError, ConfigError
from gaia.guards import BadStep
from gaia.storage import gcs, is_remote, list_names
from gchat.config import TrainConfig
from gchat.run import mirror
from gchat.tokenizer import Tokenizer

BAD_STEPS = "bad_steps.jsonl"


class RunFolder:
    """Everything a run writes lies under one local folder."""

    def __init__(self, config: TrainConfig, *, resume: bool, first: bool = True) -> None:
        """The folder of a new run, or of the run to resume; nothing is written yet.

        Args:
            config: derived.
            resume: whether a run must lie there, or must not.
            first: process 0; the others look at nothing here, and write nothing.

        Raises:
            ConfigError: a run lies there already, or there is none to resume.
        """
        self.path = folder_of(config)
        self.plain = flatten(to_dict(config))
        self._config = to_dict(config)
        self.resume_command = (
            f"python -m gchat.train --resume --run-dir {shlex.quote(str(self.path))}"
        )
        self._first = first
        if not first:
            return
        if not resume:
            self.check_free(config)
        elif not (self.path / "config.yaml").exists():
            raise ConfigError(
                f"run.dir {str(self.path)!r} holds no run to resume", "leave out --resume"
            )

    @staticmethod
    def check_free(config: TrainConfig) -> None:
        """Raises ConfigError where a run, or the checkpoints of one, lie already."""
        path, checkpoints = folder_of(config), config.checkpoint.dir
        if (path / "config.yaml").exists():
            raise ConfigError(
                f"run.dir {str(path)!r} already holds a run",
                "add --resume to go on with it, or choose another --run.name",
            )
        if checkpoints and any(name.isdigit() for name in list_names(checkpoints)):
            raise ConfigError(
                f"checkpoint.dir {checkpoints!r} already holds checkpoints",
                "choose another, or --resume the run they belong to",
            )
        mirror.check_free(config.run.mirror)
        if checkpoints and is_remote(checkpoints):
            gcs.check_writable(checkpoints)

    @staticmethod
    def resume_args(args: Sequence[str]) -> list[str]:
        """Command-line arguments of a resume: the run's own config.yaml first, then `args`."""
        args = list(args)
        if args and not args[0].startswith("-"):
            return args
        for i, arg in enumerate(args):
            name, _, value = arg.partition("=")
            if name.replace("_", "-") in ("--run.dir", "--run-dir"):
                folder = value or (args[i + 1] if i + 1 < len(args) else "")
                return [str(Path(folder) / "config.yaml"), *args]
        raise ConfigError("--resume names no run", "add --run-dir RUN")

    def write_config(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """config.yaml (resolved) and the tokenizer, so that the folder explains itself."""
        if not self._first:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", to_yaml(config))
        tokenizer.save(str(self.path / "tokenizer.json"))

    def meta(
        self, run_id: str, tokenizer_sha256: str, progress: Mapping, guard: Mapping
    ) -> dict[str, Any]:
        """What a checkpoint holds beside arrays. The data position follows from its step."""
        return {
            "guard": dict(guard),
            "metrics_run_id": run_id,
            "tokenizer_sha256": tokenizer_sha256,
            "progress": dict(progress),
            "config": json.loads(json.dumps(self._config)),
        }

    def check_resume(
        self, meta: Mapping, config: TrainConfig, tokenizer_sha256: str, free: Sequence[str]
    ) -> None:
        """Refuses a checkpoint of another configuration or tokenizer.

        Raises:
            CheckpointError: naming every field that differs, with both values.
        """
        old, now, defaults = (
            flatten(c) for c in (meta["config"], to_dict(config), to_dict(TrainConfig()))
        )
        # A field that came after the checkpoint had what is its default now.
        old |= {name: defaults[name] for name in now.keys() & defaults.keys() - old.keys()}
        changed = {
            name: pair
            for name, pair in differences(old, now).items()
            if not name.startswith(tuple(free))
        }
        if meta["tokenizer_sha256"] != tokenizer_sha256:
            changed["tokenizer.sha256"] = (meta["tokenizer_sha256"][:12], tokenizer_sha256[:12])
        if changed:
            listed = ", ".join(f"{k} was {a} and is {b}" for k, (a, b) in changed.items())
            raise CheckpointError(
                f"the checkpoint belongs to another run: {listed}",
                "put these back, or start a new run with another --run.name",
            )

    def append_samples(self, step: int, text: str) -> None:
        """Adds to samples.txt."""
        if not self._first:
            return
        with open(self.path / "samples.txt", "a", encoding="utf-8") as file:
            file.write(f"── step {step}\n{text}\n")

    def note_bad_step(self, bad: BadStep, rows: Sequence[int], action: str) -> str:
        """Adds a line to bad_steps.jsonl, on disk before this returns; what to tell people."""
        record = {"step": bad.step, "batch": bad.batch, "reason": bad.reason, "action": action}
        record |= {"rows": list(rows), "time": time.time()}
        if self._first:
            with open(self.path / BAD_STEPS, "a+b") as file:
                file.seek(max(0, file.tell() - 1))
                torn = file.read(1) not in (b"", b"\n")  # by a kill in the middle of a line
                file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        some = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
        return f"{bad.reason} at step {bad.step} (batch {bad.batch}: rows {some})"

    def passed_over(self) -> list[int]:
        """Batches that this run's rollbacks have left out, also those no checkpoint knows of."""
        path, batches = self.path / BAD_STEPS, set()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
                record = json.loads(line)
                if record["action"] == "rollback":
                    batches.add(int(record["batch"]))
        return sorted(batches)


def folder_of(config: TrainConfig) -> Path:
    """runs/NAME unless run.dir says otherwise."""
    return Path(config.run.dir or Path("runs") / config.run.name)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content in one step, so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
