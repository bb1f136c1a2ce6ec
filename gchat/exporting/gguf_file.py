"""A run as a GGUF file, written by `gguf`, llama.cpp's own package, and quantised by it.

Formats that only llama.cpp's library writes (K-quants) are made by it from a file in F32. A matrix
whose rows do not fit a format's blocks is kept in another one; the types that a file came out with
are read back and told.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError
from gaia.extras import install
from gchat.exporting.options import BLOCK, BLOCKS, LARGEST_F16, Outtype
from gchat.exporting.place import flush
from gchat.exporting.source import ExportRefused, Parameter, Run
from gchat.exporting.vocabulary import Ends, GgufVocabulary
from gchat.importing import gguf_names, rope
from gchat.importing.source import EMBED, HEAD, Layout

_WIDE = "Q8_0"  # of the embedding and the head, where matrices have fewer than 8 bits


def library() -> Any:
    """The module `gguf`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError("gchat export gguf needs gguf", install("import")) from None
    return gguf


def kind_of(parameter: Parameter, outtype: Outtype) -> str:
    """The number format of one tensor."""
    if len(parameter.shape) == 1 or outtype.by_llama_cpp:
        return "F32"
    if outtype.name not in BLOCKS:
        return outtype.name
    if parameter.shape[-1] % BLOCK:
        return "F16"
    return _WIDE if parameter.name in (EMBED, HEAD) else outtype.name


def write(
    run: Run,
    outtype: Outtype,
    vocabulary: GgufVocabulary,
    ends: Ends,
    about: Mapping[str, str],
    path: Path,
    progress: Callable[[int], object],
) -> None:
    """Writes a file in a format that `gguf` writes; of any other one in F32.

    Args:
        run: opened.
        outtype: number format.
        vocabulary: of the run.
        ends: of the run.
        about: metadata under `general.` and `gaia.`: keys with their texts.
        path: of the file.
        progress: told the number of elements after each tensor.

    Raises:
        ExportRefused: a value is too large for F16, or the rotary frequencies cannot be stated.
    """
    gguf = library()
    arch = "qwen3" if run.layout.qk_norm else "llama"
    writer = gguf.GGUFWriter(path, arch)
    kept = gguf.LlamaFileType.ALL_F32
    if outtype.name != "F32" and not outtype.by_llama_cpp:
        kept = gguf.LlamaFileType[f"MOSTLY_{outtype.name}"]
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(kept)
    for key, text in about.items():
        writer.add_string(key, text)
    _add_layout(writer, arch, run.layout)
    _add_vocabulary(writer, vocabulary, ends)
    extra = _rope_tensor(run.layout, arch)
    for parameter in run.parameters():
        _announce(gguf, writer, parameter, kind_of(parameter, outtype))
    if extra is not None:
        name = gguf_names.ROPE_FACTORS
        writer.add_tensor_info(name, extra.shape, extra.dtype, extra.nbytes)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for parameter, values in run.tensors():
            writer.write_tensor_data(_stored(gguf, parameter, values, outtype, arch, run.layout))
            progress(values.size)
        if extra is not None:
            writer.write_tensor_data(extra)
        flush(writer.fout[0])
    finally:
        for file in writer.fout or ():
            file.close()  # the writer's own close() would flush to a full disk once more


def _announce(gguf: Any, writer: Any, parameter: Parameter, kind: str) -> None:
    """Tells the writer name, shape and size of a tensor that comes later."""
    dtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.constants.GGML_QUANT_SIZES[dtype]
    nbytes = int(np.prod(parameter.shape)) // block * size
    # Of a dtype that is not uint8 the shape is taken as it is.
    name = gguf_names.name_in_file(parameter.name)
    writer.add_tensor_info(name, parameter.shape, np.dtype(np.float32), nbytes, raw_dtype=dtype)


def _stored(
    gguf: Any,
    parameter: Parameter,
    values: np.ndarray,
    outtype: Outtype,
    arch: str,
    layout: Layout,
) -> np.ndarray:
    """A tensor as the file holds it."""
    heads = gguf_names.rotated_heads(
        parameter.name, arch, heads=layout.heads, kv_heads=layout.kv_heads
    )
    if heads:
        values = gguf_names.permuted(values, heads)
    kind = kind_of(parameter, outtype)
    if kind == "F16" and np.abs(values).max() > LARGEST_F16:
        raise ExportRefused(
            f"parameter {parameter.ours} holds {np.abs(values).max():,.0f}, too much for F16",
            "use --outtype bf16",
        )
    dtype = gguf.GGMLQuantizationType[kind]
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(values), dtype))


def _add_layout(writer: Any, arch: str, layout: Layout) -> None:
    writer.add_context_length(layout.context)
    writer.add_embedding_length(layout.dim)
    writer.add_block_count(layout.depth)
    writer.add_feed_forward_length(layout.hidden)
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.kv_heads)
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_rope_dimension_count(layout.head_dim)
    writer.add_rope_freq_base(layout.rope_theta)
    writer.add_layer_norm_rms_eps(layout.norm_eps)
    writer.add_vocab_size(layout.rows)
    if _is_linear(layout):
        assert layout.rope_factors is not None
        writer.add_rope_scaling_type(library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(layout.rope_factors[0]))


def _is_linear(layout: Layout) -> bool:
    return layout.rope_factors is not None and len(set(layout.rope_factors)) == 1


def _rope_tensor(layout: Layout, arch: str) -> np.ndarray | None:
    """Divisors of the rotary frequencies, where one number does not tell them."""
    if layout.rope_factors is None or _is_linear(layout):
        return None
    if arch != "llama":
        raise ExportRefused(
            "model.rope_factors differ by frequency: llama.cpp's qwen3 has no place for them",
            "export it as a Hugging Face folder (gchat export hf)",
        )
    assert rope.given(layout.rope_factors) is not None
    return np.array(layout.rope_factors, np.float32)


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary, ends: Ends) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(ends.bos)
    writer.add_eos_token_id(ends.eos)
    for other in ends.stops[1:2]:
        writer.add_eot_token_id(other)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if ends.template is not None:
        writer.add_chat_template(ends.template)


def types_in(path: Path) -> dict[str, int]:
    """Number of tensors of each type in a file, as it was written."""
    counted = Counter(tensor.tensor_type.name for tensor in library().GGUFReader(path).tensors)
    return dict(counted.most_common())


def fallbacks_in(path: Path, outtype: Outtype) -> list[str]:
    """Sentences about matrices that a format's blocks did not fit, by their rows and types."""
    block = 256 if outtype.by_llama_cpp and not outtype.name.endswith("NL") else BLOCK
    if outtype.name not in BLOCKS and not outtype.by_llama_cpp:
        return []
    counted: Counter[tuple[int, str]] = Counter()
    for tensor in library().GGUFReader(path).tensors:
        row = int(tensor.shape[0])  # the reader has dims reversed
        if len(tensor.shape) > 1 and row % block:
            counted[row, tensor.tensor_type.name] += 1
    return [
        f"rows of {row:,} do not divide by {block}: {count} of their matrices are {kind}"
        for (row, kind), count in sorted(counted.items())
    ]
