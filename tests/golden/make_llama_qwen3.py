"""Makes llama_*.npz and qwen3_*.npz: tiny Hugging Face models with their weights and logits.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 transformers numpy
    /tmp/golden/bin/python tests/golden/make_llama_qwen3.py

Each file holds the `state_dict` by Hugging Face's own names (fp32), `input_ids` [B, T], `logits`
[B, T, V] and `config`, the JSON of the Hugging Face config. Only this script needs torch; the
mapping to our names is in tests/gchat/test_golden_hf.py.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SHARED = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = {
    "llama_mha_untied": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
        10_000.0,
    ),
    "llama_gqa_tied": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        500_000.0,
    ),
    "qwen3_gqa_untied": (
        Qwen3ForCausalLM,
        Qwen3Config,
        # A head dim that is not hidden / heads, as in Qwen3-0.6B.
        {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False},
        1_000_000.0,
    ),
}


def main() -> None:
    """Writes one file per case beside this script."""
    for name, (model_class, config_class, changes, theta) in CASES.items():
        torch.manual_seed(0)
        rope = {"rope_type": "default", "rope_theta": theta}
        config = config_class(**SHARED, **changes, rope_parameters=rope)
        config._attn_implementation = "eager"
        model = model_class(config).eval().float()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, p in model.named_parameters():
                # Large enough weights and uneven gains, or a wrong mapping would hardly show.
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(1 + 0.3 * noise if "norm" in key else noise * p.shape[-1] ** -0.5)
            ids = torch.randint(0, config.vocab_size, (2, 48), generator=generator)
            logits = model(ids).logits
        assert logits.std() > 0.5
        arrays = {k: v.detach().numpy() for k, v in model.named_parameters()}
        about = config.to_dict() | {"rope_theta": theta, "transformers": transformers.__version__}
        path = Path(__file__).parent / f"{name}.npz"
        np.savez_compressed(
            path,
            input_ids=ids.numpy().astype(np.int32),
            logits=logits.numpy().astype(np.float32),
            config=np.array(json.dumps(about, default=str)),
            **arrays,
        )
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
