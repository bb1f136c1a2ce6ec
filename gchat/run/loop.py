"""The loop that every stage shares: steps, stop, save, evaluate, guards, rollback, metrics.

A stage (pretraining in `gchat.train`, later ones beside it) says what to train in a `Stage`; the
`Session` holds the run's folder, checkpoints and metrics. Nothing here knows data or objectives.

A step number counts finished updates: step k is logged, validated and saved after k updates.
All processes of a run execute this alike; what is said or written is process 0's. Where one alone
decides (a signal, a clock), they agree on the step first.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np
from jax.sharding import Mesh

from gaia import parallel
from gaia.errors import GaiaError
from gaia.guards import BadStep, LossGuard, StopRequest, Watchdog
from gaia.interrupt import raise_on_interrupt
from gaia.processes.agreement import Agreement
from gaia.profile import StepTrace
from gchat.run.saving import SaveSchedule
from gchat.run.session import Outcome, Session
from gchat.scaling.exhaustion import exhaustion_explained
from gchat.train_state import TrainState
from gchat.train_step import StepMetrics, Update


class TrainingFailed(GaiaError):
    """The run cannot go on: a bad step, or its last checkpoint cannot be written."""

    exit_status = 1


class Batches(Protocol):
    """Endless batches of one process, each a function of its index."""

    step: int
    """Index of the batch that `next` returns."""

    def __next__(self) -> Any:
        """A `Batch`, or what the stage's update takes in its place."""
        ...

    def row_ids(self, step: int) -> np.ndarray:
        """Rows of the batch at an index, for people."""
        ...

    def metrics(self, step: int) -> dict[str, float]:
        """Figures for the log after `step` steps."""
        ...

    def describe(self) -> str:
        """One sentence on what the rows are."""
        ...

    def close(self) -> None:
        """Ends the background threads."""
        ...


Alive = Callable[[int, int], None]
"""Called with (batches done, total), so that a long evaluation does not look like a hang."""


@dataclass(frozen=True)
class Stage:
    """Everything that tells one stage from another."""

    mesh: Mesh
    init: Callable[[], TrainState]
    """Makes the state before the first update."""
    update: Update
    """See `gchat.train_step.make_train_step`."""
    batches: Callable[[int], Batches]
    """Opens this process's rows of each batch, from an index on."""
    evaluate: Callable[[Any, Alive], dict[str, float]]
    """(params, alive) -> values for the log, by name."""
    sample: Callable[[Any], str] | None = None
    """(params) -> text to keep beside the metrics."""
    blank: Callable[[], TrainState] | None = None
    """Describes that state for reading a checkpoint; `init` makes one where this is left out."""
    core: Callable[[Any, Alive], dict[str, float]] | None = None
    """The same as `evaluate` for CORE, every `eval.core_every_steps` and after the last step."""
    chat: Callable[[Any, Alive], dict[str, float]] | None = None
    """The same for ChatCORE, every `eval.chat_every_steps`, and before the first step too."""
    stop: Callable[[], str] | None = None
    """Says why training should end early, in one sentence; empty to go on. Asked after each
    step, of every process alike."""
    update_at: Callable[[int], Update] | None = None
    """(finished steps) -> the update of the next one, where it is not `update` all along."""


class InFlight(NamedTuple):
    """A step that was dispatched and whose metrics nobody has read yet."""

    step: int
    batch: int
    metrics: StepMetrics
    data_wait: float


class Loop:
    """Trains a stage within a session: set up in `__init__`, the loop itself in `train`.

    Args:
        stage: what to train.
        session: of the run; a resumed one gives the step to begin at.

    Raises:
        GaiaError: the checkpoint or the data cannot be used. Nothing has been written then.
    """

    def __init__(self, stage: Stage, session: Session) -> None:
        self.stage, self.session = stage, session
        self.config, self.group, self.progress = session.config, session.group, session.progress
        self.steps = self.config.training.amounts.steps
        self.guard = LossGuard(self.config.guards)
        self.watchdog = Watchdog(self.config.guards.hang_minutes, at_end=self._hung)
        self.trace = StepTrace(self.config.run.profile, session.folder.path / "profile")
        self.saves = SaveSchedule(self.config.checkpoint)
        self.in_flight: deque[InFlight] = deque()

        try:
            self._begin()
        except BaseException:
            session.close()
            raise

    def _begin(self) -> None:
        stage, session = self.stage, self.session
        raise_on_interrupt()
        # ── Where to begin ────────────────────────────────────────────────────────────────────
        if session.resume:
            session.lock()
            self.state = (stage.blank or stage.init)()
            self.step = self._restore()
        else:
            self.state, self.step = stage.init(), 0
        self.saving = session.loaded
        self.stopped = False
        self.agreement = Agreement(self.group, self.step)
        self.batches = stage.batches(self.guard.position(self.step))
        print(self.batches.describe())

        # ── From here on the run writes ───────────────────────────────────────────────────────
        session.begin(self.step)

    def _restore(self) -> int:
        self.guard.skipped_batches |= set(self.group.broadcast(self.session.folder.skipped_batches))
        restored = self.session.restore(self.state)
        if restored is None:
            self.state = self.stage.init()
            return 0
        self.state = restored.state
        self.guard.restore(restored.meta.get("guard", {}))
        return restored.step

    def fit(self) -> Outcome:
        """Trains to the end or to a stop, and closes the run's metrics."""
        try:
            stop = StopRequest(lambda: self.agreement.ask("stop"))
            explained = exhaustion_explained(self.config, self.session.machine)
            with stop, self.watchdog, explained:
                self.train_and_save()
        except BaseException:
            self.session.metrics.finish("crashed")
            raise
        self.group.close()
        return self.session.finish(self.step)

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
            self._say_if_unsaved(self.session.checkpoints.close())

    def train(self) -> None:
        """Runs steps until the last one, a stop, or a bad one (BadStep)."""
        every, sample_every = self.config.eval.every_steps, self.config.eval.sample_every
        if self.step == 0:
            self.evaluate()
            if self.stage.chat is not None:
                self.evaluate_tasks("ChatCORE", self.stage.chat)
        self.progress.start()
        self.saves.saved(self.step)
        while self.step < self.steps and not self.stopped:
            if self.group.first and self.saves.overdue():
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
            for name, score, steps in self._scores():
                if self.step == self.steps or self.step % steps == 0:
                    self.evaluate_tasks(name, score)
            if self.stage.stop and self.step < self.steps and (why := self.stage.stop()):
                self.progress.say(f"stopping after step {self.step}: {why}")
                self.stopped = True
            elif self.step < self.steps and self.saves.due(self.step):
                self.save()

    def dispatch(self) -> None:
        """Hands the next batch to the devices and does not wait for them."""
        asked = time.perf_counter()
        while self.batches.step in self.guard.skipped_batches:
            next(self.batches)
        index, rows = self.batches.step, next(self.batches)
        data_wait = time.perf_counter() - asked
        batch = jax.tree.map(lambda a: parallel.shard_rows(a, self.stage.mesh), rows)
        self.trace.before(self.step + 1, self.state)
        skips = self.config.guards.policy == "skip"
        limit = {"limit": self.guard.limit(self.step + 1)} if skips else {}
        at, update = self.stage.update_at, self.stage.update
        self.state, metrics = (at(self.step) if at else update)(self.state, batch, **limit)
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
                **{name: float(value) for name, value in done.metrics.more.items()},
                **self.batches.metrics(done.step),
            }
            reason = self.guard.judge(done.step, loss, grad_norm)
            if reason and self.config.guards.policy == "skip":
                values["train/skipped"] = 1.0
            self.session.metrics.log(done.step, values)
            if reason:
                self.bad_step(BadStep(done.step, done.batch, reason))

    def bad_step(self, bad: BadStep) -> None:
        """Does what the policy says: nothing more (skip), BadStep (rollback) or TrainingFailed."""
        policy, allowed = self.config.guards.policy, False
        if policy == "skip":
            allowed = self.guard.may_skip()
        elif policy == "rollback":
            allowed = self.guard.may_roll_back(bad.batch)
        action = policy if allowed else "stop"
        rows = self.batches.row_ids(bad.batch).tolist()
        said = self.session.folder.note_bad_step(bad, rows, action)
        if action == "stop":
            with self.watchdog.slow("writing the last checkpoint"):  # it may still be under way
                self._say_if_unsaved(self.session.checkpoints.wait())
            spent = f" after all that guards.policy {policy} allows" if policy != "stop" else ""
            raise TrainingFailed(
                f"{said}{spent}",
                "lower the learning rate, or --resume with --guards.policy skip or rollback; the "
                "last checkpoint is intact",
            )
        print(f"{said}: {action}", flush=True)
        if action == "rollback":
            raise bad

    def roll_back(self, bad: BadStep) -> None:
        """Takes up the newest checkpoint, to go on from it without the batch of the bad step."""
        with self.watchdog.slow("rolling back"):
            self.in_flight.clear()
            self._say_if_unsaved(self.session.checkpoints.wait())
            self.state = jax.tree.map(_shape, self.state)  # room for the one that replaces it
            restored = self.session.roll_back(self.state)
            if restored is None:
                self.step, self.state = 0, self.stage.init()
                self.guard.restore({})
            else:
                self.step, self.state = restored.step, restored.state
                self.guard.restore(restored.meta.get("guard", {}))
            self.saving = self.session.loaded
            self.batches.close()
            self.batches = self.stage.batches(self.guard.position(self.step))
        print(f"rolled back to step {self.step}; batch {bad.batch} is left out", flush=True)

    def evaluate(self, samples: bool = False) -> None:
        """Evaluates, and samples on demand, at the current step."""
        self.read_metrics(keep=0)

        def alive(done: int, total: int) -> None:
            self.watchdog.alive(f"evaluating, batch {done} of {total}")

        with self.progress.paused("evaluating"), self.watchdog.slow("evaluating"):
            if values := self.stage.evaluate(self.state.params, alive):
                self.session.metrics.log(self.step, values)
                self.progress.evaluated(self.step, values)
            if samples and self.stage.sample is not None:
                self.watchdog.alive("sampling", patience=4)
                text = self.stage.sample(self.state.params)
                self.session.folder.append_samples(self.step, text)
                self.session.metrics.text(self.step, "samples", text)

    def _scores(self) -> Iterator[tuple[str, Callable[[Any, Alive], dict[str, float]], int]]:
        """Evaluations on tasks that the stage has: name, function, steps between two."""
        chosen = self.config.eval
        if self.stage.core is not None:
            yield "CORE", self.stage.core, chosen.core_every_steps
        if self.stage.chat is not None:
            yield "ChatCORE", self.stage.chat, chosen.chat_every_steps

    def evaluate_tasks(self, name: str, score: Callable[[Any, Alive], dict[str, float]]) -> None:
        """Evaluates on the tasks of CORE or ChatCORE at the current step."""
        self.read_metrics(keep=0)

        def alive(done: int, total: int) -> None:
            self.watchdog.alive(f"evaluating {name}, item {done} of {total}")

        with self.progress.paused(f"evaluating {name}"), self.watchdog.slow(f"evaluating {name}"):
            values = score(self.state.params, alive)
            self.session.metrics.log(self.step, values)
            self.progress.evaluated(self.step, values)

    def save(self) -> None:
        """Saves the current step, unless it is saved already."""
        self.read_metrics(keep=0)
        if self.step == self.saving:
            return
        self.saving = self.step
        with self.progress.paused("saving"), self.watchdog.slow("saving"):
            self.saves.saved(self.step)
            self._say_if_unsaved(self.session.save(self.step, self.state, self.guard.state()))

    def _say_if_unsaved(self, problem: str | None) -> None:
        if problem:
            print(f"no checkpoint of {problem}; earlier checkpoints are intact", flush=True)

    def _hung(self) -> None:
        """Ends the run from the watchdog's thread, just before this process ends."""
        self.group.abort(TrainingFailed(self.watchdog.problem() or "it hangs"))
        self.session.metrics.finish("crashed")

    def close(self) -> None:
        """Ends the threads of data and mirror and lets the run go, however training ended."""
        try:
            self.batches.close()
            self.session.mirror.close()
        finally:
            self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
