"""A Hugging Face folder: config.json, tokenizer.json, safetensors (one file, or several by index).

Field names are those of transformers' LlamaConfig and Qwen3Config.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError
from gaia.extras import install
from gchat.importing import rope
from gchat.importing.options import Options
from gchat.importing.source import EMBED, HEAD, ImportRefused, Layout, Source, Tensor, Vocabulary
from gchat.importing.vocabulary import choose_bos

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_KINDS = ("F32", "F16", "BF16")
# Options that change the result, with the values that leave it as our model computes it.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "final_logit_softcapping": (),
    "attn_logit_softcapping": (),
    "is_encoder_decoder": (False,),
}


def read(path: Path) -> Source:
    """Opens a folder; no tensor is read yet.

    Raises:
        ImportRefused: a file is missing or damaged, or the model is none that ours can be.
        ConfigError: safetensors is not installed.
    """
    if not path.is_dir():
        raise ImportRefused(f"{path} is not a folder", "give the folder that holds config.json")
    options = Options(path / CONFIG, _json(path / CONFIG))
    layout = _layout(options)
    tensors = _tensors(path)
    if layout.tied and HEAD in tensors:
        _check_tied(path, tensors)
        tensors.pop(HEAD)
    # Old files keep RoPE's frequencies beside the weights; these follow from the configuration.
    tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    about = {"architecture": ARCHITECTURES[options.get("model_type")]}
    return Source(path, "hf", layout, tensors, _vocabulary(path, options), about)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that the folder must have."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "fetch the model again, all of its files"
        if path.name == TOKENIZER:
            remedy = (
                "save it with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            )
        raise ImportRefused(f"{path.parent} holds no {path.name}", remedy) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise ImportRefused(f"{path} is damaged (no JSON object)", "fetch it again")
    return content


def _layout(options: Options) -> Layout:
    model_type = options.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        options.refuse("model_type", f"only {' and '.join(ARCHITECTURES)} are supported")
    options.only(_NEUTRAL)
    layer_types = options.get("layer_types", [])
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        options.refuse("layer_types", "only full attention is supported")
    if options.get("sliding_window") and options.get("use_sliding_window", True):
        options.refuse("sliding_window", "sliding windows are not supported")
    dim, heads = options.count("hidden_size"), options.count("num_attention_heads")
    if options.get("head_dim") is None and dim % heads:
        options.refuse("num_attention_heads", f"it does not divide hidden_size {dim}")
    head_dim = options.count("head_dim", 128 if model_type == "qwen3" else dim // heads)
    kv_heads = options.count("num_key_value_heads", heads)
    if heads % kv_heads:
        options.refuse("num_key_value_heads", f"it does not divide num_attention_heads {heads}")
    if head_dim % 2:
        options.refuse("head_dim", "RoPE needs an even size")
    theta, factors = _rope(options, head_dim)
    return Layout(
        depth=options.count("num_hidden_layers"),
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=options.count("intermediate_size"),
        rows=options.count("vocab_size"),
        context=options.count("max_position_embeddings", 2048),
        rope_theta=theta,
        norm_eps=options.positive("rms_norm_eps", 1e-6),
        qk_norm=model_type == "qwen3",
        tied=bool(options.get("tie_word_embeddings", False)),
        rope_factors=factors,
    )


def _rope(options: Options, head_dim: int) -> tuple[float, tuple[float, ...] | None]:
    """RoPE's theta and the divisors of its frequencies.

    Version 5 of transformers writes both into `rope_parameters`; versions before had `rope_theta`
    beside `rope_scaling`, where the scaling's name could be `type`.
    """
    field = "rope_parameters" if options.get("rope_parameters") else "rope_scaling"
    stated = options.get(field, {})
    if not isinstance(stated, Mapping):
        options.refuse(field, "needs an object")
    inner = Options(options.where, {f"{field}.{k}": v for k, v in stated.items()})
    default = options.positive("rope_theta", 10_000.0)
    theta = inner.positive(f"{field}.rope_theta", default)
    inner.only({f"{field}.partial_rotary_factor": (1, 1.0)})
    name = f"{field}.rope_type" if "rope_type" in stated else f"{field}.type"
    kind, half = inner.get(name, "default"), head_dim // 2
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, rope.linear(half, inner.positive(f"{field}.factor"))
    if kind == "llama3":
        return theta, rope.llama3(
            half,
            theta,
            factor=inner.positive(f"{field}.factor"),
            low=inner.positive(f"{field}.low_freq_factor"),
            high=inner.positive(f"{field}.high_freq_factor"),
            original=inner.positive(f"{field}.original_max_position_embeddings"),
        )
    inner.refuse(name, "only default, linear and llama3 are supported")


def _tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by name."""
    if (path / WEIGHTS).exists() or not (path / INDEX).exists():
        files = {WEIGHTS: None}
    else:
        listed = _json(path / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ImportRefused(f"{path / INDEX} is damaged (no weight_map)", "fetch it again")
        files = {str(name): None for name in listed.values()}
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= _tensors_of_file(path / name)
    return tensors


def _tensors_of_file(path: Path) -> dict[str, Tensor]:
    try:
        import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
        import safetensors
    except ImportError:
        raise ConfigError("gchat import hf needs safetensors", install("import")) from None
    if not path.exists():
        remedy = "fetch the model again, all of its files"
        if next(path.parent.glob("*.bin"), None):
            remedy = "save it as safetensors: PyTorch's own files can run code"
        raise ImportRefused(f"{path.parent} holds no {path.name}", remedy)
    try:
        file = safetensors.safe_open(path, framework="np")
        tensors = {}
        for name in file.keys():  # noqa: SIM118  (not a dictionary)
            part = file.get_slice(name)
            shape, kind = tuple(part.get_shape()), part.get_dtype()
            if kind not in _KINDS:
                raise ImportRefused(
                    f"{path}: tensor {name} is {kind}", f"save it as one of {', '.join(_KINDS)}"
                )
            tensors[name] = Tensor(shape, kind, partial(_fp32, path, file, name))
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    return tensors


def _fp32(path: Path, file: Any, name: str) -> np.ndarray:
    """Reads a tensor.

    Raises:
        ImportRefused: the file is cut off.
    """
    try:
        return file.get_tensor(name).astype(np.float32)
    except Exception as error:  # the library raises no narrower kind
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ImportRefused:
    reason = " ".join(str(error).split())[:120]
    return ImportRefused(f"{path} is damaged ({reason})", "fetch it again")


def _check_tied(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ImportRefused where a head is stored beside the table that it shall be."""
    if EMBED in tensors and not np.array_equal(tensors[EMBED].read(), tensors[HEAD].read()):
        raise ImportRefused(
            f"{path / CONFIG}: tie_word_embeddings is True, but {HEAD} differs from {EMBED}",
            "set tie_word_embeddings to false",
        )


def _vocabulary(path: Path, options: Options) -> Vocabulary:
    definition = json.dumps(_json(path / TOKENIZER), ensure_ascii=False)
    names = path / "tokenizer_config.json"
    stated = _json(names) if names.exists() else {}
    generation = path / "generation_config.json"
    ends = [options.get("eos_token_id")]
    if generation.exists():
        ends.append(_json(generation).get("eos_token_id"))
    template = path / "chat_template.jinja"
    if template.exists():
        try:
            chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(template, error) from None
    else:
        chat_template = _template(stated.get("chat_template"))
    chosen = choose_bos(
        definition,
        bos=_content(stated.get("bos_token")) or options.get("bos_token_id"),
        ends=[_content(stated.get("eos_token")), *ends],
        where=path / TOKENIZER,
    )
    return Vocabulary(definition, *chosen, chat_template=chat_template)


def _content(token: Any) -> Any:
    """A token's text, which tokenizer_config.json writes plain or with its options."""
    return token.get("content") if isinstance(token, Mapping) else token


def _template(stated: Any) -> str | None:
    """The chat template; of several the one named default."""
    if isinstance(stated, list):
        named = [t for t in stated if isinstance(t, Mapping) and t.get("name") == "default"]
        stated = named[-1].get("template") if named else None
    return stated if isinstance(stated, str) else None
