"""Training step against the matrix product of the same dtype, timed in turn in one run.

    python tests/benchmarks/train_step.py [--quick] [--optimizer adamw|muon]

Shape: depth 4, dim 256, 4 heads x 64, T 512, B 8, SwiGLU 768, untied head, V 8192 and 32768,
fp32 and bf16 compute, `gchat.train_step` itself (clip 1.0 and optimizer included). FLOPs per token
= 6 x matmul parameters + 6·L·T·D (the causal half of attention); `gflops_full_square` counts
attention whole, as some peers do. The limit is the rate of a 2048^3 matrix product by XLA;
the aim is a ratio of at least 0.6 in fp32 on CPU (issue 2). `step_breakdown` times the loss, the
loss with gradients, and the whole step; on CPU `dispatch_ms` includes work done inline.
On GPU and TPU the same file adds `mfu` against the chip's stated peak.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import harness

B, T = 8, 512


def make_step(vocab: int, dtype: str, optimizer: str) -> dict[str, Callable]:
    """Callables that each run once and wait: `step`, `loss`, `grads`; and the FLOPs of a step."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from gaia import parallel
    from gaia.kernels.cross_entropy import cross_entropy
    from gaia.optim import OptimConfig
    from gchat.config import TrainConfig, TrainingConfig
    from gchat.model import GPTConfig, flops_per_token
    from gchat.train_step import init_state, make_train_step

    unroll = 4 if jax.default_backend() == "cpu" else 1
    model = GPTConfig(
        depth=4, dim=256, heads=4, head_dim=64, seq_len=T, qk_norm=False, init="gpt2",
        compute_dtype=dtype, scan_unroll=unroll,
    ).derive(vocab, vocab)  # fmt: skip
    config = TrainConfig(
        model=model,
        optim=OptimConfig(name=optimizer),
        training=TrainingConfig(batch_size=B, steps=10_000, loss_chunk=1024),
    )
    mesh = parallel.make_mesh()
    graph, state = init_state(config, mesh)
    train_step = make_train_step(graph, config, mesh)
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, vocab)
    targets = jnp.roll(tokens, -1, axis=1)

    def mean_loss(params):
        gpt = nnx.merge(graph, params)
        x_ND = gpt(tokens)[0].reshape(B * T, -1)
        total, count = cross_entropy(
            x_ND, gpt.head_kernel, targets.reshape(-1), vocab_size=vocab, chunk=1024
        )
        return total / count

    loss, grads = jax.jit(mean_loss), jax.jit(jax.grad(mean_loss))
    box = {"state": state, "dispatch": []}

    def step():
        began = time.perf_counter()
        box["state"], metrics = train_step(box["state"], tokens, targets)
        box["dispatch"].append(time.perf_counter() - began)
        jax.block_until_ready((box["state"], metrics))

    full_square = flops_per_token(model) + 6 * model.depth * T * model.sizes.dim
    return {
        "step": step,
        "loss": lambda: jax.block_until_ready(loss(box["state"].params)),
        "grads": lambda: jax.block_until_ready(grads(box["state"].params)),
        "flops": lambda: flops_per_token(model) * B * T,
        "flops_full_square": lambda: full_square * B * T,
        "dispatch_ms": lambda: 1e3 * statistics.median(box["dispatch"]),
    }


def make_matmul(dtype: str) -> Callable[[], None]:
    """One 2048^3 product, waited for."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(a, a).block_until_ready()


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def row(vocab: int, dtype: str, steps: int, args: argparse.Namespace) -> tuple[dict, dict]:
    """One line of the table, and the breakdown of its step in ms."""
    ours, product = make_step(vocab, dtype, args.optimizer), make_matmul(dtype)
    for call in (ours["step"], ours["step"], product, ours["loss"], ours["grads"]):
        call()  # compile and warm up
    step_s, product_s, loss_s, grads_s = [], [], [], []
    for i in range(steps):
        product_s.append(seconds(product))
        step_s.append(seconds(ours["step"]))
        if i % max(1, steps // 5) == 0:
            loss_s.append(seconds(ours["loss"]))
            grads_s.append(seconds(ours["grads"]))
    flops = ours["flops"]()
    matmul = [2 * 2048**3 / s / 1e9 for s in product_s]
    gflops = [flops / s / 1e9 for s in step_s]
    ratios = [g / m for g, m in zip(gflops, matmul, strict=True)]
    result = {
        "vocab": vocab,
        "dtype": dtype,
        **harness.spread("tokens_per_s", [B * T / s for s in step_s]),
        **harness.spread("gflops", gflops),
        **harness.spread("matmul_gflops", matmul),
        **harness.spread("ratio_to_matmul", ratios, 3),
        "gflops_full_square": round(
            statistics.median(gflops) * ours["flops_full_square"]() / flops, 1
        ),
        "dispatch_ms": round(ours["dispatch_ms"](), 2),
    }  # fmt: skip
    loss_ms, grads_ms, step_ms = (1e3 * statistics.median(x) for x in (loss_s, grads_s, step_s))
    breakdown = {
        "forward_ms": round(loss_ms, 1),
        "backward_ms": round(grads_ms - loss_ms, 1),
        "optimizer_ms": round(step_ms - grads_ms, 1),
        "step_ms": round(step_ms, 1),
    }
    return result, breakdown


def main(args: argparse.Namespace) -> dict:
    """Times every row; `--quick` takes V 8192 only."""
    from gaia.runtime import peak_flops, start

    machine = start()
    steps = 5 if args.quick else 20
    rows, breakdowns = [], {}
    print(f"{'vocab':>6} {'dtype':9} {'tok/s':>8} {'GFLOP/s':>8} {'matmul':>8} {'ratio':>6}")
    for vocab in (8192,) if args.quick else (8192, 32768):
        for dtype in ("float32", "bfloat16"):
            r, breakdown = row(vocab, dtype, steps, args)
            if machine.platform != "cpu":
                r["mfu"] = round(1e9 * r["gflops"] / peak_flops(machine, dtype)[0], 4)
            rows.append(r)
            breakdowns[f"{vocab}/{dtype}"] = breakdown
            print(
                f"{vocab:>6} {dtype:9} {r['tokens_per_s']:>8.0f} {r['gflops']:>8.1f} "
                f"{r['matmul_gflops']:>8.1f} {r['ratio_to_matmul']:>6.2f}  {breakdown}",
                flush=True,
            )
    mfu = {"mfu": max(r["mfu"] for r in rows)} if machine.platform != "cpu" else {}
    return {"rows": rows, "step_breakdown": breakdowns, "optimizer": args.optimizer, **mfu}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")


if __name__ == "__main__":
    harness.run(main, __doc__, _arguments)
