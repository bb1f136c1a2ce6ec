"""`gchat dpo`: a run learns which of two answers people prefer, tied to what it was.

The base run's log-probabilities of all pairs are computed once, before the first step, and kept in
RUN/reference.npz: the base run need not be in memory, and a resumed run compares with the same.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jax.sharding import Mesh

from gaia.data.batch import IGNORE, Batch
from gaia.errors import ConfigError, DataError
from gaia.parallel import rows_here
from gaia.storage.files import atomic_path
from gchat.posttrain import start
from gchat.posttrain.chat_curve import chat_curve
from gchat.posttrain.lengths import with_length
from gchat.posttrain.pairs import Pair, read_pairs, rendered, row_length, rows
from gchat.posttrain.preference_loss import objective, pair_loss
from gchat.posttrain.prompts import shuffled
from gchat.run.loop import Alive, Stage
from gchat.train_step import eval_rows, make_scorer, make_train_step

REFERENCE = "reference.npz"
"""File of a run: the base run's log-probabilities of its pairs."""
_ONE_IN, _MOST = 20, 256  # pairs that are held out


class PairBatches:
    """Batches of pairs without an end, each a function of its index; each epoch is a shuffle.

    Args:
        pairs: to train on.
        reference: the base run's log-probabilities of each.
        length: of a row.
        batch_size: rows of a step.
        seed: of the run.
        step: index of the next batch.
        mesh: of the run.
    """

    def __init__(
        self, pairs: Sequence[Pair], reference: Sequence[np.ndarray], length: int, *,
        batch_size: int, seed: int, step: int, mesh: Mesh,
    ) -> None:  # fmt: skip
        self._pairs, self._reference, self._length = pairs, reference, length
        self._size, self._seed, self.step = batch_size, seed, step
        self._here = rows_here(batch_size, mesh)

    def __next__(self) -> Batch:
        index, self.step = self.step, self.step + 1
        places = self.row_ids(index)[self._here]
        of = [self._reference[i] for i in places]
        return rows([self._pairs[i] for i in places], self._length, of)

    def row_ids(self, step: int) -> np.ndarray:
        """Pairs of a batch."""
        return shuffled(range(len(self._pairs)), self._size, self._seed, step)

    def metrics(self, step: int) -> dict[str, float]:
        """Nothing: the loss tells."""
        del step
        return {}

    def describe(self) -> str:
        """One sentence on the pairs."""
        return f"pairs: {len(self._pairs):,}, rows of {self._length} tokens"

    def close(self) -> None:
        """Nothing to end."""


class Preferences:
    """The pairs of a run, those it trains on and those it is measured on.

    Args:
        started: the run.
    """

    def __init__(self, started: start.Started) -> None:
        self._started, config = started, started.config
        assert started.format is not None
        pairs, _ = rendered(read_pairs(config.stage.data), started.format, config.model.seq_len)
        held = 0 if config.dpo.held_out is None else config.dpo.held_out
        order = np.random.default_rng(config.training.seed).permutation(len(pairs))
        self._pairs = [pairs[i] for i in (*sorted(order[held:]), *sorted(order[:held]))]
        self._training = len(pairs) - held
        self.length = row_length(pairs)
        self._score = make_scorer(started.graph, config, started.mesh)
        self._eval_rows = eval_rows(started.mesh, self.length)
        self._reference: list[np.ndarray] = []
        self._kept = False

    def batches(self, index: int) -> PairBatches:
        """Opens the training pairs, from a batch on; the first time with their reference."""
        if not self._reference:
            known = self._known()
            self._kept = bool(known)
            self._reference = known or self._computed()
        config = self._started.config
        return PairBatches(
            self._pairs[: self._training],
            self._reference[: self._training],
            self.length,
            batch_size=config.training.amounts.batch_size,
            seed=config.training.seed,
            step=index,
            mesh=self._started.mesh,
        )

    def _scored(self, params: Any, pairs: Sequence[Pair], alive: Alive) -> list[np.ndarray]:
        """Log-probabilities of the learned ids of each pair, fp32."""
        scored: list[np.ndarray] = []
        size = self._eval_rows
        for first in range(0, len(pairs), size):
            some = list(pairs[first : first + size])
            batch = rows([*some, *[some[-1]] * (size - len(some))], self.length)
            nats_BT = np.asarray(self._score(params, batch))
            learned_BT = batch.targets_BT != IGNORE
            scored += [-nats_BT[b, learned_BT[b]] for b in range(len(some))]
            alive(len(scored), len(pairs))
        return scored

    def _computed(self) -> list[np.ndarray]:
        began, said = time.monotonic(), [time.monotonic()]

        def alive(done: int, total: int) -> None:
            now = time.monotonic()
            if now - said[0] > 2:
                said[0] = now
                left = (now - began) / done * (total - done)
                print(f"reference: {done:,} of {total:,} pairs, {left:.0f} s left", flush=True)

        return self._scored(self._started.init().params, self._pairs, alive)

    def _fingerprint(self) -> str:
        """Names all that the reference depends on: the pairs, their order, and the base run."""
        stage, base = self._started.config.stage, self._started.config.training.init_from
        digest = hashlib.sha256(f"{base} {stage.base_step} {self._training}".encode())
        for pair in self._pairs:
            for array in (*pair.ids, *pair.learned):
                digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def _file(self) -> Path:
        return self._started.session.folder.path / REFERENCE

    def _known(self) -> list[np.ndarray]:
        """The reference that the run has kept; nothing where it has none of these pairs.

        Raises:
            DataError: it is of other pairs.
        """
        if not self._started.session.resume:
            return []
        try:
            with self._file.open("rb") as file, np.load(file) as kept:
                fingerprint, flat = str(kept["fingerprint"]), kept["logprobs"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return []  # the base run is read again
        if fingerprint != self._fingerprint():
            raise DataError(
                f"stage.data {', '.join(self._started.config.stage.data)} is not what the run "
                "began with",
                "put the old pairs back, or start a new run",
            )
        ends = np.cumsum([pair.targets for pair in self._pairs])
        return np.split(flat, ends[:-1])

    def keep(self) -> None:
        """Writes the reference into the run's folder, unless it is there."""
        session = self._started.session
        if not session.group.first or self._kept:
            return
        flat = np.concatenate(self._reference)
        with atomic_path(self._file) as partial, partial.open("wb") as file:
            np.savez(file, fingerprint=self._fingerprint(), logprobs=flat)
        self._kept = True

    def evaluate(self, params: Any, alive: Alive) -> dict[str, float]:
        """Loss, accuracy and margin of the pairs that are held out."""
        self.keep()
        pairs, reference = self._pairs[self._training :], self._reference[self._training :]
        if not pairs:
            return {}
        scored = rows(pairs, self.length, self._scored(params, pairs, alive)).more
        assert scored is not None
        compared = rows(pairs, self.length, reference)
        result = pair_loss(self._started.config.dpo, scored["reference"], compared)
        return {
            "eval/dpo_loss": float(np.mean(result.loss_b)),
            "eval/dpo_accuracy": float(np.mean(result.right_b())),
            "eval/dpo_margin": float(np.mean(result.margin_b)),
        }


def prepared(setting: start.Setting) -> start.Prepared:
    """Length of the run, and how many pairs are held out."""
    config = setting.config
    pairs, said = rendered(read_pairs(config.stage.data), setting.format, config.model.seq_len)
    for sentence in said:
        print(sentence)
    held = config.dpo.held_out
    if held is None:
        held = min(_MOST, len(pairs) // _ONE_IN)
    if held >= len(pairs):
        raise ConfigError(
            f"dpo.held_out is {held}, and there are {len(pairs)} pairs", "leave some to learn from"
        )
    stage = config.stage
    if config.training.steps is None and stage.epochs is None:
        stage = replace(stage, epochs=1.0)
    config = replace(config, dpo=replace(config.dpo, held_out=held), stage=stage)
    config, sentences = with_length(config, len(pairs) - held, VERB, setting.typed)
    for sentence in [*sentences, f"held out: {held} of {len(pairs)} pairs"]:
        print(sentence)
    return start.Prepared(None, True, config)


def stage(started: start.Started) -> Stage:
    """Builds the stage that the loop trains."""
    config, mesh = started.config, started.mesh
    if mesh.shape["sequence"] > 1:
        raise ConfigError(
            f"mesh.sequence is {mesh.shape['sequence']}, and dpo compares whole answers",
            "use fsdp or tensor",
        )
    preferences = Preferences(started)
    positions, progress = (
        config.training.amounts.batch_size * preferences.length,
        (started.session.progress),
    )
    progress.flops_per_step *= positions / progress.tokens_per_step
    progress.tokens_per_step = positions
    return Stage(
        mesh=mesh,
        init=started.init,
        blank=started.blank,
        update=make_train_step(started.graph, config, mesh, objective(config.dpo)),
        batches=preferences.batches,
        evaluate=preferences.evaluate,
        chat=chat_curve(started),
    )


VERB = start.Verb(
    "dpo",
    "gchat dpo",
    """Teach a run which of two answers is better (direct preference optimisation).

    gchat dpo --base runs/sft --data pairs.jsonl --beta 0.1 --epochs 1

--data takes .jsonl files of prompt, chosen and rejected, each a text or a list of messages. What is
not given is the base run's; learning rates are a fiftieth of its. --resume continues the run in
--run-dir. All fields of the trainer:""",
    stage=stage,
    data=prepared,
    defaults={
        "optim": {
            "schedule": "wsd", "decay_fraction": 1.0, "final_lr_fraction": 0.0,
            "weight_decay": 0.0, "embed_weight_decay": 0.0, "matrix_weight_decay": 0.0,
        },
    },
    lr_share=0.02,
    warmup_share=0.1,
)  # fmt: skip


def run(args: Sequence[str]) -> dict[str, Any]:
    """Runs `gchat dpo` with these arguments; returns the summary."""
    return start.run(VERB, args)
