"""A model to import, whatever file it comes from: sizes, tensors by name, vocabulary.

Tensors go by Hugging Face's names and lie as they do there: matrices [out, in], and the halves of a
head rotated as pairs (i, i + H/2). A reader of another format renames and reorders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import DataError
from gchat.model_config import GPTConfig


class ImportRefused(DataError):
    """A model that this GPT cannot be, or a damaged file; names the field and its value."""


@dataclass(frozen=True)
class Layout:
    """Sizes and options of a model of Llama's or Qwen3's shape."""

    depth: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    rows: int
    """Rows of the embedding: ids that the model knows, also those that no text becomes."""
    context: int
    """Positions that it was made for."""
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    tied: bool
    rope_factors: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies."""

    def config(self, *, seq_len: int | None, compute_dtype: Any, padded_rows: int) -> GPTConfig:
        """The same as options of a GPT, derived."""
        return GPTConfig(
            depth=self.depth,
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            seq_len=self.context if seq_len is None else seq_len,
            rope_theta=self.rope_theta,
            rope_factors=self.rope_factors,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            tied=self.tied,
            compute_dtype=compute_dtype,
        ).derive(self.rows, padded_rows)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that such a model has, by Hugging Face's names."""
        D, F, H = self.dim, self.hidden, self.head_dim
        queries, keys = self.heads * H, self.kv_heads * H
        layer = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (queries, D),
            "self_attn.k_proj": (keys, D),
            "self_attn.v_proj": (keys, D),
            "self_attn.o_proj": (D, queries),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        if self.qk_norm:
            layer |= {"self_attn.q_norm": (H,), "self_attn.k_norm": (H,)}
        shapes: dict[str, tuple[int, ...]] = {EMBED: (self.rows, D), FINAL_NORM: (D,)}
        if not self.tied:
            shapes[HEAD] = (self.rows, D)
        for i in range(self.depth):
            shapes |= {in_layer(i, name): shape for name, shape in layer.items()}
        return shapes


EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def in_layer(i: int, name: str) -> str:
    """Hugging Face's full name of a tensor of layer i."""
    return f"model.layers.{i}.{name}.weight"


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is needed."""

    shape: tuple[int, ...]
    kind: str
    """Number format in the file, such as BF16 or Q4_K."""
    read: Callable[[], np.ndarray]
    """Reads it as fp32."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of the `tokenizers` library, and the ids that mean something to us."""

    definition: str
    """Text of a tokenizer.json."""
    bos: str
    """Token that begins every document."""
    stops: tuple[str, ...] = ()
    """Tokens that end an answer."""
    chat_template: str | None = None


@dataclass(frozen=True)
class Source:
    """Everything that an import reads."""

    path: Path
    kind: str
    """Format: hf or gguf."""
    layout: Layout
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts to keep: name, licence."""
    name_in_file: Callable[[str], str] = str
    """The file's own name of a tensor, for messages."""

    def check_tensors(self) -> None:
        """Raises ImportRefused where tensors are missing, too many, or of another shape."""
        wanted = self.layout.tensors()
        own = self.name_in_file
        if missing := sorted(map(own, wanted.keys() - self.tensors.keys())):
            raise ImportRefused(
                f"{self.path}: {_some(missing)} missing", "fetch the model again, all of its files"
            )
        if extra := sorted(map(own, self.tensors.keys() - wanted.keys())):
            biases = any(name.endswith("bias") for name in extra)
            why = "this model has no biases" if biases else "this model has no place for it"
            raise ImportRefused(f"{self.path}: {_some(extra)} not expected ({why})", _SUPPORTED)
        for name, shape in wanted.items():
            if self.tensors[name].shape != shape:
                raise ImportRefused(
                    f"{self.path}: tensor {own(name)} is {list(self.tensors[name].shape)}, its "
                    f"configuration says {list(shape)}",
                    "fetch the model again, all of its files from one revision",
                )


_SUPPORTED = "import a model of Llama's or Qwen3's layout"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"tensor {shown} is" if len(names) == 1 else f"{len(names)} tensors are ({shown})"
