"""A trained run, read back: its configuration, tokenizer and newest intact parameters."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gaia.checkpoint import Checkpointer, Restored
from gaia.errors import CheckpointError
from gaia.parallel import make_mesh
from gaia.runtime import start
from gchat.config import CONFIG, TrainConfig
from gchat.engine.engine import Engine
from gchat.evals import bpb
from gchat.evals.periodic import EVAL_ROWS, encode_file, make_engine
from gchat.run.folder import read_config
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

    def engine(self, **options: Any) -> Engine:
        """Decodes with these parameters; `options` are `Engine`'s: slots, piece, weights, kv."""
        seq_len = self.config.model.seq_len
        return make_engine(self.graph, self.params, self.tokenizer, seq_len, **options)

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


def load_run(path: str, mesh: Mesh | None = None) -> LoadedRun:
    """Reads a run folder, and changes nothing in it.

    Args:
        path: the folder, wherever it lies now.
        mesh: for the parameters to lie on; all devices when absent.

    Raises:
        CheckpointError: no run there, or no checkpoint that can be used.
    """
    folder = Path(path)
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{path!r} holds no run (config.yaml is missing)", "check --run")
    config = read_config(folder)
    start(matmul_precision=config.model.matmul_precision)
    state = init_state(config, mesh or make_mesh())
    checkpoints = Checkpointer(config.checkpoints, read_only=True)
    try:
        restored = _newest(checkpoints, state, path)
    finally:
        checkpoints.close()
    tokenizer = Tokenizer.load(str(folder / "tokenizer.json"))
    return LoadedRun(config, tokenizer, graphdef(config), restored.state.params, restored.step)


def _newest(checkpoints: Checkpointer, state: Any, path: str) -> Restored:
    """The newest intact checkpoint; the next one where its trainer prunes it meanwhile."""
    while True:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{path!r} holds no usable checkpoint", "train it further first")
        try:
            return checkpoints.restore(step, state)
        except CheckpointError:
            if checkpoints.latest(report=lambda _: None) == step:
                raise  # it is all there, and not of this run
