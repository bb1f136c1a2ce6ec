"""A trained run, read back: its configuration, tokenizer and newest intact parameters."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gaia.adapters import merged
from gaia.checkpoint import Checkpointer, Restored
from gaia.errors import CheckpointError
from gaia.parallel import make_mesh
from gaia.runtime import start
from gchat import applied
from gchat.config import CONFIG, TrainConfig
from gchat.engine.engine import Engine
from gchat.evals import bpb
from gchat.evals.periodic import encode_file, make_engine
from gchat.model_config import GPTConfig
from gchat.run.checkpoints import check_step, choose, read_run
from gchat.tokenizer import Tokenizer
from gchat.train_state import abstract_params, graphdef
from gchat.train_step import eval_rows, make_scorer


@dataclass(frozen=True)
class LoadedRun:
    """A trained run in memory."""

    config: TrainConfig
    tokenizer: Tokenizer
    graph: Any
    params: Any
    step: int
    digest: str
    """Name of the checkpoint by its content."""

    def engine(self, **options: Any) -> Engine:
        """Decodes with these parameters; `options` are `Engine`'s: slots, weights, speculate, …"""
        seq_len = self.config.model.seq_len
        return make_engine(self.graph, self.params, self.tokenizer, seq_len, **options)

    def score_file(self, path: str) -> bpb.Score:
        """Bits per byte of a text file, read as one document."""
        document = encode_file(path, self.tokenizer)
        mesh = make_mesh()
        # A model may be made for far longer rows than the text has tokens, and for so long ones
        # that eight of them at once are too many.
        whole = 1 << (len(document) - 1).bit_length()  # few lengths are compiled
        seq_len = min(self.config.model.seq_len, max(32, whole))
        stride = max(1, round(seq_len * self.config.eval.stride_fraction))
        windows = len(list(bpb.windows(document, seq_len, stride)))
        rows = min(eval_rows(mesh, seq_len), -(-windows // mesh.size) * mesh.size)
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
    restored = load_params(path, config, mesh or make_mesh(), step=chosen)
    tokenizer = Tokenizer.load(str(folder / "tokenizer.json"))
    config = replace(config, model=config.model.without_adapters())
    return LoadedRun(
        config, tokenizer, graphdef(config), restored.state, restored.step, restored.digest
    )


def load_params(
    path: str,
    config: TrainConfig,
    mesh: Mesh,
    *,
    model: GPTConfig | None = None,
    step: int | None = None,
) -> Restored:
    """Parameters of a run, adapters merged into them; its optimizer's state stays on disk.

    Args:
        path: folder of the run.
        config: of the run.
        mesh: for the parameters to lie on.
        model: derived, whose parameters these are to be; that of `config` when left out.
        step: of the checkpoint; the newest intact one when left out.

    Returns:
        The parameters as `state`, with their step and the checkpoint's facts.

    Raises:
        CheckpointError: no checkpoint that can be used, or it holds other parameters, or the run
            was trained with ideas that this code lacks.
    """
    applied.check(Path(path) / CONFIG)
    own = config.model
    stored = replace(
        model or own,
        lora_rank=own.lora_rank,
        lora_alpha=own.lora_alpha,
        lora_targets=own.lora_targets,
    )
    wanted = {"params": abstract_params(stored, mesh)}
    checkpoints = Checkpointer(config.checkpoints, read_only=True)
    try:
        if step is None:
            restored = _newest(checkpoints, wanted, path)
        else:
            restored = _intact(checkpoints, step, wanted)
    finally:
        checkpoints.close()
    return restored._replace(state=merged(restored.state["params"], own.lora_scale))


def _intact(checkpoints: Checkpointer, step: int, wanted: dict[str, Any]) -> Restored:
    """The checkpoint of a step that was asked for, and no other one in its place."""
    problem = checkpoints.damage(step)
    if problem is not None:
        raise CheckpointError(f"checkpoint {step} is unusable ({problem})", "choose another --step")
    return checkpoints.restore_part(step, wanted)


def _newest(checkpoints: Checkpointer, wanted: dict[str, Any], path: str) -> Restored:
    """The newest intact checkpoint; the next one where its trainer prunes it meanwhile."""
    while True:
        step = checkpoints.latest(report=_say)
        if step is None:
            raise CheckpointError(f"{path!r} holds no usable checkpoint", "train it further first")
        try:
            return checkpoints.restore_part(step, wanted)
        except CheckpointError:
            if checkpoints.latest(report=lambda _: None) == step:
                raise  # it is all there, and not of this run


def _say(line: str) -> None:
    """Tells people, and leaves standard output to what was asked for."""
    print(line, file=sys.stderr, flush=True)
