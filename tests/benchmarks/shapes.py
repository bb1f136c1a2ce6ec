"""The shapes that benchmarks of the training step share; without jax, for torch's side."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder of width heads x head_dim; SwiGLU's hidden size is 8/3 of it (nanochat: 4 x)."""

    name: str
    depth: int
    heads: int
    head_dim: int
    seq_len: int
    vocab: int
    rows: int
    """Of a batch; where the largest that fits is looked for, the first tried."""
    qk_norm: bool = True

    @property
    def dim(self) -> int:
        """Model width D."""
        return self.heads * self.head_dim

    @property
    def padded_vocab(self) -> int:
        """A multiple of 128."""
        return -(-self.vocab // 128) * 128


def cpu_shape(vocab: int) -> Shape:
    """A shape that a CPU trains in about a second a step."""
    return Shape(
        "d4", depth=4, heads=4, head_dim=64, seq_len=512, vocab=vocab, rows=8, qk_norm=False
    )


# Width 64 a layer in heads of 128, GPT-2's vocabulary: what `--depth` derives, and nanochat's.
SHAPES = {
    "tiny": Shape("tiny", depth=2, heads=2, head_dim=32, seq_len=128, vocab=500, rows=2),
    **{
        f"d{depth}": Shape(f"d{depth}", depth, depth // 2, 128, seq_len=2048, vocab=50257, rows=64)
        for depth in (12, 20, 24)
    },
}
