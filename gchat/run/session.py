"""One attempt at a run: the folder, checkpoints, metrics, mirror and clock that its loop uses."""

import json
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import gaia_metrics
from gaia.checkpoint import Checkpointer, Restored
from gaia.config import differences, flatten, to_dict
from gaia.errors import CheckpointError, ConfigError
from gaia.optim import schedule
from gaia.processes.group import Group
from gaia.runtime import Machine, peak_flops
from gchat import applied
from gchat.config import FREE_ON_RESUME, TrainConfig
from gchat.model_shape import all_params
from gchat.run import folder as run_folder
from gchat.run.commit import git_commit
from gchat.run.folder import RunFolder, last_time
from gchat.run.live import LivePicture
from gchat.run.lock import RunLock, is_below
from gchat.run.mirror import Mirror
from gchat.run.progress import Progress
from gchat.tokenizer import Tokenizer


class Session:
    """Holds what surrounds the training of one run, from its start or its resume to its end.

    Nothing is written before `begin`.

    Args:
        config: derived.
        machine: to train on.
        tokenizer: of the run; a checkpoint of another one is refused.
        resume: go on from the newest intact checkpoint.
        allow_restart: with `resume`, start over where there is no checkpoint.
        extend: with `resume`, train more steps than the run was to have.
        group: the processes of the run.
        command: command line that trains, to which people add `--resume`.

    Raises:
        ConfigError: a run lies there already, there is none to resume or extend, or a sink's
            package is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        machine: Machine,
        tokenizer: Tokenizer,
        *,
        resume: bool = False,
        allow_restart: bool = False,
        extend: bool = False,
        group: Group | None = None,
        command: str = "gchat train",
    ) -> None:
        self.config, self.machine, self.tokenizer = config, machine, tokenizer
        self.resume, self._allow_restart, self._extend = resume, allow_restart, extend
        self.group = group or Group()
        if self.group.first:
            _check_sinks(config)
            if resume:
                run_folder.check_resumable(config.run.folder)
                if extend:
                    applied.check_extension()
            else:
                run_folder.check_free(config)
        self.folder = RunFolder(config.run.folder, first=self.group.first)
        self.progress = Progress(config, *peak_flops(machine, config.model.compute_dtype))
        self.loaded: int | None = None
        """Step of the checkpoint that the state was read from last."""
        where = shlex.quote(str(self.folder.path))
        self.resume_command = f"{command} --resume --run-dir {where}"
        self._run_id: str | None = None
        self._checkpoints: Checkpointer | None = None
        self._picture: LivePicture | None = None
        self._lock = RunLock(config)

    def lock(self) -> None:
        """Takes the run for this process and its group, or refuses; `close` lets it go.

        Raises:
            FolderInUse: another process is writing it.
        """
        if self.group.first:
            self._lock.take()

    def close(self) -> None:
        """Waits for the save under way and lets the run go, for whoever resumes it next."""
        try:
            if self._picture is not None:
                self._picture.close()
            # After an error of this process: its newest checkpoint is whole all the same. A group
            # does not wait, since sealing needs all of its processes.
            alone = self._checkpoints is not None and self.group.count == 1
            if alone and (problem := self.checkpoints.close()):
                print(f"no checkpoint of {problem}", flush=True)
        finally:
            self._lock.release()

    @property
    def checkpoints(self) -> Checkpointer:
        """Checkpoints of the run; `begin` has opened them."""
        assert self._checkpoints is not None
        return self._checkpoints

    def _checkpointer(self) -> Checkpointer:
        c = self.config.checkpoint
        return Checkpointer(
            self.config.checkpoints, keep=c.keep, keep_every=c.keep_every, group=self.group
        )

    def restore(self, state: Any) -> Restored | None:
        """Reads the newest intact checkpoint into arrays like those of `state`; None to start over.

        Raises:
            CheckpointError: it belongs to another configuration, or there is none.
        """
        checkpoints = self._checkpointer()
        step = checkpoints.latest(report=print)
        if step is None:
            if not self._allow_restart:
                raise CheckpointError(
                    f"{self.config.checkpoints!r} holds no checkpoint to resume from",
                    "add --allow-restart to train from step 0 again",
                )
            print("no checkpoint to resume from: starting at step 0")
            return None
        meta = checkpoints.read_meta(step)
        lengths = self.group.broadcast(lambda: run_folder.lengths(self.config.run.folder))
        if self._extend:
            self._check_longer(lengths)
        self._check_same_run(meta, lengths)
        restored = checkpoints.restore(step, state)
        checkpoints.close()
        self.progress.restore(restored.meta["progress"], finished_at=self._finished_at())
        self._run_id, self.loaded = restored.meta["metrics_run_id"], step
        print(f"resumed from step {step} of {self.config.training.amounts.steps}")
        if (before := meta["config"]["training"]["steps"]) != self.config.training.steps:
            print(self._extension(before, step))
        return restored

    def _finished_at(self) -> float | None:
        """The time of the last line in the log of a run that had reached its end; else None."""
        folder = self.folder.path
        finished = gaia_metrics.run_info(folder).get("status") == "finished"
        return last_time(folder / "metrics.jsonl") if finished and self.group.first else None

    def begin(self, step: int) -> None:
        """Opens everything for writing; the run goes on from `step`."""
        if not self.resume and self.group.first:
            self.lock()
            run_folder.check_free(self.config)  # again: nobody else can begin one there now
        self.group.all_gather("ready")
        self._checkpoints = self._checkpointer()
        self.folder.write_config(self.config, self.tokenizer)
        self.checkpoints.discard_after(step)
        self.folder.cut_samples(step)
        self._open_metrics(step)
        self.group.at_abort(lambda: self.metrics.finish("crashed"))
        path = self.folder.path
        if self.group.first:
            self._picture = LivePicture(path, self.config.run.picture_seconds, self._facts())
        self.mirror = Mirror(
            self.config.run.mirror, path, process=self.group.index, is_ours=lambda: self._lock.held
        )

    def _facts(self) -> dict[str, Any]:
        """Facts for the live picture that no other file of a running run holds."""
        return {
            "params": all_params(self.config.model),
            "device": f"{self.machine.devices} x {self.machine.device_kind}",
            "steps": self.config.training.amounts.steps,
            "commit": git_commit(),
        }

    def _open_metrics(self, step: int) -> None:
        """Opens process 0's metrics of the run; the others record their machines under its id."""
        begin = partial(
            gaia_metrics.init,
            "gchat",
            self.config.run.name,
            flatten(to_dict(self.config)),
            dir=self.folder.path,
            resume_step=step,
            process_index=self.group.index,
            sinks=self.config.metrics.sinks,
        )
        mine = begin(run_id=self._run_id) if self.group.first else None
        said = self.group.broadcast(lambda: (mine.id, mine.attempt) if mine else None)
        self._run_id, attempt = said
        self.metrics = mine or begin(run_id=self._run_id, attempt=attempt)

    def save(self, step: int, state: Any, guard: Mapping[str, Any]) -> str | None:
        """Saves, but never ahead of the metrics: those up to `step` are on disk first.

        Returns:
            None, or the checkpoint that could not be written and why.

        Raises:
            FolderInUse: another process has taken this one for dead, and goes on with the run.
        """
        self._lock.check()
        if not self.group.broadcast(lambda: self.metrics.wait_durable(step)):
            return f"step {step}: its metrics could not be written"
        behind = self.mirror.copy()
        if self.group.broadcast(lambda: behind) and self._in_mirror():
            return f"step {step}: its metrics could not be copied to {self.config.run.mirror}"
        return self.checkpoints.save(step, state, self._meta(guard))

    def _in_mirror(self) -> bool:
        """Tells whether checkpoints lie with the copy of the metrics, and may outlive the rest."""
        mirror = self.config.run.mirror
        return mirror is not None and is_below(str(self.config.checkpoints), mirror)

    def _meta(self, guard: Mapping[str, Any]) -> dict[str, Any]:
        """Facts that a checkpoint holds beside arrays. The data position follows from its step."""
        return {
            "guard": dict(guard),
            "metrics_run_id": self._run_id,
            "tokenizer_sha256": self.tokenizer.sha256,
            "progress": self.progress.state(),
            "config": json.loads(json.dumps(to_dict(self.config))),
        }

    def _check_longer(self, lengths: Mapping[str, Any]) -> None:
        """Refuses an extension that adds no step."""
        before, steps = lengths["training.steps"], self.config.training.amounts.steps
        if steps <= before:
            raise ConfigError(
                f"--extend to {steps} steps: the run has {before} already",
                f"add --max-steps above {before}, or leave out --extend to go on with them",
            )

    def _extension(self, before: int, step: int) -> str:
        """One sentence on how an extension changes the learning rate."""
        optim, steps = self.config.optim, self.config.training.amounts.steps
        was, now = (float(schedule(optim, n)(step)) for n in (before, steps))
        return (
            f"extended from {before} to {steps} steps: the {optim.schedule} schedule is now that "
            f"of {steps} steps; the next step's learning rate is {now:.3f} of the peak, where the "
            f"old schedule had come down to {was:.3f}"
        )

    def _check_same_run(self, meta: Mapping[str, Any], lengths: Mapping[str, Any]) -> None:
        """Refuses a checkpoint of another configuration or tokenizer.

        Args:
            meta: of the checkpoint.
            lengths: of the run, which may have been extended after the checkpoint.

        Raises:
            CheckpointError: naming every field that differs, with both values.
        """
        old, now, defaults = (
            flatten(c) for c in (meta["config"], to_dict(self.config), to_dict(TrainConfig()))
        )
        old |= {name: now[name] if self._extend else value for name, value in lengths.items()}
        # A field that came after the checkpoint had what is its default now.
        old |= {name: defaults[name] for name in now.keys() & defaults.keys() - old.keys()}
        changed = {
            name: pair
            for name, pair in differences(old, now).items()
            if not name.startswith(FREE_ON_RESUME)
        }
        theirs, ours = meta["tokenizer_sha256"], self.tokenizer.sha256
        if theirs != ours:
            changed["tokenizer.sha256"] = (theirs[:12], ours[:12])
        if changed:
            listed = ", ".join(f"{k} was {a} and is {b}" for k, (a, b) in changed.items())
            raise CheckpointError(
                f"the checkpoint belongs to another run: {listed}",
                "put these back, or start a new run with another --run.name"
                + ("; --extend trains it longer" if "training.steps" in changed else ""),
            )

    def roll_back(self, state: Any) -> Restored | None:
        """Reads the newest intact checkpoint and forgets all that came after it.

        The metrics go on under the same run, cut to that step. None: there is no checkpoint.
        """
        self.loaded = step = self.checkpoints.latest(report=print)
        restored = None if step is None else self.checkpoints.restore(step, state)
        self.checkpoints.discard_after(step or 0)
        self.folder.cut_samples(step or 0)
        self.progress.forget_target(None if restored is None else restored.meta["progress"])
        self.metrics.finish("stopped")
        self._open_metrics(step or 0)
        return restored

    def finish(self, step: int) -> "Outcome":
        """Closes the metrics; to be called after the last checkpoint was waited for."""
        last = self.checkpoints.last_saved
        saved = step in (last, self.loaded)
        finished = saved and step == self.config.training.amounts.steps
        self.metrics.finish("finished" if finished else "stopped" if saved else "crashed")
        newest = step if saved else self.loaded if last is None else last
        return Outcome(step, saved, finished, f"{self.config.checkpoints}/{newest}")


class Outcome(NamedTuple):
    """The end of an attempt."""

    step: int
    saved: bool
    """The checkpoint of `step` is on disk."""
    finished: bool
    """`step` is the last step of the run, and saved."""
    checkpoint: str
    """Path of the newest checkpoint."""


def _check_sinks(config: TrainConfig) -> None:
    """Refuses, before anything is made, sinks whose packages are missing."""
    try:
        gaia_metrics.check_sinks(config.metrics.sinks)
    except gaia_metrics.MetricsError as error:
        raise ConfigError(f"metrics.{error.problem}", error.remedy) from error
