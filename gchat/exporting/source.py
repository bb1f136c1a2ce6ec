"""A run to export: its layout, and its parameters one at a time under Hugging Face's names.

The tables of names are those of `gchat.importing`; a file that is written here is read there.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from gaia.adapters import merged
from gaia.checkpoint import Checkpointer
from gaia.errors import CheckpointError, DataError
from gchat import applied
from gchat.config import CONFIG, TrainConfig
from gchat.importing.source import Layout, in_layer
from gchat.importing.weights import BLOCK, WHOLE
from gchat.model_config import GPTConfig
from gchat.model_shape import model_shape
from gchat.run.checkpoints import check_step, choose, read_run
from gchat.run.folder import IMPORTED
from gchat.tokenizer import Tokenizer

FAMILY = "Llama and Qwen3"


class ExportRefused(DataError):
    """A run that the other program cannot run as it is; names the field and its value."""


@dataclass(frozen=True)
class Parameter:
    """One tensor of the exported model."""

    name: str
    """Hugging Face's."""
    shape: tuple[int, ...]
    """Layout of Hugging Face: matrices [out, in]."""
    ours: str
    """Dotted name in our tree."""
    layer: int | None
    """Index into our stacked array."""


class Run:
    """A trained or imported run, opened for reading; a context manager.

    Args:
        path: the run's folder.
        step: of the checkpoint: a number, `best` or `last`.

    Raises:
        CheckpointError: no run there, or one with ideas that this code lacks, or no such
            checkpoint that can be used.
        ExportRefused: the model is of no layout that others know, by its options or its code.
        ConfigError: `step` is no step.

    Attributes:
        path: the folder.
        config: of the run.
        layout: of the model, as other programs see it.
        tokenizer: of the run.
        step: of the checkpoint.
    """

    def __init__(self, path: str, step: str = "last") -> None:
        check_step(step)
        self.path = Path(path)
        applied.check(self.path / CONFIG)
        self.config: TrainConfig = read_run(path)
        self.layout = layout_of(self.config.model)
        self._check_known()
        self.tokenizer = Tokenizer.load(str(self.path / "tokenizer.json"))
        self._checkpoints = Checkpointer(self.config.checkpoints, read_only=True)
        try:
            self.step = self._chosen(path, step)
        except BaseException:
            self._checkpoints.close()
            raise

    def _check_known(self) -> None:
        """Refuses a model that is of no known layout by its code, whatever its options say.

        Raises:
            ExportRefused: this code has ideas that change the model, or arrays of other names or
                shapes than the layout's.
        """
        if ideas := [name for name, what in applied.applied().items() if what == applied.MODEL]:
            raise ExportRefused(
                f"this code has {', '.join(ideas)}, which {FAMILY} do not have",
                "export runs of main's code",
            )
        missing = self.layout.tensors()
        for ours, leaf in self._leaves().items():
            if ours not in WHOLE and ours.removeprefix("blocks.") not in BLOCK:
                raise ExportRefused(
                    f"parameter {ours} of this code has no place in {FAMILY}",
                    "export runs of main's code",
                )
            for theirs, layer in _named(ours, self.layout.depth):
                shape = leaf.shape if layer is None else leaf.shape[1:]
                _check_shape(ours, shape, missing.pop(theirs, None))
        if missing:
            raise ExportRefused(
                f"this code's model lacks {min(missing)}, which {FAMILY} have",
                "export runs of main's code",
            )

    def _chosen(self, path: str, step: str) -> int:
        if step == "last":
            newest = self._checkpoints.latest(report=lambda _: None)
            if newest is None:
                raise CheckpointError(f"{path!r} holds no usable checkpoint", "train it further")
            return newest
        chosen = choose(path, self.config, step)
        if (problem := self._checkpoints.damage(chosen)) is not None:
            raise CheckpointError(f"checkpoint {chosen} is unusable ({problem})", "choose another")
        return chosen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._checkpoints.close()

    def parameters(self) -> list[Parameter]:
        """Every tensor of the exported model, in the order in which `tensors` gives them."""
        shapes, listed = self.layout.tensors(), []
        for ours in self._leaves():
            for name, layer in _named(ours, self.layout.depth):
                listed.append(Parameter(name, shapes[name], ours, layer))
        return listed

    def tensors(self) -> Iterator[tuple[Parameter, np.ndarray]]:
        """Each parameter with its values, fp32; one array of our tree is in memory at a time.

        Raises:
            CheckpointError: an array cannot be read.
            ExportRefused: one holds NaN or infinity.
        """
        leaves = self._leaves()
        loaded: tuple[str, np.ndarray] | None = None
        for parameter in self.parameters():
            if loaded is None or loaded[0] != parameter.ours:
                loaded = None  # before the next one is read
                loaded = parameter.ours, self._read(parameter.ours, leaves[parameter.ours])
            values = loaded[1] if parameter.layer is None else loaded[1][parameter.layer]
            values = values.T if parameter.ours.endswith("kernel") else values
            values = values[tuple(slice(n) for n in parameter.shape)]  # rows of padding
            if not np.isfinite(values).all():
                raise ExportRefused(
                    f"parameter {parameter.ours} of {str(self.path)!r} at step {self.step} holds "
                    "NaN or infinity",
                    "export an earlier --step",
                )
            yield parameter, np.ascontiguousarray(values, np.float32)

    def _leaves(self) -> dict[str, Any]:
        """Our arrays by dotted name, without their values; adapters are no arrays of their own."""
        plain = model_shape(self.config.model.without_adapters()).arrays
        flat, _ = jax.tree_util.tree_flatten_with_path(plain)
        return {".".join(str(key.key) for key in path): leaf for path, leaf in flat}

    @property
    def _stored(self) -> Any:
        """The tree of the checkpoint, without its values."""
        return model_shape(self.config.model).arrays

    def _read(self, name: str, leaf: Any) -> np.ndarray:
        """Reads one of our arrays; what adapters add to it is added."""
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

        def described(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)

        *path, last = name.split(".")
        module = functools.reduce(lambda tree, key: tree[key], path, self._stored)
        part: Any = {last: described(leaf)}
        if last == "kernel" and "adapter" in module:
            part["adapter"] = {key: described(each) for key, each in module["adapter"].items()}
        for key in reversed(("params", *path)):
            part = {key: part}
        whole = {"params": self._stored}
        state = self._checkpoints.restore_part(self.step, part, within=whole).state["params"]
        state = merged(state, self.config.model.lora_scale)
        return np.asarray(functools.reduce(lambda tree, key: tree[key], [*path, last], state))

    def facts(self, name: str) -> dict[str, Any]:
        """A JSON file of the run's folder; empty where there is none."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def imported(self) -> dict[str, Any]:
        """Facts about the model that the run was imported from; empty where it was trained."""
        return self.facts(IMPORTED)


def _named(ours: str, depth: int) -> list[tuple[str, int | None]]:
    """Hugging Face's names of the tensors in one of our arrays, and where in it they lie."""
    if ours in WHOLE:
        return [(WHOLE[ours], None)]
    theirs = BLOCK[ours.removeprefix("blocks.")]
    return [(in_layer(i, theirs), i) for i in range(depth)]


def _check_shape(ours: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    """Raises ExportRefused where an array is of another shape than files have; rows of padding
    that the vocabulary has are left out there."""
    shape = shape[::-1] if ours.endswith("kernel") else shape
    kept = wanted[:1] if wanted and ours in ("embed.table", "head.kernel") else shape[:1]
    if wanted is None or (*kept, *shape[1:]) != wanted or shape[0] < wanted[0]:
        raise ExportRefused(
            f"parameter {ours} is {list(shape)} in this code and {list(wanted or ())} in {FAMILY}",
            "export runs of main's code",
        )


def layout_of(model: GPTConfig) -> Layout:
    """The sizes of a model as files of Llama's and Qwen3's family state them.

    Raises:
        ExportRefused: something that these families do not have.
    """
    sizes = model.sizes
    if model.positions != "rope":
        raise ExportRefused(
            f"model.positions is {model.positions!r}: {FAMILY} have rotary positions",
            "train with --model.positions rope",
        )
    if "S" in model.window_pattern and sizes.window < model.seq_len:
        raise ExportRefused(
            f"model.window_pattern is {model.window_pattern!r}: {FAMILY} have no sliding windows",
            "train with --model.window-pattern L",
        )
    return Layout(
        depth=model.depth,
        dim=sizes.dim,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=model.head_dim,
        hidden=sizes.hidden,
        rows=sizes.vocab,
        context=model.seq_len,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        qk_norm=model.qk_norm,
        tied=model.tied,
        rope_factors=model.rope_factors,
    )
