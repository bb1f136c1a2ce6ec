"""A trained run, read back: its configuration, tokenizer and newest intact parameters."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gaia.checkpoint import Checkpointer, Restored
from gaia.errors import CheckpointError
from gaia.parallel import make_mesh
from gaia.runtime import start
from gchat.config import TrainConfig
from gchat.engine.engine import Engine
from gchat.evals import bpb
from gchat.evals.periodic import EVAL_ROWS, encode_file, make_engine
from gchat.run.checkpoints import check_step, choose, read_run
from gchat.tokenizer import Tokenizer
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_scorer


@dataclass(frozen=True)
class LoadedRun:
    """A trained run in memory."""

    config: TrainConfig
    tokenizer: Tokenizer
    graph: Any
    params: Any
    step: int

    def engine(self) -> Engine:
        """Decodes with these parameters."""
        return make_engine(self.graph, self.params, self.tokenizer, self.config.model.seq_len)

    def score_file(self, path: str) -> bpb.Score:
        """Bits per byte of a text file, read as one document."""
        seq_len = self.config.model.seq_len
        stride = max(1, round(seq_len * self.config.eval.stride_fraction))
        document = encode_file(path, self.tokenizer)
        mesh = make_mesh()
        rows = EVAL_ROWS * mesh.size
        batches = bpb.pack([document], seq_len=seq_len, stride=stride, batch_size=rows)
        scorer = partial(make_scorer(self.graph, self.config, mesh), self.params)
        return bpb.evaluate(scorer, batches, self.tokenizer.token_bytes())


def load_run(path: str, mesh: Mesh | None = None, *, step: str = "last") -> LoadedRun:
    """Reads a run folder, and changes nothing in it.

    Args:
        path: the folder, wherever it lies now.
        mesh: for the parameters to lie on; all devices when absent.
        step: of the checkpoint: `last` (the newest intact one), `best` (the lowest validation bits
            per byte) or a number.

    Raises:
        CheckpointError: no run there, or no such checkpoint that can be used.
        ConfigError: `step` is no step.
    """
    check_step(step)
    folder, config = Path(path), read_run(path)
    chosen = None if step == "last" else choose(path, config, step)
    start(matmul_precision=config.model.matmul_precision)
    state = init_state(config, mesh or make_mesh())
    checkpoints = Checkpointer(config.checkpoints, read_only=True)
    try:
        if chosen is None:
            restored = _newest(checkpoints, state, path)
        else:
            restored = _intact(checkpoints, chosen, state)
    finally:
        checkpoints.close()
    tokenizer = Tokenizer.load(str(folder / "tokenizer.json"))
    return LoadedRun(config, tokenizer, graphdef(config), restored.state.params, restored.step)


def _intact(checkpoints: Checkpointer, step: int, state: Any) -> Restored:
    """The checkpoint of a step that was asked for, and no other one in its place."""
    problem = checkpoints.damage(step)
    if problem is not None:
        raise CheckpointError(f"checkpoint {step} is unusable ({problem})", "choose another --step")
    return checkpoints.restore(step, state)


def _newest(checkpoints: Checkpointer, state: Any, path: str) -> Restored:
    """The newest intact checkpoint; the next one where its trainer prunes it meanwhile."""
    while True:
        step = checkpoints.latest(report=_say)
        if step is None:
            raise CheckpointError(f"{path!r} holds no usable checkpoint", "train it further first")
        try:
            return checkpoints.restore(step, state)
        except CheckpointError:
            if checkpoints.latest(report=lambda _: None) == step:
                raise  # it is all there, and not of this run


def _say(line: str) -> None:
    """Tells people, and leaves standard output to what was asked for."""
    print(line, file=sys.stderr, flush=True)
