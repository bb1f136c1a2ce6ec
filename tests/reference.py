"""The formulas in NumPy float64, written from the papers and sharing no code with the product.

Letters: B batch, T time, N query heads, K key heads, H head dim, D width, F hidden, V vocabulary.
"""

import math

import numpy as np


def rms_norm(x, gain, eps):
    """Zhang & Sennrich 2019: x / sqrt(mean(x^2) + eps) * gain over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gain


def rope(x_BTNH, positions_BT, theta):
    """Su et al. 2021 with the pairs (i, i + H/2): complex numbers turned by p·theta^(-2i/H)."""
    H = x_BTNH.shape[-1]
    pairs = x_BTNH[..., : H // 2] + 1j * x_BTNH[..., H // 2 :]
    angle = positions_BT[:, :, None] * theta ** (-2.0 * np.arange(H // 2) / H)
    turned = pairs * np.exp(1j * angle)[:, :, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def silu(x):
    return x / (1.0 + np.exp(-x))


def swiglu(x, gate, up, down):
    """Shazeer 2020."""
    return (silu(x @ gate) * (x @ up)) @ down


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(x_BTD, w, *, heads, kv_heads, head_dim, theta=None, eps=1e-6, window=None):
    """Causal self-attention, one head and one query at a time.

    `w` holds q, k, v, out as [in, out] and, for qk-norm, q_norm and k_norm as [H].
    """
    B, T, _ = x_BTD.shape
    q = (x_BTD @ w["q"]).reshape(B, T, heads, head_dim)
    k = (x_BTD @ w["k"]).reshape(B, T, kv_heads, head_dim)
    v = (x_BTD @ w["v"]).reshape(B, T, kv_heads, head_dim)
    if "q_norm" in w:
        q, k = rms_norm(q, w["q_norm"], eps), rms_norm(k, w["k_norm"], eps)
    if theta is not None:
        positions = np.broadcast_to(np.arange(T), (B, T))
        q, k = rope(q, positions, theta), rope(k, positions, theta)
    out = np.zeros((B, T, heads, head_dim))
    for b in range(B):
        for n in range(heads):
            group = n // (heads // kv_heads)
            for t in range(T):
                first = 0 if window is None else max(0, t - window + 1)
                seen = slice(first, t + 1)
                weight = softmax(k[b, seen, group] @ q[b, t, n] / math.sqrt(head_dim))
                out[b, t, n] = weight @ v[b, seen, group]
    return out.reshape(B, T, heads * head_dim) @ w["out"]


def nll(logits, targets):
    """-log softmax(logits)[target]; 0 where the target is negative."""
    top = logits.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    gold = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return np.where(targets >= 0, log_z - gold, 0.0)


def clip_by_global_norm(grads, limit):
    """Pascanu et al. 2013: all gradients scaled together so that their joint norm is <= limit."""
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    return {k: g * min(1.0, limit / norm) for k, g in grads.items()}


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, for one array."""

    def __init__(self, beta1, beta2, eps, decay):
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, p, g, lr):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        return p - lr * (m_hat / (np.sqrt(v_hat) + self.eps) + self.decay * p)


def polar(g):
    """The nearest semi-orthogonal matrix, U V^T of the singular value decomposition."""
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u @ vt


def cosine_share(step, steps, warmup, floor):
    """Linear warm-up, then half a cosine down to `floor` (Loshchilov & Hutter 2017)."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    done = min(1.0, max(0.0, (step + 1 - warmup) / max(1, steps - warmup)))  # 1 at steps - 1
    return rising * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def wsd_share(step, steps, warmup, floor, decay_fraction):
    """Warm-up, stable, linear decay over the last `decay_fraction` of the steps."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    last = steps - 1
    begin = last - round(decay_fraction * steps)
    falling = 1.0 if step < begin else max(0, last - step) / (last - begin)
    return rising * (floor + (1 - floor) * falling)


def normuon(updates, beta2):
    """Li et al. 2025 (NorMuon), for one matrix [in, out]: what it makes of a series of updates.

    Neurons along the longer dim are divided by the root of a running mean of their mean squares;
    each update keeps its Frobenius norm.
    """
    over = 0 if updates[0].shape[1] >= updates[0].shape[0] else 1
    second, made = 0.0, []
    for x in updates:
        second = beta2 * second + (1 - beta2) * np.mean(x**2, axis=over, keepdims=True)
        y = x / np.sqrt(second)
        made.append(y * np.linalg.norm(x) / np.linalg.norm(y))
    return made
