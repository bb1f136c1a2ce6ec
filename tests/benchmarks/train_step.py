"""Training step against the matrix product of the same dtype, and against nanochat on a GPU.

    python tests/benchmarks/train_step.py [--quick] [--optimizer adamw|muon]
    python tests/benchmarks/train_step.py --shapes d12,d20,d24 --attention xla,cudnn [--packed]
        [--nanochat DIR [--python TORCH_PYTHON]]

On CPU: depth 4, dim 256, 4 heads x 64, T 512, B 8, SwiGLU 768, untied head, V 8192 and 32768,
fp32 and bf16 compute, `gchat.train_step` itself (clip 1.0 and optimizer included). FLOPs per token
= 6 x matmul parameters + 6·L·T·D (the causal half of attention); `gflops_full_square` counts
attention whole, as some peers do. The limit is the rate of a 2048^3 matrix product by XLA;
the aim is a ratio of at least 0.6 in fp32 on CPU. `step_breakdown` times the loss and
the optimizer alone; the backward pass is the rest of the step. On CPU `dispatch_ms` includes work
done inline.

On GPU and TPU, or given `--shapes`: `device_shapes.py`, which says what it measures.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from unittest import mock

import harness
from shapes import Shape, cpu_shape


def configuration(shape: Shape, dtype: str, optimizer: str, remat: str, packed: bool):
    """The derived `TrainConfig` of a shape."""
    import jax

    from gaia.optim import OptimConfig
    from gchat.config import DataConfig, TrainConfig, TrainingConfig
    from gchat.model import GPTConfig

    on_cpu = jax.default_backend() == "cpu"
    model = GPTConfig(
        depth=shape.depth, heads=shape.heads, dim=shape.dim, head_dim=shape.head_dim,
        seq_len=shape.seq_len, qk_norm=shape.qk_norm, init="gpt2", compute_dtype=dtype, remat=remat,
        scan_unroll=shape.depth if on_cpu else 1,
    ).derive(shape.vocab, shape.padded_vocab)  # fmt: skip
    return TrainConfig(
        model=model,
        data=DataConfig(packing="best_fit" if packed else "split"),
        optim=OptimConfig(name=optimizer, newton_schulz_dtype="float32" if on_cpu else "bfloat16"),
        training=TrainingConfig(
            batch_size=shape.rows, steps=10_000, loss_chunk=1024 if on_cpu else 4096
        ),
    )  # fmt: skip


def make_step(
    shape: Shape,
    dtype: str,
    optimizer: str,
    *,
    attention: str = "auto",
    remat: str = "none",
    packed: bool = False,
) -> dict[str, Callable]:
    """Callables that each run once and wait: `step`, `loss`, `update`; and facts of a step.

    With `packed` the rows hold documents, each a segment of its own.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from gaia import parallel
    from gaia.data.batch import Batch
    from gaia.kernels.cross_entropy import cross_entropy
    from gchat.model_shape import flops_per_token
    from gchat.train_state import graphdef, init_state, optimizer_of
    from gchat.train_step import make_train_step

    config = configuration(shape, dtype, optimizer, remat, packed)
    model, (B, T) = config.model, (shape.rows, shape.seq_len)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    graph, state = graphdef(config), init_state(config, mesh)
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, shape.vocab)
    targets = jnp.roll(tokens, -1, axis=1)
    places = documents(B, T) if packed else {}
    batch = Batch(tokens, targets, *places.values())

    def mean_loss(params):
        gpt = nnx.merge(graph, params)
        x_ND = gpt(tokens, **places)[0].reshape(B * T, -1)
        total, count = cross_entropy(
            x_ND,
            gpt.head_kernel,
            targets.reshape(-1),
            vocab_size=shape.vocab,
            chunk=config.training.loss_chunk,
        )
        return total / count

    transform = optimizer_of(config)
    train_step = make_train_step(graph, config, mesh)
    # The parameters stand in for gradients: their values do not matter to the time.
    update = jax.jit(lambda s: transform.update(s.params, s.opt_state, s.params))
    loss = jax.jit(mean_loss)
    box = {"state": state, "dispatch": []}

    def chosen(run):
        """`run` with the attention asked for: it is chosen while a program is traced."""

        def call():
            if attention == "auto":
                return run()
            with mock.patch("gaia.kernels.attention._best", lambda *_: attention):
                return run()

        return call

    def step():
        began = time.perf_counter()
        box["state"], metrics = train_step(box["state"], batch)
        box["dispatch"].append(time.perf_counter() - began)
        jax.block_until_ready((box["state"], metrics))

    full_square = flops_per_token(model) + 6 * model.depth * T * model.sizes.dim
    return {
        "step": chosen(step),
        "loss": chosen(lambda: jax.block_until_ready(loss(box["state"].params))),
        "update": lambda: jax.block_until_ready(update(box["state"])),
        "flops": lambda: flops_per_token(model) * B * T,
        "flops_full_square": lambda: full_square * B * T,
        "params": lambda: sum(x.size for x in jax.tree.leaves(box["state"].params)),
        "dispatch_ms": lambda: 1e3 * statistics.median(box["dispatch"]),
    }


def documents(B: int, T: int) -> dict:
    """Positions and segment ids [B, T] of rows of documents of T / 4 tokens in the mean."""
    import jax.numpy as jnp
    import numpy as np

    begins_BT = np.random.default_rng(0).random((B, T)) < 4 / T
    begins_BT[:, 0] = True
    place_BT = np.broadcast_to(np.arange(T), (B, T))
    first_BT = np.maximum.accumulate(np.where(begins_BT, place_BT, 0), axis=1)
    segments_BT = np.cumsum(begins_BT, axis=1)
    return {
        "positions_BT": jnp.asarray(place_BT - first_BT, jnp.int32),
        "segment_ids_BT": jnp.asarray(segments_BT, jnp.int32),
    }


def make_matmul(dtype: str, n: int = 2048) -> Callable[[], None]:
    """One n^3 product, waited for."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(a, a).block_until_ready()


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def breakdown_ms(ours: dict[str, Callable], step_s: list[float], times: int) -> dict[str, float]:
    """Divides a step's time: loss and optimizer timed alone, the backward pass is the rest."""
    ours["loss"](), ours["update"]()  # compile
    parts = {name: [seconds(ours[name]) for _ in range(times)] for name in ("loss", "update")}
    loss_ms, update_ms = (1e3 * statistics.median(parts[name]) for name in ("loss", "update"))
    step_ms = 1e3 * statistics.median(step_s)
    return {
        "forward_ms": round(loss_ms, 1),
        "backward_ms": round(step_ms - loss_ms - update_ms, 1),
        "optimizer_ms": round(update_ms, 1),
        "step_ms": round(step_ms, 1),
    }


def row(vocab: int, dtype: str, steps: int, args: argparse.Namespace) -> tuple[dict, dict]:
    """One line of the table, and the breakdown of its step in ms."""
    shape = cpu_shape(vocab)
    ours, product = make_step(shape, dtype, args.optimizer or "adamw"), make_matmul(dtype)
    for call in (ours["step"], ours["step"], product):
        call()  # compile and warm up
    step_s, product_s = [], []
    for _ in range(steps):
        product_s.append(seconds(product))
        step_s.append(seconds(ours["step"]))
    flops, tokens = ours["flops"](), shape.rows * shape.seq_len
    matmul = [2 * 2048**3 / s / 1e9 for s in product_s]
    gflops = [flops / s / 1e9 for s in step_s]
    ratios = [g / m for g, m in zip(gflops, matmul, strict=True)]
    result = {
        "vocab": vocab,
        "dtype": dtype,
        **harness.spread("tokens_per_s", [tokens / s for s in step_s]),
        **harness.spread("gflops", gflops),
        **harness.spread("matmul_gflops", matmul),
        **harness.spread("ratio_to_matmul", ratios, 3),
        "gflops_full_square": round(
            statistics.median(gflops) * ours["flops_full_square"]() / flops, 1
        ),
        "dispatch_ms": round(ours["dispatch_ms"](), 2),
    }  # fmt: skip
    return result, breakdown_ms(ours, step_s, 2 if args.quick else 4)


def main(args: argparse.Namespace) -> dict:
    """Times every row; `--quick` takes V 8192, or the first of the shapes, only."""
    import device_shapes
    from gaia.runtime import start

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is the workers'
    machine = start()
    if args.shapes or machine.platform != "cpu":
        return device_shapes.measure(args, machine)
    steps = 5 if args.quick else 20
    rows, breakdowns = [], {}
    print(f"{'vocab':>6} {'dtype':9} {'tok/s':>8} {'GFLOP/s':>8} {'matmul':>8} {'ratio':>6}")
    for vocab in (8192,) if args.quick else (8192, 32768):
        for dtype in ("float32", "bfloat16"):
            r, breakdown = row(vocab, dtype, steps, args)
            rows.append(r)
            breakdowns[f"{vocab}/{dtype}"] = breakdown
            print(
                f"{vocab:>6} {dtype:9} {r['tokens_per_s']:>8.0f} {r['gflops']:>8.1f} "
                f"{r['matmul_gflops']:>8.1f} {r['ratio_to_matmul']:>6.2f}  {breakdown}",
                flush=True,
            )
    return {"rows": rows, "step_breakdown": breakdowns, "optimizer": args.optimizer or "adamw"}


def _arguments(parser: argparse.ArgumentParser) -> None:
    import device_shapes

    parser.add_argument("--optimizer", choices=("adamw", "muon"), help="adamw; --shapes: muon")
    device_shapes.add_arguments(parser)


if __name__ == "__main__":
    harness.run(main, __doc__, _arguments)
