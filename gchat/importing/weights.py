"""Foreign tensors into our tree of parameters, one at a time, on disk instead of in memory.

The mapping (`tests/gchat/test_golden_hf.py` has it too, for whole models in memory):

    model.embed_tokens.weight [V, D]      embed.table [V, D], rows beyond V zero
    layers.i.….weight [out, in]           blocks.….kernel[i], transposed to [in, out]
    layers.i.….weight [d] of a norm       blocks.….scale[i]
    model.norm.weight                     final_norm.scale
    lm_head.weight [V, D]                 head.kernel [D, V], transposed; absent when tied
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gchat.importing.source import EMBED, FINAL_NORM, HEAD, ImportRefused, Source, in_layer
from gchat.model_config import GPTConfig
from gchat.model_shape import model_shape

BLOCK = {
    "attn_norm.scale": "input_layernorm",
    "attn.q.kernel": "self_attn.q_proj",
    "attn.k.kernel": "self_attn.k_proj",
    "attn.v.kernel": "self_attn.v_proj",
    "attn.out.kernel": "self_attn.o_proj",
    "attn.q_norm.scale": "self_attn.q_norm",
    "attn.k_norm.scale": "self_attn.k_norm",
    "mlp_norm.scale": "post_attention_layernorm",
    "mlp.gate.kernel": "mlp.gate_proj",
    "mlp.up.kernel": "mlp.up_proj",
    "mlp.down.kernel": "mlp.down_proj",
}
WHOLE = {"embed.table": EMBED, "final_norm.scale": FINAL_NORM, "head.kernel": HEAD}


class OnDisk(np.memmap):
    """An array in a file that nobody changes any more, so that nobody needs a copy of it.

    Orbax copies what it saves in the background, in case its owner goes on to change it; a model
    would be in memory as a whole.
    """

    def __deepcopy__(self, memo: Any) -> "OnDisk":
        return self


def parameters(
    source: Source, config: GPTConfig, scratch: Path, progress: Callable[[int], None]
) -> Any:
    """The tree of parameters, fp32, as arrays in files of `scratch`.

    In memory is one tensor at a time; writing the checkpoint takes more (Orbax's buffers).

    Args:
        source: checked against its layout (`Source.check_tensors`).
        config: derived from the same layout.
        scratch: folder for the files, as large as the parameters.
        progress: told the number of elements after each tensor.

    Raises:
        ImportRefused: a tensor cannot be read, or holds NaN or infinity.
    """

    def fill(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name = ".".join(str(key.key) for key in path)
        array = OnDisk(scratch / name, dtype=np.float32, mode="w+", shape=leaf.shape)
        for part, theirs in _parts(name, array):
            values = _checked(source, theirs)
            values = values.T if name.endswith("kernel") else values
            part[tuple(slice(n) for n in values.shape)] = values
            progress(values.size)
        array.flush()
        return array

    return jax.tree_util.tree_map_with_path(fill, model_shape(config).arrays)


def _parts(name: str, array: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Parts of one of our parameters with the names of the tensors that fill them."""
    if name in WHOLE:
        yield array, WHOLE[name]
        return
    theirs = BLOCK[name.removeprefix("blocks.")]
    for i, layer in enumerate(array):
        yield layer, in_layer(i, theirs)


def _checked(source: Source, name: str) -> np.ndarray:
    """A tensor's values, fp32 in the shape that its file states."""
    tensor = source.tensors[name]
    values = tensor.read()
    if values.shape != tensor.shape:
        problem = f"holds {list(values.shape)} values, not {list(tensor.shape)}"
    elif not np.isfinite(values).all():
        problem = "holds NaN or infinity"
    else:
        return values
    raise ImportRefused(
        f"{source.path}: tensor {source.name_in_file(name)} {problem}", "fetch the model again"
    )
