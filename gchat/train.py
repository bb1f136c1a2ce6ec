"""Pretraining: THE loop, in the order things happen. The update itself is in `train_step.py`.

    python -m gchat.train [CONFIG.yaml] [--group.field value …] [--resume]

A step number counts finished updates: step k is logged, validated and saved after k updates.
Shapes: B rows, T time.
"""

import contextlib
import math
import sys
import time
from collections import deque
from dataclasses import replace
from typing import Any

import jax

import gaia_metrics
from gaia import parallel
from gaia.checkpoint import Checkpointer
from gaia.errors import GaiaError, run_cli
from gaia.guards import StopRequest
from gaia.runtime import Machine, peak_flops, start
from gchat import mirror
from gchat.config import FREE_ON_RESUME, TrainConfig, derive, load
from gchat.evals.ngram import ngram_baselines
from gchat.evals.periodic import EVAL_ROWS, Evaluator
from gchat.mirror import Mirror
from gchat.progress import Progress
from gchat.report import write_report
from gchat.run_folder import RunFolder
from gchat.train_step import StepMetrics, init_state, make_scorer, make_train_step
from gchat.training_data import TrainingData


class TrainingFailed(GaiaError):
    """The run cannot go on: the loss is not finite, or its last checkpoint cannot be written."""

    exit_status = 1


class Trainer:
    """One run: set up in `__init__`, THE loop in `fit`, and what it does now and then.

    Args:
        config: what to train; derived here.
        machine: what to train on.
        resume: go on from the newest sound checkpoint in the run's folder.

    Raises:
        GaiaError: the data, the configuration or the checkpoint cannot be used. Nothing has been
            written then.
    """

    def __init__(self, config: TrainConfig, machine: Machine, *, resume: bool) -> None:
        # ── Data and sizes ────────────────────────────────────────────────────────────────────
        self.data = TrainingData(config.data)
        self.manifest, self.tokenizer = self.data.manifest, self.data.tokenizer
        config, derived = derive(
            replace(config, data=self.data.config),
            vocab_size=self.tokenizer.vocab_size,
            padded_vocab_size=self.tokenizer.padded_vocab_size,
        )
        self.config, self.machine = config, machine
        self.steps = config.training.steps or 0
        self.folder = RunFolder(config, resume=resume)
        for sentence in derived + self.data.warnings():
            print(sentence)

        # ── Model, optimizer, evaluation ──────────────────────────────────────────────────────
        self.mesh = parallel.make_mesh()
        rows = config.training.batch_size or 1
        parallel.check_rows(rows // config.training.grad_accum, self.mesh)
        graph, self.state = init_state(config, self.mesh)
        self.train_step = make_train_step(graph, config, self.mesh)
        scorer = make_scorer(graph, config, self.mesh)
        eval_rows = EVAL_ROWS * self.mesh.size
        self.evaluator = Evaluator(config, self.tokenizer, graph, scorer, rows=eval_rows)
        self.progress = Progress(config, *peak_flops(machine, config.model.compute_dtype))

        # ── Where to begin ────────────────────────────────────────────────────────────────────
        self.step, run_id = self._restore() if resume else (0, None)
        self.began_at = self.step
        self.batches = self.data.loader(config, machine, self.step)

        # ── From here on the run writes ───────────────────────────────────────────────────────
        self.folder.write_config(config, self.tokenizer)
        self.checkpoints = self._checkpointer()
        self.checkpoints.discard_after(self.step)
        self.metrics = gaia_metrics.init(
            "gchat",
            config.run.name,
            self.folder.plain,
            run_id,
            dir=self.folder.path,
            resume_step=self.step,
        )
        self.in_flight: deque[tuple[int, StepMetrics, float]] = deque()
        self.mirror = Mirror(config.run.mirror, self.folder.path, process=machine.process_index)

    def _checkpointer(self) -> Checkpointer:
        c = self.config.checkpoint
        return Checkpointer(c.dir or "", keep=c.keep, keep_every=c.keep_every)

    def _restore(self) -> tuple[int, str | None]:
        """Step and metrics run id of the newest sound checkpoint, its arrays put in place."""
        checkpoints = self._checkpointer()
        found = checkpoints.latest(report=print)
        if found is None:
            print("no checkpoint to resume from: starting at step 0")
            return 0, None
        meta = checkpoints.read_meta(found)
        self.folder.check_resume(meta, self.config, self.tokenizer.sha256, FREE_ON_RESUME)
        restored = checkpoints.restore(found, self.state)
        checkpoints.close()
        self.state = restored.state
        self.progress.restore(meta["progress"])
        print(f"resumed from step {found} of {self.steps}")
        return found, meta["metrics_run_id"]

    def fit(self) -> dict[str, Any]:
        """THE loop. Returns the summary (`finished` is false where a signal ended it early)."""
        every, sample_every = self.config.eval.every_steps, self.config.eval.sample_every
        with StopRequest() as stop:
            if self.step == 0:
                self.evaluate()
            self.progress.start(self.step)
            while self.step < self.steps and not stop:
                asked = time.perf_counter()
                batch = next(self.batches)
                data_wait = time.perf_counter() - asked
                inputs_BT = parallel.shard_rows(batch["inputs_BT"], self.mesh)
                targets_BT = parallel.shard_rows(batch["targets_BT"], self.mesh)
                self.state, metrics = self.train_step(self.state, inputs_BT, targets_BT)
                self.step += 1
                self.in_flight.append((self.step, metrics, data_wait))
                self.read_metrics(keep=self.config.run.in_flight)
                if self.step == self.steps:
                    self.evaluate(samples=True)
                elif every and self.step % every == 0:
                    self.evaluate(samples=bool(sample_every) and self.step % sample_every == 0)
                if self.step < self.steps and self.progress.save_due(self.step):
                    self.save()
            if self.step != self.began_at or self.step == 0:
                self.save()
                self._say_if_unsaved(self.checkpoints.close())
        return self.finish()

    def read_metrics(self, keep: int) -> None:
        """Logs finished steps, oldest first, until at most `keep` are still in flight."""
        while len(self.in_flight) > keep:
            step, metrics, data_wait = self.in_flight.popleft()
            loss = float(metrics.loss)  # waits for this step; later ones keep the device busy
            values = self.progress.step(step, loss, data_wait) | {
                "train/loss": loss,
                "train/grad_norm": float(metrics.grad_norm),
                "train/lr_share": float(metrics.lr_share),
                **self.batches.metrics(step),
            }
            self.metrics.log(step, values)
            if not math.isfinite(loss):
                self.metrics.finish("crashed")
                raise TrainingFailed(
                    f"train/loss is {loss} at step {step}",
                    "lower the learning rate; the last checkpoint is sound, see --resume",
                )

    def evaluate(self, samples: bool = False) -> None:
        """Validates, and samples on demand, at the current step."""
        self.read_metrics(keep=0)
        with self.progress.paused("evaluating"):
            values = self.evaluator.validate(self.state.params)
            self.metrics.log(self.step, values)
            self.progress.evaluated(self.step, values)
            if samples:
                text = self.evaluator.sample(self.state.params)
                self.folder.append_samples(self.step, text)
                self.metrics.text(self.step, "samples", text)

    def save(self) -> None:
        """Saves, but never ahead of the metrics: those up to this step are on disk first."""
        self.read_metrics(keep=0)
        with self.progress.paused("saving"):
            if not self.metrics.wait_durable(self.step):
                self._say_if_unsaved(f"step {self.step}: its metrics could not be written")
                return
            self.mirror.copy()
            meta = self.folder.meta(self.metrics.id, self.tokenizer.sha256, self.progress.state())
            self._say_if_unsaved(self.checkpoints.save(self.step, self.state, meta))

    def _say_if_unsaved(self, problem: str | None) -> None:
        if problem:
            print(f"no checkpoint of {problem}; earlier ones stay good", flush=True)

    def close(self) -> None:
        """Ends the background threads of data and mirror, however training ended."""
        self.batches.close()
        self.mirror.close()

    def finish(self) -> dict[str, Any]:
        """Closes the metrics, writes the report and says how to go on."""
        config, finished = self.config, self.step == self.steps
        self.metrics.finish("finished" if finished else "stopped")
        baselines = None
        if finished and not config.data.mixture:
            baselines = ngram_baselines(
                config.data.dir or "",
                config.training.tokens or 0,
                seq_len=config.model.seq_len,
                batch_size=config.training.batch_size or 1,
                seed=config.training.seed,
            )
        summary = write_report(
            self.folder,
            config,
            self.machine,
            self.progress,
            self.manifest,
            params=sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            baselines=baselines,
            finished=finished,
            checkpoint=f"{config.checkpoint.dir}/{self.step}",
        )
        if self.checkpoints.last_saved != self.step != self.began_at:
            raise TrainingFailed(
                f"the checkpoint of the last step, {self.step}, could not be written",
                "make room, then go on from the one before with --resume",
            )
        if not finished:
            print(f"stopped after step {self.step} of {self.steps} and saved; go on with")
            print(f"  {self.folder.resume_command}")
        return summary


def run(args: list[str], *, prog: str = "python -m gchat.train") -> dict[str, Any]:
    """Parses [CONFIG.yaml] --group.field value … [--resume] and trains."""
    resume = "--resume" in args
    args = [a for a in args if a != "--resume"]
    if resume:
        mirror.fetch(args)
    config = load(RunFolder.resume_args(args) if resume else args, prog=prog)
    machine = start(matmul_precision=config.model.matmul_precision)
    with contextlib.closing(Trainer(config, machine, resume=resume)) as trainer:
        return trainer.fit()


if __name__ == "__main__":
    sys.exit(run_cli("gchat", run, sys.argv[1:]))
