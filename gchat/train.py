"""Pretraining: THE loop, in the order things happen. The update itself is in `train_step.py`.

    python -m gchat.train [CONFIG.yaml] [--group.field value …] [--resume]
        [--coordinator HOST:PORT --num-processes N --process-id I]

A step number counts finished updates: step k is logged, validated and saved after k updates.
All processes of a run execute this alike; what is said or written is process 0's. Where one alone
decides (a signal, a clock), they agree on the step first.
Shapes: B rows, T time.
"""

import contextlib
import sys
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax

import gaia_metrics
from gaia import parallel
from gaia.checkpoint import Checkpointer
from gaia.config import parse, to_dict
from gaia.errors import GaiaError, run_cli
from gaia.guards import BadStep, LossGuard, StopRequest, Watchdog
from gaia.processes.agreement import Agreement
from gaia.processes.group import Group, joined, take_options
from gaia.profile import StepTrace
from gaia.runtime import Machine, peak_flops, start
from gchat.config import FREE_ON_RESUME, TrainConfig, derive, load
from gchat.evals.ngram import ngram_baselines
from gchat.evals.periodic import EVAL_ROWS, Evaluator
from gchat.run import mirror
from gchat.run.folder import RunFolder
from gchat.run.mirror import Mirror
from gchat.run.progress import Progress
from gchat.run.report import write_report
from gchat.run.training_data import TrainingData
from gchat.scaling.exhaustion import exhaustion_explained
from gchat.train_state import init_state
from gchat.train_step import StepMetrics, make_scorer, make_train_step


class TrainingFailed(GaiaError):
    """The run cannot go on: a bad step, or its last checkpoint cannot be written."""

    exit_status = 1


class InFlight(NamedTuple):
    """A step that was dispatched and whose metrics nobody has read yet."""

    step: int
    batch: int
    metrics: StepMetrics
    data_wait: float


class Trainer:
    """One run: set up in `__init__`, THE loop in `train`, and what it does now and then.

    Args:
        config: what to train; derived here.
        machine: what to train on.
        resume: go on from the newest sound checkpoint in the run's folder.
        group: the processes of the run, each with its own Trainer.

    Raises:
        GaiaError: the data, the configuration or the checkpoint cannot be used. Nothing has been
            written then.
    """

    def __init__(
        self, config: TrainConfig, machine: Machine, *, resume: bool, group: Group | None = None
    ) -> None:
        # ── Data and sizes ────────────────────────────────────────────────────────────────────
        self.group = group or Group()
        self.data = TrainingData(config.data)
        self.manifest, self.tokenizer = self.data.manifest, self.data.tokenizer
        self.data.check_same(self.group)
        config, derived = derive(
            replace(config, data=self.data.config),
            vocab_size=self.tokenizer.vocab_size,
            padded_vocab_size=self.tokenizer.padded_vocab_size,
        )
        self.config, self.machine = config, machine
        self.steps = config.training.steps or 0
        self.folder = RunFolder(config, resume=resume, first=self.group.first)
        self.trace = StepTrace(config.run.profile, self.folder.path / "profile")
        for sentence in derived + self.data.warnings():
            print(sentence)

        # ── Model, optimizer, evaluation ──────────────────────────────────────────────────────
        self.mesh = parallel.make_mesh(config.mesh)
        self.graph, self.state = init_state(config, self.mesh)
        self.train_step = make_train_step(self.graph, config, self.mesh)
        scorer = make_scorer(self.graph, config, self.mesh)
        eval_rows = EVAL_ROWS * self.mesh.size
        self.evaluator = Evaluator(config, self.tokenizer, self.graph, scorer, rows=eval_rows)
        self.progress = Progress(config, *peak_flops(machine, config.model.compute_dtype))
        self.guard = LossGuard(config.guards)
        self.watchdog = Watchdog(config.guards.hang_minutes, at_end=self._hung)

        # ── Where to begin ────────────────────────────────────────────────────────────────────
        self.step, run_id = self._restore() if resume else (0, None)
        self.loaded = self.saving = self.step if run_id else None
        self.stopped = False
        self.agreement = Agreement(self.group, self.step)
        self._open_batches()
        print(self.batches.describe())

        # ── From here on the run writes ───────────────────────────────────────────────────────
        self.group.gather("ready")
        self.checkpoints = self._checkpointer()
        self.folder.write_config(config, self.tokenizer)
        self.checkpoints.discard_after(self.step)
        self._open_metrics(run_id)
        self.group.at_abort(lambda: self.metrics.finish("crashed"))
        self.mirror = Mirror(config.run.mirror, self.folder.path, process=self.group.index)

    def _checkpointer(self) -> Checkpointer:
        c = self.config.checkpoint
        return Checkpointer(c.dir or "", keep=c.keep, keep_every=c.keep_every, group=self.group)

    def _restore(self) -> tuple[int, str | None]:
        """Step and metrics run id of the newest sound checkpoint, its arrays put in place."""
        checkpoints = self._checkpointer()
        self.guard.passed_over |= set(self.group.share(self.folder.passed_over))
        found = checkpoints.latest(report=print)
        if found is None:
            print("no checkpoint to resume from: starting at step 0")
            return 0, None
        meta = checkpoints.read_meta(found)
        self.folder.check_resume(meta, self.config, self.tokenizer.sha256, FREE_ON_RESUME)
        self.state = checkpoints.restore(found, self.state).state
        checkpoints.close()
        self.progress.restore(meta["progress"])
        self.guard.restore(meta.get("guard", {}))
        print(f"resumed from step {found} of {self.steps}")
        return found, meta["metrics_run_id"]

    def _open_batches(self) -> None:
        rows = parallel.rows_here(self.config.training.batch_size or 1, self.mesh)
        self.batches = self.data.loader(self.config, self.guard.position(self.step), rows)

    def _open_metrics(self, run_id: str | None) -> None:
        """Process 0's folder says which run it is; the others record their machines under it."""
        begin = partial(
            gaia_metrics.init,
            "gchat",
            self.config.run.name,
            self.folder.plain,
            dir=self.folder.path,
            resume_step=self.step,
            process_index=self.group.index,
        )
        mine = begin(run_id=run_id) if self.group.first else None
        run_id = self.group.share(lambda: mine and mine.id)
        self.metrics = mine or begin(run_id=run_id)
        self.in_flight: deque[InFlight] = deque()

    def fit(self) -> dict[str, Any]:
        """Trains to the end or to a stop; returns the summary (`finished` says which)."""
        try:
            stop = StopRequest(lambda: self.agreement.ask("stop"))
            with stop, self.watchdog, exhaustion_explained(self.config, self.machine):
                self.train_and_save()
        except BaseException:
            self.metrics.finish("crashed")
            raise
        self.group.close()
        return self.finish()

    def train_and_save(self) -> None:
        """Trains, and rolls back as often as it takes; ends with the last checkpoint on disk."""
        while True:
            try:
                self.train()
                self.trace.stop(self.state)
                self.save()
                break
            except BadStep as bad:
                self.roll_back(bad)
        with self.watchdog.slow("writing the last checkpoint"):
            self._say_if_unsaved(self.checkpoints.close())

    def train(self) -> None:
        """THE loop: steps until the last one, a stop, or a bad one (BadStep)."""
        every, sample_every = self.config.eval.every_steps, self.config.eval.sample_every
        if self.step == 0:
            self.evaluate()
        self.progress.start(self.step)
        while self.step < self.steps and not self.stopped:
            if self.group.first and self.progress.save_overdue():
                self.agreement.ask("save")
            due = self.agreement.due(self.step)
            if "save" in due:
                self.save()
            if "stop" in due:
                self.stopped = True
                break
            self.dispatch()
            self.read_metrics(keep=self.config.run.in_flight)
            if self.step == self.steps:
                self.evaluate(samples=True)
            elif every and self.step % every == 0:
                self.evaluate(samples=bool(sample_every) and self.step % sample_every == 0)
            if self.step < self.steps and self.progress.save_due(self.step):
                self.save()

    def dispatch(self) -> None:
        """Hands the next batch to the devices and does not wait for them."""
        asked = time.perf_counter()
        while self.batches.step in self.guard.passed_over:
            next(self.batches)
        index, batch = self.batches.step, next(self.batches)
        data_wait = time.perf_counter() - asked
        arrays = [parallel.shard_rows(a, self.mesh) for a in batch if a is not None]
        self.trace.before(self.step + 1, self.state)
        skips = self.config.guards.policy == "skip"
        limit = {"limit": self.guard.limit(self.step + 1)} if skips else {}
        self.state, metrics = self.train_step(self.state, *arrays, **limit)
        self.step += 1
        self.in_flight.append(InFlight(self.step, index, metrics, data_wait))

    def read_metrics(self, keep: int) -> None:
        """Logs finished steps, oldest first, until at most `keep` are still in flight."""
        while len(self.in_flight) > keep:
            done = self.in_flight.popleft()
            loss = float(done.metrics.loss)  # waits for this step; later ones keep the device busy
            grad_norm = float(done.metrics.grad_norm)
            self.watchdog.alive(f"the last was step {done.step}")
            values = self.progress.step(done.step, loss, done.data_wait) | {
                "train/loss": loss,
                "train/grad_norm": grad_norm,
                "train/lr_share": float(done.metrics.lr_share),
                **done.metrics.packed(),
                **self.batches.metrics(done.step),
            }
            reason = self.guard.judge(done.step, loss, grad_norm)
            if reason and self.config.guards.policy == "skip":
                values["train/skipped"] = 1.0
            self.metrics.log(done.step, values)
            if reason:
                self.bad_step(BadStep(done.step, done.batch, reason))

    def bad_step(self, bad: BadStep) -> None:
        """What the policy says: nothing more (skip), BadStep (rollback) or TrainingFailed."""
        policy, allowed = self.config.guards.policy, False
        if policy == "skip":
            allowed = self.guard.may_skip()
        elif policy == "rollback":
            allowed = self.guard.may_roll_back(bad.batch)
        action = policy if allowed else "stop"
        rows = self.batches.row_ids(bad.batch).tolist()
        said = self.folder.note_bad_step(bad, rows, action)
        if action == "stop":
            with self.watchdog.slow("writing the last checkpoint"):  # it may still be under way
                self._say_if_unsaved(self.checkpoints.wait())
            spent = f" after all that guards.policy {policy} allows" if policy != "stop" else ""
            raise TrainingFailed(
                f"{said}{spent}",
                "lower the learning rate, or --resume with --guards.policy skip or rollback; the "
                "last checkpoint is sound",
            )
        print(f"{said}: {action}", flush=True)
        if action == "rollback":
            raise bad

    def roll_back(self, bad: BadStep) -> None:
        """Takes up the newest checkpoint, to go on from it without the batch of the bad step."""
        with self.watchdog.slow("rolling back"):
            self._say_if_unsaved(self.checkpoints.wait())
            self.loaded = self.saving = found = self.checkpoints.latest(report=print)
            self.step = found or 0
            self.state = jax.tree.map(_shape, self.state)  # room for the one that replaces it
            if found is None:
                _, self.state = init_state(self.config, self.mesh)
                self.guard.restore({})
            else:
                _, self.state, meta = self.checkpoints.restore(found, self.state)
                self.guard.restore(meta.get("guard", {}))
            self.checkpoints.discard_after(self.step)
            self.batches.close()
            self._open_batches()
            run_id = self.metrics.id
            self.metrics.finish("stopped")
            self._open_metrics(run_id)
        print(f"rolled back to step {self.step}; batch {bad.batch} is passed over", flush=True)

    def evaluate(self, samples: bool = False) -> None:
        """Validates, and samples on demand, at the current step."""
        self.read_metrics(keep=0)

        def alive(done: int, total: int) -> None:
            self.watchdog.alive(f"evaluating, batch {done} of {total}")

        with self.progress.paused("evaluating"), self.watchdog.slow("evaluating"):
            values = self.evaluator.validate(self.state.params, progress=alive)
            self.metrics.log(self.step, values)
            self.progress.evaluated(self.step, values)
            if samples:
                self.watchdog.alive("sampling", patience=4)
                text = self.evaluator.sample(self.state.params)
                self.folder.append_samples(self.step, text)
                self.metrics.text(self.step, "samples", text)

    def save(self) -> None:
        """Saves, but never ahead of the metrics: those up to this step are on disk first."""
        self.read_metrics(keep=0)
        if self.step == self.saving:
            return
        self.saving = self.step
        with self.progress.paused("saving"), self.watchdog.slow("saving"):
            self.progress.saved(self.step)
            if not self.group.share(lambda: self.metrics.wait_durable(self.step)):
                self._say_if_unsaved(f"step {self.step}: its metrics could not be written")
                return
            self.mirror.copy()
            meta = self.folder.meta(
                self.metrics.id, self.tokenizer.sha256, self.progress.state(), self.guard.state()
            )
            self._say_if_unsaved(self.checkpoints.save(self.step, self.state, meta))

    def _say_if_unsaved(self, problem: str | None) -> None:
        if problem:
            print(f"no checkpoint of {problem}; earlier ones stay good", flush=True)

    def close(self) -> None:
        """Ends the background threads of data and mirror, however training ended."""
        self.batches.close()
        self.mirror.close()

    def _hung(self) -> None:
        """In the watchdog's thread, before this process ends."""
        self.group.abort(TrainingFailed(self.watchdog.problem() or "it hangs"))
        self.metrics.finish("crashed")

    def finish(self) -> dict[str, Any]:
        """Closes the metrics, writes the report and says how to go on."""
        last = self.checkpoints.last_saved
        saved = self.step in (last, self.loaded)
        finished = saved and self.step == self.steps
        self.metrics.finish("finished" if finished else "stopped" if saved else "crashed")
        newest = self.step if saved else self.loaded if last is None else last
        summary = self._report(finished, newest) if self.group.first else {"finished": finished}
        if not saved:
            raise TrainingFailed(
                f"the checkpoint of the last step, {self.step}, could not be written",
                "make room, then go on from the one before with --resume",
            )
        if not finished:
            print(f"stopped after step {self.step} of {self.steps} and saved; go on with")
            print(f"  {self.folder.resume_command}")
        return summary

    def _report(self, finished: bool, newest: int | None) -> dict[str, Any]:
        config, baselines = self.config, None
        if finished and not config.data.mixture:
            t = config.training
            baselines = ngram_baselines(
                config.data.dir or "",
                t.tokens or 0,
                seq_len=config.model.seq_len,
                batch_size=t.batch_size or 1,
                seed=t.seed,
                packing=config.data.packing,
            )
        return write_report(
            self.folder,
            config,
            self.machine,
            self.progress,
            self.manifest,
            params=sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            baselines=baselines,
            finished=finished,
            checkpoint=f"{config.checkpoint.dir}/{newest}",
        )


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def run(args: list[str], *, prog: str = "python -m gchat.train") -> dict[str, Any]:
    """Parses [CONFIG.yaml] --group.field value … [--resume] and trains."""
    processes, args = take_options(args)
    resume = "--resume" in args
    args = [a for a in args if a != "--resume"]

    def given() -> TrainConfig:
        if resume:
            mirror.fetch(args)
        return load(RunFolder.resume_args(args) if resume else args, prog=prog)

    with joined(processes) as group:
        # Process 0's configuration is everyone's: the run folder may be on its disk alone.
        config = given() if group.first else TrainConfig()
        plain = group.share(lambda: to_dict(config))
        config = config if group.first else parse(TrainConfig, [], preset=plain)
        machine = start(matmul_precision=config.model.matmul_precision)
        with contextlib.closing(Trainer(config, machine, resume=resume, group=group)) as trainer:
            return trainer.fit()


if __name__ == "__main__":
    sys.exit(run_cli("gchat", run, sys.argv[1:]))
