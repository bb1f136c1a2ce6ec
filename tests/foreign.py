"""Tiny models in other people's formats, made from a seed: Hugging Face folders and GGUF files.

Only numpy, safetensors, gguf and json: tests/golden/make_import.py uses this where torch is.
"""

import json
from pathlib import Path

import numpy as np

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, ROWS = 64, 96, 2, 4, 2, 320
MERGES = [
    *("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "r e", "o n", "Ġ w", "e r", "a t", "Ġ c", "Ġ o", "n d"),
    *("i s", "Ġ i", "o r", "e n", "Ġ s", "in g", "Ġa nd", "Ġ Ġ"),
]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHARED = {
    "vocab_size": ROWS,
    "hidden_size": DIM,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
LLAMA = SHARED | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": False}
QWEN3 = SHARED | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama_tied": LLAMA
    | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0},
    "llama3_untied": LLAMA
    | {
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500_000.0,
        "rope_scaling": LLAMA3_SCALING,
    },
    "llama_linear": LLAMA
    | {
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "qwen3_tied": QWEN3
    | {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0},
    "qwen3_untied": QWEN3
    | {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0},
}


def ids(seed=0, length=100):
    """Token ids below the tokenizer's, long enough that a scaled rotation shows."""
    return np.random.default_rng(seed).integers(3, 256, length).tolist()


def weights(config, seed=0):
    """Tensors by Hugging Face's names, fp32, N(0, 1/in) and uneven gains."""
    rng = np.random.default_rng(seed)
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or dim // HEADS
    q, k = HEADS * head_dim, KV_HEADS * head_dim
    layer = {
        "self_attn.q_proj": (q, dim),
        "self_attn.k_proj": (k, dim),
        "self_attn.v_proj": (k, dim),
        "self_attn.o_proj": (dim, q),
        "mlp.gate_proj": (hidden, dim),
        "mlp.up_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "input_layernorm": (dim,),
        "post_attention_layernorm": (dim,),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    shapes = {"model.embed_tokens.weight": (ROWS, dim), "model.norm.weight": (dim,)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": s for name, s in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (ROWS, dim)

    def draw(shape):
        noise = rng.standard_normal(shape)
        return 1 + 0.3 * noise if len(shape) == 1 else noise * shape[-1] ** -0.5

    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def letters():
    """GPT-2's letters for bytes, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def tokens():
    """The vocabulary in order: specials, bytes, merges."""
    return [*SPECIALS, *(letters()[b] for b in range(256)), *("".join(m.split()) for m in MERGES)]


def tokenizer(**changes):
    """Content of a tokenizer.json: byte-level BPE with GPT-2's split."""
    added = [
        {"id": i, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, name in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens())},
        "merges": [m.split(" ") for m in MERGES],
    }
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "decoder": byte_level | {"use_regex": True},
        "model": model,
    } | changes


def write_folder(folder, config, *, tensors=None, vocabulary=None, shards=1, dtype=None):
    """A Hugging Face folder; `shards` above 1 splits the weights and writes their index."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary or tokenizer()))
    names = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[2]}
    names["chat_template"] = "{{ messages }}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    tensors = weights(config) if tensors is None else tensors
    tensors = {n: t if dtype is None else t.astype(dtype) for n, t in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, where = sorted(tensors), {}
    for i in range(shards):
        part = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[i::shards]
        save_file({n: tensors[n] for n in mine}, folder / part, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return _GGUF[name] + ".weight"
    _, _, i, rest = name.split(".", 3)
    return f"blk.{i}.{_GGUF[rest]}.weight"


def for_llama_cpp(name, tensor, config):
    """q and k as llama.cpp's `llama` wants them: halves of each head become neighbours."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if config["model_type"] != "llama" or heads is None:
        return tensor
    split = tensor.reshape(heads, 2, -1, tensor.shape[-1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(tensor.shape)


def write_gguf(
    path, config, *, tensors=None, kind="F32", pre="gpt-2", fields=None, extra=None, leave_out=()
):
    """A GGUF file of the same weights; `fields` change its keys, `extra` its tensors."""
    import gguf

    arch = config["model_type"]
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or dim // HEADS
    scaling = config.get("rope_scaling") or {}
    unused = ROWS - len(tokens())
    kinds = [3] * 3 + [1] * (len(tokens()) - 3) + [5] * unused
    keys = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 256,
        f"{arch}.embedding_length": dim,
        f"{arch}.feed_forward_length": hidden,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": config["rope_theta"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.vocab_size": ROWS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens() + [f"[PAD{i}]" for i in range(len(tokens()), ROWS)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
        "general.name": "tiny",
    }  # fmt: skip
    if scaling.get("rope_type") == "linear":
        keys |= {f"{arch}.rope.scaling.type": "linear"}
        keys |= {f"{arch}.rope.scaling.factor": scaling["factor"]}
    writer = gguf.GGUFWriter(path, (fields or {}).get("general.architecture", arch))
    for key, value in (keys | (fields or {})).items():
        if key != "general.architecture" and value is not None:
            _add(writer, key, value)
    named = {}
    for name, tensor in (weights(config) if tensors is None else tensors).items():
        named[gguf_name(name)] = for_llama_cpp(name, tensor, config)
    if scaling.get("rope_type") == "llama3":
        named["rope_freqs.weight"] = llama3_factors(config, head_dim)
    for name, tensor in (named | (extra or {})).items():
        if name in leave_out:
            continue
        if tensor.ndim == 1 or kind == "F32":
            writer.add_tensor(name, tensor)
            continue
        dtype = gguf.GGMLQuantizationType[kind]
        if kind.endswith("_K"):
            data = random_blocks(tensor.shape, kind)
        else:
            data = gguf.quants.quantize(tensor, dtype)
        writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Bytes of a K-quant's scales, which are float16: the rest of its block may be anything.
_K_SCALES = {
    "Q2_K": (80, 84),
    "Q3_K": (108, 110),
    "Q4_K": (0, 4),
    "Q5_K": (0, 4),
    "Q6_K": (208, 210),
}


def random_blocks(shape, kind, seed=0):
    """Data of a K-quantised matrix, which `gguf` reads but does not write: random, uint8."""
    import gguf

    block, size = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    start, end = _K_SCALES[kind]
    scales = rng.uniform(0.001, 0.01, (*data.shape[:2], (end - start) // 2)).astype(np.float16)
    data[..., start:end] = scales.view(np.uint8)
    return data.reshape(shape[0], -1)


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def llama3_factors(config, head_dim):
    """The divisors as llama.cpp's converter writes them, one frequency at a time."""
    scaling, factors = config["rope_scaling"], []
    for i in range(0, head_dim, 2):
        frequency = 1.0 / config["rope_theta"] ** (i / head_dim)
        wavelength = 2 * np.pi / frequency
        original = scaling["original_max_position_embeddings"]
        if wavelength < original / scaling["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > original / scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)
