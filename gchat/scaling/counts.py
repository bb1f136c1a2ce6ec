"""What a training step asks of one device, counted from sizes: parameters, FLOPs, bytes.

Nothing here knows a chip. Letters: n tokens of a device in one micro-batch, D model, F hidden,
Q query and K key features (heads x head size), V vocabulary; those split over `tensor` are a
device's part.
"""

from dataclasses import dataclass

from gchat.config import TrainConfig
from gchat.model import GPTConfig
from gchat.scaling.layout import Layout, rows_of_device

FP32 = 4


@dataclass(frozen=True)
class Tensor:
    """Parameters of one kind: `count` matrices [rows, cols] (or vectors: rows 1)."""

    group: str
    """matrix, head, embed or gain, as the optimizer groups them."""
    count: int
    rows: int
    cols: int
    per_layer: bool

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return self.count * self.rows * self.cols


def tensors(model: GPTConfig) -> list[Tensor]:
    """Every parameter of a derived model."""
    s, L, H = model.sizes, model.depth, model.head_dim
    D, Q, K = s.dim, s.heads * H, s.kv_heads * H
    found = [
        Tensor("matrix", L, D, Q, True),
        Tensor("matrix", 2 * L, D, K, True),
        Tensor("matrix", L, Q, D, True),
        Tensor("matrix", 2 * L, D, s.hidden, True),
        Tensor("matrix", L, s.hidden, D, True),
        Tensor("gain", 2 * L + 1, 1, D, False),
        Tensor("embed", 1, s.padded_vocab, D, False),
    ]
    if model.qk_norm:
        found.append(Tensor("gain", 2 * L, 1, H, False))
    if not model.tied:
        found.append(Tensor("head", 1, D, s.padded_vocab, False))
    if model.positions == "learned":
        found.append(Tensor("embed", 1, model.seq_len, D, False))
    return found


def all_params(model: GPTConfig) -> int:
    """Every parameter, embeddings and norm gains included."""
    return sum(t.size for t in tensors(model))


def layer_params(model: GPTConfig) -> int:
    """Elements of the matrices of one block."""
    return sum(t.size for t in tensors(model) if t.per_layer) // model.depth


def compute_bytes(model: GPTConfig) -> int:
    """Bytes of one number in the compute dtype."""
    return 2 if model.compute_dtype == "bfloat16" else 4


@dataclass(frozen=True)
class Local:
    """Sizes as one device sees them, in one micro-batch."""

    tokens: int
    layers: int
    heads: int
    dim: int
    query: int
    keys: int
    hidden: int
    vocab: int
    seen: float
    """Keys that a query attends to, on average over tokens and layers."""
    whole_keys: int
    """Key features of all tokens of the device's rows, other devices' parts included."""
    number: int
    """Bytes in the compute dtype."""


def local_sizes(config: TrainConfig, layout: Layout) -> Local:
    """The sizes of one device's part of a derived configuration."""
    model, s = config.model, config.model.sizes
    tokens = rows_of_device(config, layout) * model.seq_len // layout.sequence
    window = min(s.window, model.seq_len)
    mean = {"L": model.seq_len / 2, "S": window - window * window / (2 * model.seq_len)}
    seen = sum(mean[kind] for kind in model.window_pattern) / len(model.window_pattern)
    keys = s.kv_heads * model.head_dim // layout.tensor
    return Local(
        tokens=tokens,
        layers=model.depth,
        heads=s.heads // layout.tensor,
        dim=s.dim,
        query=s.heads * model.head_dim // layout.tensor,
        keys=keys,
        hidden=s.hidden // layout.tensor,
        vocab=s.padded_vocab // layout.tensor,
        seen=seen,
        whole_keys=keys * tokens * layout.sequence,
        number=compute_bytes(model),
    )


def share_of(tensor: Tensor, layout: Layout) -> int:
    """Elements of these parameters on one device."""
    if tensor.group == "gain":
        return tensor.size
    return tensor.size // (layout.weight_shards * layout.tensor)


def state_bytes(config: TrainConfig, layout: Layout) -> tuple[int, int]:
    """Bytes of parameters and of optimizer state on one device, both fp32."""
    muon = config.optim.name == "muon"
    params = optimizer = 0
    for tensor in tensors(config.model):
        share = share_of(tensor, layout)
        params += FP32 * share
        # Muon keeps one average of a block matrix, AdamW two of everything else.
        optimizer += FP32 * share * (1 if muon and tensor.group == "matrix" else 2)
    return params, optimizer
