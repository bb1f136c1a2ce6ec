"""Options of a GPT: its sizes, which all follow from `--depth`, and the rest.

The architecture itself is in `model.py`. Shapes: D model, F hidden, N heads, H head dim, V vocab.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gaia.errors import ConfigError
from gchat.ranges import check_ranges

LORA_TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
Remat = Literal["none", "dots", "attention", "full", "offload"]


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. `None` means derived from `depth`; `derive()` fills every such field."""

    depth: int = 24
    """Layers, and the one dial: width, heads and hidden size follow from it."""
    aspect_ratio: int = 64
    """Width per layer before rounding up to a whole number of heads."""
    head_dim: int = 128
    """Size of one attention head."""
    dim: int | None = None
    """Model width D; derived: depth * aspect_ratio, rounded up to a multiple of head_dim."""
    heads: int | None = None
    """Query heads; derived: dim / head_dim."""
    kv_heads: int | None = None
    """Key/value heads; derived: heads (multi-head attention). Fewer gives GQA."""
    hidden: int | None = None
    """SwiGLU's hidden size F; derived: 8/3 * dim, rounded up to a multiple of 128, or of 256 above
    1,024, so that it divides over 256 devices."""
    vocab_size: int | None = None
    """Ids in use; derived: the tokenizer's."""
    padded_vocab_size: int | None = None
    """Rows of the embedding and head; derived: the tokenizer's, a multiple of 128."""
    seq_len: int = 2048
    """Tokens of a training row, and the most positions the model is made for."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned table of seq_len rows."""
    rope_theta: float = 100_000.0
    """Base of the rotary frequencies."""
    rope_factors: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies, head_dim / 2 of them, the fastest first; imported models
    have them whose context was stretched after training."""
    qk_norm: bool = True
    """RMSNorm on query and key heads before RoPE (Qwen3's shape; without it Llama's)."""
    tied: bool = False
    """Use the embedding table as the output head, with the head's rate, betas and decay."""
    window_pattern: str = "L"
    """Attention by layer, tiled over the depth: L sees the whole row, S the last `window`."""
    window: int | None = None
    """Tokens a layer marked S sees; derived: seq_len / 4, rounded up to a multiple of 128."""
    dropout: float = 0.0
    """Share of the embedding and of each branch's output that is zeroed in training."""
    init: Literal["zero_out", "gpt2", "neox"] = "zero_out"
    """zero_out: branches start as identity; gpt2: N(0, 0.02); neox: small init and Wang init."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of matrix products and the residual stream."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    """Passes of a matrix product on hardware that multiplies in bf16."""
    scan_unroll: int = 1
    """Layers per iteration of the scan over layers: 1 compiles fastest, depth runs fastest. What
    remat saves is an iteration's at a time, so that with it there are at least two."""
    remat: Remat = "none"
    """Results of a block that the forward pass keeps for the backward pass, most first: none
    recomputes nothing; dots keeps matrix products and attention; attention keeps that and its
    inputs; full keeps nothing; offload is dots with the products in the host's memory."""
    lora_rank: int = 0
    """Rank of adapters that are trained in place of all other parameters (LoRA); 0 for none. Of
    `gchat midtrain`, `sft`, `dpo` and `rl`."""
    lora_alpha: float | None = None
    """Factor of the adapters, divided by the rank; derived: twice the rank."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """Matrices of each block that get an adapter: q, k, v, out, gate, up, down."""

    def derive(self, vocab_size: int, padded_vocab_size: int) -> "GPTConfig":
        """Fills every derived field and checks that the sizes fit together.

        Raises:
            ConfigError: naming the field, its value and the remedy.
        """
        check_ranges(self, "model.")
        width = _up(self.depth * self.aspect_ratio, self.head_dim)
        dim = _given(self.dim, width)
        heads = _given(self.heads, max(1, dim // self.head_dim))
        derived = replace(
            self,
            dim=dim,
            heads=heads,
            kv_heads=_given(self.kv_heads, heads),
            hidden=_given(self.hidden, _hidden(dim)),
            vocab_size=_given(self.vocab_size, vocab_size),
            padded_vocab_size=_given(self.padded_vocab_size, padded_vocab_size),
            window=_given(self.window, _window(self.seq_len)),
            lora_alpha=self.lora_alpha
            if self.lora_alpha is not None or not self.lora_rank
            else 2.0 * self.lora_rank,
        )
        derived._check(vocab_size)
        return derived

    def _check(self, tokenizer_vocab: int) -> None:
        s = self.sizes
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim is {self.head_dim}", "RoPE needs an even size")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ConfigError(
                f"model.rope_factors has {len(self.rope_factors)} numbers, head_dim is "
                f"{self.head_dim}",
                f"give {self.head_dim // 2}, or leave it out",
            )
        if s.heads % s.kv_heads:
            raise ConfigError(
                f"model.kv_heads is {s.kv_heads}, which does not divide model.heads {s.heads}",
                "choose a divisor",
            )
        self._check_lora()
        if s.vocab < tokenizer_vocab:
            raise ConfigError(
                f"model.vocab_size is {s.vocab}, below the tokenizer's {tokenizer_vocab}",
                "leave it out",
            )
        if s.padded_vocab < s.vocab:
            raise ConfigError(
                f"model.padded_vocab_size is {s.padded_vocab}, below vocab_size {s.vocab}",
                "leave it out",
            )
        if not self.window_pattern or set(self.window_pattern) - {"L", "S"}:
            raise ConfigError(
                f"model.window_pattern is {self.window_pattern!r}", "use L and S only, e.g. SSSL"
            )
        if self.depth % len(self.window_pattern):
            raise ConfigError(
                f"model.window_pattern {self.window_pattern!r} does not tile depth {self.depth}",
                "use a length that divides the depth",
            )

    def _check_lora(self) -> None:
        """Raises ConfigError for adapters that cannot be, and options of ones that are not."""
        if not self.lora_rank and (
            self.lora_alpha is not None or self.lora_targets != LORA_TARGETS
        ):
            raise ConfigError(
                "model.lora_alpha and lora_targets have no effect while model.lora_rank is 0",
                "give --lora-rank, or leave them out",
            )
        smallest = min(self.sizes.dim, self.sizes.kv_heads * self.head_dim, self.sizes.hidden)
        if self.lora_rank > smallest:
            raise ConfigError(
                f"model.lora_rank is {self.lora_rank}, the smallest matrix has {smallest} columns",
                "use a smaller rank, e.g. 8, or train the whole model",
            )
        unknown = [name for name in self.lora_targets if name not in LORA_TARGETS]
        if unknown or not self.lora_targets:
            why = ""
            if unknown and unknown[0] in ("head", "embed"):
                why = ", one table for embedding and head" if self.tied else ", outside the blocks"
            named = f"names {unknown[0]!r}{why}" if unknown else "is empty"
            raise ConfigError(
                f"model.lora_targets {named}", f"use some of {', '.join(LORA_TARGETS)}"
            )

    @property
    def lora_scale(self) -> float:
        """Factor of the adapters' products, of a derived model that has them."""
        return float(0.0 if self.lora_alpha is None else self.lora_alpha) / max(1, self.lora_rank)

    def without_adapters(self) -> "GPTConfig":
        """The model that adapters are merged into."""
        return replace(self, lora_rank=0, lora_alpha=None, lora_targets=LORA_TARGETS)

    @property
    def sizes(self) -> "Sizes":
        """The derived sizes as plain integers; only after `derive()`."""
        values = (self.dim, self.heads, self.kv_heads, self.hidden)
        values += (self.vocab_size, self.padded_vocab_size, self.window)
        if any(v is None for v in values):
            raise ConfigError("model sizes are not derived yet", "call GPTConfig.derive() first")
        return Sizes(*(int(v) for v in values if v is not None))


@dataclass(frozen=True)
class Sizes:
    """Derived sizes of a `GPTConfig`."""

    dim: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    padded_vocab: int
    window: int


SIZES = ("dim", "heads", "kv_heads", "hidden", "window", "vocab_size", "padded_vocab_size")
"""Fields that `derive()` fills."""


def plain_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields without those of adapters: the model that they are merged into."""
    return {name: value for name, value in fields.items() if not name.startswith("lora_")}


DIALS = ("depth", "aspect_ratio", "head_dim", "dim", "heads", "seq_len")
"""Fields that others follow from."""


def without_derived(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved model without the sizes that follow from others in it, to be derived again.

    What differs from the derived value was chosen by somebody, and stays. A preset that leaves
    out any of `SIZES` is not a resolved one, and comes back as it is.
    """
    # A bool is an int, and no size.
    if not all(type(fields.get(name)) is int for name in (*SIZES, *DIALS)):
        return dict(fields)
    dim, heads, hidden = fields["dim"], fields["heads"], fields["hidden"]
    derived = {
        "dim": _up(fields["depth"] * fields["aspect_ratio"], fields["head_dim"] or 1),
        "heads": max(1, dim // (fields["head_dim"] or 1)),
        "kv_heads": heads,
        # Runs of before rounded all hidden sizes to multiples of 128.
        "hidden": hidden if hidden in (_hidden(dim), _up(-(-8 * dim // 3), 128)) else None,
        "window": _window(fields["seq_len"]),
    }
    follow = {name for name, value in derived.items() if fields[name] == value}
    return {name: value for name, value in fields.items() if name not in follow}


def _hidden(dim: int) -> int:
    hidden = _up(-(-8 * dim // 3), 128)
    return hidden if hidden <= 1024 else _up(hidden, 256)


def _window(seq_len: int) -> int:
    return _up(-(-seq_len // 4), 128)


def _up(size: int, multiple: int) -> int:
    """The size, rounded up to a multiple."""
    return -(-size // multiple) * multiple


def _given(value: int | None, derived: int) -> int:
    """The value of a field, or the derived one where it was left out."""
    return derived if value is None else value
