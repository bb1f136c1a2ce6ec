"""The whole forward pass against transformers' Llama and Qwen3 with the same weights.

The files are made by tests/golden/make_llama_qwen3.py. The mapping, which an export inverts:

    model.embed_tokens.weight [V, D]      embed.table [V, D], rows beyond V padded
    layers.i.input_layernorm.weight       blocks.attn_norm.scale[i]
    layers.i.self_attn.{q,k,v}_proj       blocks.attn.{q,k,v}.kernel[i], transposed to [in, out]
    layers.i.self_attn.o_proj             blocks.attn.out.kernel[i], transposed
    layers.i.self_attn.{q,k}_norm         blocks.attn.{q,k}_norm.scale[i] (Qwen3)
    layers.i.post_attention_layernorm     blocks.mlp_norm.scale[i]
    layers.i.mlp.{gate,up,down}_proj      blocks.mlp.{gate,up,down}.kernel[i], transposed
    model.norm.weight                     final_norm.scale
    lm_head.weight [V, D]                 head.kernel [D, V], transposed; absent when tied

No weight is permuted: both rotate the pairs (i, i + H/2). theta, eps, head_dim and the SwiGLU
width come from the Hugging Face config.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gchat.model import GPTConfig

GOLDEN = Path(__file__).parent.parent / "golden"
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


def our_config(hf) -> GPTConfig:
    vocab = hf["vocab_size"]
    return GPTConfig(
        depth=hf["num_hidden_layers"],
        dim=hf["hidden_size"],
        heads=hf["num_attention_heads"],
        kv_heads=hf["num_key_value_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        hidden=hf["intermediate_size"],
        seq_len=hf["max_position_embeddings"],
        rope_theta=hf["rope_theta"],
        norm_eps=hf["rms_norm_eps"],
        qk_norm=hf["model_type"] == "qwen3",
        tied=hf["tie_word_embeddings"],
        compute_dtype="float32",
    ).derive(vocab, -(-vocab // 128) * 128)


def our_params(weights, config: GPTConfig):
    """Our tree from Hugging Face's names; every leaf of the model must be found."""
    pad = config.sizes.padded_vocab - config.sizes.vocab

    def find(path, leaf):
        name = ".".join(str(p.key) for p in path)
        if name == "embed.table":
            value = np.pad(weights["model.embed_tokens.weight"], ((0, pad), (0, 0)))
        elif name == "head.kernel":
            value = np.pad(weights["lm_head.weight"], ((0, pad), (0, 0))).T
        elif name == "final_norm.scale":
            value = weights["model.norm.weight"]
        else:
            theirs = BLOCK[name.removeprefix("blocks.")]
            layers = [weights[f"model.layers.{i}.{theirs}.weight"] for i in range(config.depth)]
            value = np.stack(layers)
            value = value.mT if name.endswith("kernel") else value
        assert value.shape == leaf.shape, name
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(find, tiny.shapes_of(config))


@pytest.mark.parametrize("name", ["llama_mha_untied", "llama_gqa_tied", "qwen3_gqa_untied"])
def test_forward_pass_matches_transformers(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    config = our_config(json.loads(str(golden["config"])))
    params = our_params(golden, config)
    expected = golden["logits"]
    got = np.asarray(tiny.logits(tiny.graph_of(config), params, golden["input_ids"]))
    vocab = config.sizes.vocab
    assert np.abs(got[..., :vocab] - expected).max() < 1e-4
    assert np.isneginf(got[..., vocab:]).all()
    used = sum(leaf.size for leaf in jax.tree.leaves(params))
    pad = (config.sizes.padded_vocab - vocab) * config.sizes.dim * (1 if config.tied else 2)
    names = [k for k in golden if k.startswith(("model.", "lm_head."))]
    assert used - pad == sum(golden[k].size for k in names)  # no weight of theirs is left out
