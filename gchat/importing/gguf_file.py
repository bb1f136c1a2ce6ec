"""A GGUF file: llama.cpp's format, read and dequantised by `gguf`, its authors' own package.

Keys are those of the specification (ggml/docs/gguf.md), tensor names `gguf_names`'.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError
from gaia.extras import install
from gchat.importing import gguf_names, gguf_vocabulary, rope
from gchat.importing.options import Options
from gchat.importing.source import ImportRefused, Layout, Source, Tensor

ARCHITECTURES = ("llama", "qwen3")
KINDS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_FETCH = "fetch it again"


def read(path: Path) -> Source:
    """Opens a file; no tensor is read yet.

    Raises:
        ImportRefused: it is cut off or no GGUF, or the model is none that ours can be.
        ConfigError: gguf is not installed.
    """
    file = _open(path)
    fields = {name: _contents(path, name, field) for name, field in file.fields.items()}
    options = Options(path, fields)
    if options.get("general.architecture") not in ARCHITECTURES:
        options.refuse("general.architecture", f"only {' and '.join(ARCHITECTURES)} are supported")
    stored = {tensor.name: tensor for tensor in file.tensors}
    for name, tensor in stored.items():
        if tensor.tensor_type.name not in KINDS:
            raise ImportRefused(
                f"{path}: tensor {name} is {tensor.tensor_type.name}",
                f"take a file of one of {', '.join(KINDS)}",
            )
    factors = stored.pop(gguf_names.ROPE_FACTORS, None)
    layout = _layout(
        options, tied="output.weight" not in stored, factors=factors and _fp32(path, factors)
    )
    tensors = {}
    for name, tensor in stored.items():
        shape = tuple(int(n) for n in reversed(tensor.shape))
        theirs = gguf_names.their_name(name)
        arch = options.get("general.architecture")
        heads = gguf_names.rotated_heads(theirs, arch, heads=layout.heads, kv_heads=layout.kv_heads)
        if heads:
            reader = partial(_fp32_unpermuted, path, tensor, heads)
        else:
            reader = partial(_fp32, path, tensor)
        tensors[theirs] = Tensor(shape, tensor.tensor_type.name, reader)
    about = {
        key: options.get(f"general.{key}")
        for key in ("architecture", "name", "license")
        if options.get(f"general.{key}")
    }
    vocabulary = gguf_vocabulary.read(options, layout.rows)
    return Source(path, "gguf", layout, tensors, vocabulary, about, gguf_names.name_in_file)


def _open(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError("gchat import gguf needs gguf", install("import")) from None
    if not path.is_file():
        raise ImportRefused(f"{path} is not a file", "give the path of a .gguf file")
    with open(path, "rb") as start:
        magic = start.read(4)
    if magic != b"GGUF":
        raise ImportRefused(f"{path} begins with {magic!r}, not b'GGUF'", "give a GGUF file")
    try:
        file = gguf.GGUFReader(path)
    except Exception as error:  # cut off anywhere: errors of numpy, of enums, of text
        reason = " ".join(str(error).split())[:120]
        raise ImportRefused(
            f"{path} is cut off or damaged ({type(error).__name__}: {reason})", _FETCH
        ) from None
    size = path.stat().st_size
    end = max((t.data_offset + t.n_bytes for t in file.tensors), default=0)
    if end > size:
        raise ImportRefused(f"{path} has {size:,} bytes, its tensors end at {end:,}", _FETCH)
    split = file.fields.get("split.count")
    count = 1 if split is None else _contents(path, "split.count", split)
    if count not in (0, 1):
        raise ImportRefused(
            f"{path}: split.count is {count}: only one part of the model is here",
            "merge the parts with llama.cpp's gguf-split --merge",
        )
    return file


def _contents(path: Path, name: str, field: Any) -> Any:
    """Value of a field.

    Raises:
        ImportRefused: its bytes are none, such as text that is no UTF-8.
    """
    try:
        return field.contents()
    except (ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ImportRefused(f"{path}: {name} is damaged ({reason})", _FETCH) from None


def _layout(options: Options, *, tied: bool, factors: np.ndarray | None) -> Layout:
    arch = options.get("general.architecture")
    dim = options.count(f"{arch}.embedding_length")
    heads = options.count(f"{arch}.attention.head_count")
    kv_heads = options.count(f"{arch}.attention.head_count_kv", heads)
    if heads % kv_heads:
        options.refuse(f"{arch}.attention.head_count_kv", f"it does not divide {heads} heads")
    if dim % heads and options.get(f"{arch}.attention.key_length") is None:
        options.refuse(f"{arch}.attention.head_count", f"it does not divide the width {dim}")
    head_dim = options.count(f"{arch}.attention.key_length", dim // heads)
    if head_dim % 2:
        options.refuse(f"{arch}.attention.key_length", "RoPE needs an even size")
    options.only(
        {
            f"{arch}.attention.value_length": (head_dim,),
            f"{arch}.rope.dimension_count": (head_dim,),
        },
        f"only the size of a head, {head_dim}, is supported",
    )
    options.only(
        {
            f"{arch}.expert_count": (0,),
            f"{arch}.attention.sliding_window": (0,),
            f"{arch}.attention.causal": (True,),
            f"{arch}.logit_scale": (1.0,),
            f"{arch}.residual_scale": (1.0,),
            f"{arch}.embedding_scale": (1.0,),
            f"{arch}.attention.scale": (),
        }
    )
    theta = options.positive(f"{arch}.rope.freq_base", 10_000.0)
    tokens = options.get("tokenizer.ggml.tokens")
    rows = options.count(f"{arch}.vocab_size", len(tokens) if tokens else None)
    return Layout(
        depth=options.count(f"{arch}.block_count"),
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=options.count(f"{arch}.feed_forward_length"),
        rows=rows,
        context=options.count(f"{arch}.context_length", 2048),
        rope_theta=theta,
        norm_eps=options.positive(f"{arch}.attention.layer_norm_rms_epsilon"),
        qk_norm=arch == "qwen3",
        tied=tied,
        rope_factors=_rope_factors(options, arch, head_dim // 2, factors),
    )


def _rope_factors(
    options: Options, arch: str, half: int, factors: np.ndarray | None
) -> tuple[float, ...] | None:
    """Divisors of the rotary frequencies: a tensor lists them, or all are the same."""
    name = f"{arch}.rope.scaling.type"
    kind = options.get(name, "none")
    if kind not in ("none", "linear"):
        options.refuse(name, "only none and linear are supported")
    scale = options.positive(f"{arch}.rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    if factors is None:
        return rope.linear(half, scale)
    if factors.shape != (half,):
        raise ImportRefused(
            f"{options.where}: tensor {gguf_names.ROPE_FACTORS} is {list(factors.shape)}, "
            f"not [{half}]",
            _FETCH,
        )
    return rope.given((scale * factors).tolist())


def _fp32(path: Path, tensor: Any) -> np.ndarray:
    """Dequantises a tensor.

    Raises:
        ImportRefused: its data cannot be read.
    """
    from gguf import quants

    try:
        return np.asarray(quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ImportRefused(f"{path}: tensor {tensor.name}: {reason}", _FETCH) from None


def _fp32_unpermuted(path: Path, tensor: Any, heads: int) -> np.ndarray:
    return gguf_names.unpermuted(_fp32(path, tensor), heads)
