"""The training step against nanochat's own torch code on this machine, in turn: A B A B.

    python tests/benchmarks/vs_nanochat.py --nanochat DIR [--python TORCH_PYTHON] [--quick]

DIR is a checkout of karpathy/nanochat; TORCH_PYTHON has torch and nanochat's requirements (this
interpreter by default). Without either the benchmark says why and reports `skipped`. Both sides
train depth 4, dim 256, 4 heads x 64, T 512, B 8 on the same kind of random tokens: nanochat as
its base_train does it (torch.compile, value embeddings, relu^2, its MuonAdamW), gchat as
`train_step.py` here builds it (AdamW, or `--optimizer muon`). Each side lives in a process of
its own and steps only when told to, so a round of one never overlaps a round of the other.
`ratio` is ours over theirs at the same dtype; `ratio_best` is our best mode over their best mode
at that vocabulary, the figure the project aims to keep above 1.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness
from shapes import Shape, cpu_shape


class Worker:
    """A process that trains one step per line it is sent and answers with the seconds it took."""

    def __init__(self, python: str, side: str, args: argparse.Namespace, vocab: int, dtype: str):
        command = [python, __file__, "--worker", side, str(vocab), dtype, args.optimizer]
        path = os.pathsep.join([str(args.nanochat or ""), str(harness.ROOT)])
        environment = os.environ | {"PYTHONPATH": path, "NANOCHAT_DTYPE": dtype}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not args.verbose else None,
        )  # fmt: skip

    def step(self) -> float:
        """Seconds of one step; raises RuntimeError if the process died."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # reported below, with the status
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        # Libraries print on stdout too; the answer is the line that starts with the mark.
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"worker ended with status {self.process.wait()}; see --verbose")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def ours(vocab: int, dtype: str, optimizer: str):
    """A function that runs one gchat step."""
    from gaia.runtime import start
    from train_step import make_step

    start()
    return make_step(cpu_shape(vocab), dtype, optimizer)["step"]


def theirs(vocab: int, dtype: str, optimizer: str):
    """A function that runs one nanochat step."""
    del dtype, optimizer  # nanochat reads its dtype from the environment and has one optimizer
    return nanochat_step(cpu_shape(vocab))["step"]


def nanochat_step(shape: Shape) -> dict[str, Callable]:
    """`step` as in nanochat's base_train.py, on a GPU where there is one; and facts of it."""
    import torch
    from nanochat import flash_attention
    from nanochat.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GPTConfig(
        sequence_len=shape.seq_len, vocab_size=shape.vocab, n_layer=shape.depth,
        n_head=shape.heads, n_kv_head=shape.heads, n_embd=shape.dim, window_pattern="L",
    )  # fmt: skip
    with torch.device(device):
        model = GPT(config)
        model.init_weights()
    optimizer = model.setup_optimizer()
    compiled = torch.compile(model, dynamic=False)
    tokens = torch.randint(0, shape.vocab, (shape.rows, shape.seq_len), device=device)
    targets = torch.roll(tokens, -1, 1)

    def step():
        loss = compiled(tokens, targets)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()

    count, tokens_of_step = model.num_matmul_params(), shape.rows * shape.seq_len
    square = 12 * shape.depth * shape.seq_len * shape.dim
    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0
    return {
        "step": step,
        "flops": lambda: (6 * count + square // 2) * tokens_of_step,
        "flops_full_square": lambda: (6 * count + square) * tokens_of_step,
        "params": lambda: sum(p.numel() for p in model.parameters()),
        "peak_gib": lambda: round(peak() / 2**30, 2) or None,
        "more": lambda _: {
            "torch": torch.__version__,
            "torch_attention": "fa3" if flash_attention.USE_FA3 else "sdpa",
        },
    }


def work(side: str, vocab: str, dtype: str, optimizer: str) -> None:
    """The worker process."""
    step = {"ours": ours, "theirs": theirs}[side](int(vocab), dtype, optimizer)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(f"seconds {time.perf_counter() - began}", flush=True)


def compare(args: argparse.Namespace, vocab: int, dtype: str, rounds: int) -> dict:
    """Alternates `rounds` times; a round is two steps of one side, then two of the other."""
    workers = {
        "theirs": Worker(args.python, "theirs", args, vocab, dtype),
        "ours": Worker(sys.executable, "ours", args, vocab, dtype),
    }
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    try:
        for worker in workers.values():
            for _ in range(3):
                worker.step()  # compile and warm up, one side at a time
        for _ in range(rounds):
            for side, worker in workers.items():
                seconds[side] += [worker.step(), worker.step()]
    finally:
        for worker in workers.values():
            worker.close()
    tokens = cpu_shape(vocab).rows * cpu_shape(vocab).seq_len
    rates = {side: [tokens / s for s in values] for side, values in seconds.items()}
    return {
        "vocab": vocab,
        "dtype": dtype,
        **harness.spread("ours_tokens_per_s", rates["ours"]),
        **harness.spread("theirs_tokens_per_s", rates["theirs"]),
        "ratio": round(statistics.median(rates["ours"]) / statistics.median(rates["theirs"]), 3),
    }


def reason_to_skip(args: argparse.Namespace) -> str | None:
    """Says why nanochat cannot be timed here; None where it can."""
    if args.nanochat is None or not (args.nanochat / "nanochat" / "gpt.py").is_file():
        return f"--nanochat is {args.nanochat}: no nanochat/gpt.py there"
    check = "import torch, nanochat.gpt; print(torch.__version__)"
    found = subprocess.run(
        [args.python, "-c", check],
        env=os.environ | {"PYTHONPATH": str(args.nanochat)}, capture_output=True, text=True,
    )  # fmt: skip
    if found.returncode:
        return f"{args.python} cannot import torch and nanochat: {found.stderr.strip()[-200:]}"
    print(f"torch {found.stdout.split()[-1]}, nanochat from {args.nanochat}")
    return None


def main(args: argparse.Namespace) -> dict:
    """`--quick`: V 8192 in fp32, three rounds; torch.compile alone takes most of the minute."""
    if (reason := reason_to_skip(args)) is not None:
        print(f"skipped: {reason}")
        return {"rows": [], "skipped": reason}
    vocabs = (8192,) if args.quick else args.vocab
    dtypes = ("float32",) if args.quick else args.dtype
    rows = []
    print(f"{'vocab':>6} {'dtype':9} {'ours':>8} {'nanochat':>8} {'ratio':>6}")
    for vocab in vocabs:
        for dtype in dtypes:
            r = compare(args, vocab, dtype, 3 if args.quick else args.rounds)
            rows.append(r)
            print(
                f"{vocab:>6} {dtype:9} {r['ours_tokens_per_s']:>8.0f} "
                f"{r['theirs_tokens_per_s']:>8.0f} {r['ratio']:>6.2f}",
                flush=True,
            )
    best = {
        str(v): round(
            max(r["ours_tokens_per_s"] for r in rows if r["vocab"] == v)
            / max(r["theirs_tokens_per_s"] for r in rows if r["vocab"] == v),
            3,
        )
        for v in vocabs
    }
    print(json.dumps({"ratio_best": best}))
    return {"rows": rows, "ratio_best": best, "optimizer": args.optimizer}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="ours")
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="alternations per row")
    parser.add_argument("--verbose", action="store_true", help="show the workers' messages")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        harness.run(main, __doc__, _arguments)
