"""A run as a Hugging Face folder, for transformers, vLLM, SGLang and whatever reads safetensors.

OUT/config.json  generation_config.json  model.safetensors (or several, by index)
    tokenizer.json  tokenizer_config.json  special_tokens_map.json  chat_template.jinja
    README.md  Modelfile  export.json

Field names are those of transformers' LlamaConfig and Qwen3Config; a folder that is written here is
read by `gchat.importing.hub_folder`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gchat.exporting import safetensors_file
from gchat.exporting.options import LARGEST_F16, Outtype
from gchat.exporting.safetensors_file import DTYPES, Shard
from gchat.exporting.source import ExportRefused, Run
from gchat.exporting.vocabulary import Ends
from gchat.importing import rope
from gchat.importing.hub_folder import ARCHITECTURES, CONFIG, INDEX, TOKENIZER, WEIGHTS
from gchat.importing.source import Layout
from gchat.tokenizer import Tokenizer

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def weights(
    run: Run, outtype: Outtype, folder: Path, *, most: int, progress: Callable[[int], object]
) -> None:
    """Writes the weights, one tensor after the other.

    Args:
        run: opened.
        outtype: number format of all tensors.
        folder: to write in.
        most: bytes of a file.
        progress: told the number of elements after each tensor.
    """
    shapes = {parameter.name: parameter.shape for parameter in run.parameters()}
    item = ITEM_BYTES[outtype.name]
    parts = safetensors_file.shards(shapes, WEIGHTS, item_bytes=item, most=most)
    tensors = _checked(run, outtype, progress)
    for part in parts:
        safetensors_file.write(folder / part.name, part, outtype.name, tensors)
    if len(parts) > 1:
        _write_json(folder / INDEX, _index(parts, item))


def _checked(
    run: Run, outtype: Outtype, progress: Callable[[int], object]
) -> Iterator[tuple[str, np.ndarray]]:
    for parameter, values in run.tensors():
        if outtype.name == "F16" and np.abs(values).max() > LARGEST_F16:
            raise ExportRefused(
                f"parameter {parameter.ours} holds {np.abs(values).max():,.0f}, too much for F16",
                "use --outtype bf16",
            )
        yield parameter.name, values
        progress(values.size)


def _index(parts: list[Shard], item: int) -> dict[str, Any]:
    total = sum(item * int(np.prod(shape)) for part in parts for shape in part.shapes.values())
    where = {name: part.name for part in parts for name in part.shapes}
    return {"metadata": {"total_size": total}, "weight_map": where}


def texts(run: Run, outtype: Outtype, ends: Ends, definition: str, folder: Path) -> None:
    """Writes everything but the weights and what is for people."""
    _write_json(folder / CONFIG, config(run.layout, outtype, ends))
    generation = {"bos_token_id": ends.bos, "eos_token_id": list(ends.stops)}
    _write_json(folder / "generation_config.json", generation)
    (folder / TOKENIZER).write_text(definition, encoding="utf-8")
    stated = tokenizer_config(run.tokenizer, ends, run.layout.context)
    _write_json(folder / "tokenizer_config.json", stated)
    named = {key: value for key, value in stated.items() if key.endswith("_token")}
    _write_json(folder / "special_tokens_map.json", named)
    if ends.template is not None:
        (folder / "chat_template.jinja").write_text(ends.template, encoding="utf-8")


def config(layout: Layout, outtype: Outtype, ends: Ends) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        ExportRefused: the rotary frequencies follow no scaling that it can state.
    """
    family = "qwen3" if layout.qk_norm else "llama"
    stated = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": layout.rows,
        "hidden_size": layout.dim,
        "intermediate_size": layout.hidden,
        "num_hidden_layers": layout.depth,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": layout.context,
        "rms_norm_eps": layout.norm_eps,
        "tie_word_embeddings": layout.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": ends.bos,
        "eos_token_id": ends.eos,
        "torch_dtype": DTYPES[outtype.name],
    }
    if layout.qk_norm:
        stated |= {"use_sliding_window": False, "sliding_window": None}
        stated |= {"max_window_layers": layout.depth}
    else:
        stated |= {"mlp_bias": False}
    return stated | _rope(layout)


def _rope(layout: Layout) -> dict[str, Any]:
    """RoPE as version 5 of transformers states it, and as versions before."""
    scaling = {"rope_type": "default"}
    if layout.rope_factors is not None:
        scaling_of = rope.as_options(layout.rope_factors, layout.rope_theta)
        if scaling_of is None:
            raise ExportRefused(
                "model.rope_factors follow neither a linear scaling nor Llama 3's",
                "export it as GGUF, which lists them",
            )
        scaling = scaling_of
    parameters = scaling | {"rope_theta": layout.rope_theta}
    old = None if scaling["rope_type"] == "default" else scaling
    return {
        "rope_theta": layout.rope_theta,
        "rope_parameters": parameters,
        "rope_scaling": old if old is None else parameters,
    }


def tokenizer_config(tokenizer: Tokenizer, ends: Ends, context: int) -> dict[str, Any]:
    """Content of tokenizer_config.json."""
    stated: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.decode([ends.bos]),
        "eos_token": tokenizer.decode([ends.eos]),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    # An id that no text has, so that batches can be padded without hiding an end.
    if "<|reserved_0|>" in tokenizer.specials:
        stated["pad_token"] = "<|reserved_0|>"
    if ends.template is not None:
        stated["chat_template"] = ends.template
    return stated


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
