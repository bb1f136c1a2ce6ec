"""Names and layouts of a GGUF file's tensors, for reading and writing alike.

Names are those of the specification (ggml/docs/gguf.md). llama.cpp rotates neighbouring values
where `llama` stands as architecture, so the rows of its q and k are stored in another order than
Hugging Face's; `qwen3` is stored as there.
"""

import numpy as np

from gchat.importing.source import EMBED, FINAL_NORM, HEAD, in_layer

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor [H / 2] with divisors of the rotary frequencies."""
_WHOLE = {"token_embd.weight": EMBED, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_IN_FILE = {theirs: own for own, theirs in _WHOLE.items()}
_LAYER_IN_FILE = {theirs: own for own, theirs in _LAYER.items()}


def their_name(name: str) -> str:
    """Hugging Face's name of a tensor; the same where it has none."""
    if name in _WHOLE:
        return _WHOLE[name]
    parts = name.split(".")
    is_layer = len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit()
    if is_layer and parts[2] in _LAYER and parts[3] == "weight":
        return in_layer(int(parts[1]), _LAYER[parts[2]])
    return name


def name_in_file(name: str) -> str:
    """The inverse of `their_name`."""
    parts = name.removesuffix(".weight").split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[3] in _LAYER_IN_FILE:
        return f"blk.{parts[2]}.{_LAYER_IN_FILE[parts[3]]}.weight"
    return _WHOLE_IN_FILE.get(name, name)


def rotated_heads(name: str, arch: str, *, heads: int, kv_heads: int) -> int | None:
    """Heads of a tensor whose rows llama.cpp has in another order; None for all others.

    Args:
        name: Hugging Face's.
        arch: `general.architecture` of the file.
        heads: query heads of the model.
        kv_heads: key heads of the model.
    """
    if arch != "llama":
        return None
    kind = name.rpartition(".weight")[0].rpartition(".")[2]
    return {"q_proj": heads, "k_proj": kv_heads}.get(kind)


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as neighbours: pairs (i, i + H/2) become (2i, 2i + 1)."""
    return w.reshape(heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def unpermuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as halves: pairs (2i, 2i + 1) become (i, i + H/2)."""
    return w.reshape(heads, -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)
