"""The engine: decoding against nanochat's own engine in turn, and the share of memory bandwidth.

    python tests/benchmarks/engine.py [--nanochat DIR] [--python TORCH_PYTHON] [--quick]

Decoding reads every weight once per step, so the limit is the memory's bandwidth: `read_gb_per_s`
is (bytes of weights + keys and values attended) x steps per second, and
`hbm_or_ram_bandwidth_share` is that over the bandwidth of a copy with as many threads as cores,
measured in the same run (bytes read plus written). A model that fits the processor's caches may
exceed 1: these shapes are nanochat's, of 22 and 47 MB; `smollm2` has SmolLM2-135M's sizes, and
random weights.

Shapes of `nanochat` rows: depth 4, width 256, 4 heads, 64 tokens of prompt, 200 new ones,
temperature 1, top-k 50, one prompt and as many samples as the batch. Each side lives in a process
of its own and generates only when told to, so that rounds alternate (A B A B) and never overlap;
rates are medians with the fastest and slowest round beside them. DIR is a checkout of
karpathy/nanochat and TORCH_PYTHON has torch; without either that side is left out, and the result
says why. nanochat runs eagerly, as its engine does.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import harness

PROMPT, NEW, TOP_K = 64, 200, 50
NANOCHAT = {"depth": 4, "dim": 256, "heads": 4, "kv_heads": 4, "hidden": 768, "tied": False}
SMOLLM2 = {"depth": 30, "dim": 576, "heads": 9, "kv_heads": 3, "hidden": 1536, "tied": True}


def ours(shape: dict, vocab: int, batch: int, form: str) -> tuple[Callable, dict]:
    """A function that generates once with this project's engine, and facts of the model."""
    import jax
    from flax import nnx

    from gaia.runtime import start
    from gchat.engine.engine import Engine
    from gchat.engine.requests import Request, SamplingConfig
    from gchat.model import GPT
    from gchat.model_config import GPTConfig

    start()
    config = GPTConfig(
        **shape, head_dim=64, seq_len=PROMPT + NEW, compute_dtype="float32", init="gpt2"
    ).derive(vocab, vocab)
    graph, state = nnx.split(GPT(config, rngs=nnx.Rngs(0)))
    weights, _, kv = form.partition("+")
    engine = Engine(
        graph, nnx.to_pure_dict(state), seq_len=config.seq_len, stop_ids=(), slots=batch,
        weights=weights, kv="int8" if kv else None,
    )  # fmt: skip
    del state
    matrices = {k: v for k, v in engine._params.items() if config.tied or k != "embed"}
    prompt = list(range(1, PROMPT + 1))
    seeds = iter(range(10**9))

    def generate() -> tuple[float, float]:
        sampling = SamplingConfig(1.0, top_k=TOP_K, seed=next(seeds))
        engine._scheduler.slots.forget()  # each round reads its prompt
        began, first, count = time.perf_counter(), 0.0, 0
        for event in engine.submit(Request(prompt, NEW, sampling, n=batch)):
            first = first or time.perf_counter() - began
            count += len(event.ids)
        assert count == batch * NEW
        return time.perf_counter() - began, first

    kv_bytes = 1 if kv else 4
    attended = 2 * config.depth * config.sizes.kv_heads * 64 * kv_bytes * (PROMPT + NEW / 2)
    return generate, {
        "weight_bytes": sum(a.nbytes for a in jax.tree.leaves(matrices)),
        "kv_bytes": int(batch * attended),
    }


def theirs(shape: dict, vocab: int, batch: int, form: str) -> tuple[Callable, dict]:
    """The same with nanochat's engine and model."""
    import torch
    from nanochat.engine import Engine
    from nanochat.gpt import GPT, GPTConfig

    del form  # nanochat reads its dtype from the environment
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            sequence_len=PROMPT + NEW, vocab_size=vocab, n_layer=shape["depth"],
            n_head=shape["heads"], n_kv_head=shape["kv_heads"], n_embd=shape["dim"],
            window_pattern="L",
        )
    )  # fmt: skip
    model.init_weights()
    model.eval()

    class Tokenizer:
        """Names specials by ids that the model does not have: no row ends early."""

        def encode_special(self, name: str) -> int:
            return vocab + 1

        def get_bos_token_id(self) -> int:
            return vocab + 2

    engine = Engine(model, Tokenizer())
    prompt = list(range(1, PROMPT + 1))

    def generate() -> tuple[float, float]:
        began, first, count = time.perf_counter(), 0.0, 0
        options = {"num_samples": batch, "max_tokens": NEW, "temperature": 1.0, "top_k": TOP_K}
        for column, _ in engine.generate(prompt, **options):
            first = first or time.perf_counter() - began
            count += len(column)
        assert count == batch * NEW
        return time.perf_counter() - began, first

    return generate, {"torch": torch.__version__}


def work(side: str, arguments: str) -> None:
    """The worker process: one line in, one generation, one line out."""
    generate, facts = {"ours": ours, "theirs": theirs}[side](**json.loads(arguments))
    for _ in sys.stdin:
        seconds, first = generate()
        print("answer " + json.dumps({"seconds": seconds, "first": first} | facts), flush=True)


class Worker:
    """A process that generates once per line it is sent."""

    def __init__(self, python: str, side: str, args: argparse.Namespace, **arguments):
        path = os.pathsep.join([str(args.nanochat or ""), str(harness.ROOT)])
        self.process = subprocess.Popen(
            [python, __file__, "--worker", side, json.dumps(arguments)],
            env=os.environ | {"PYTHONPATH": path, "NANOCHAT_DTYPE": "float32"},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
        )  # fmt: skip

    def generate(self) -> dict:
        """Seconds and facts of one generation; raises RuntimeError if the process died."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # reported below, with the status
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"worker ended with status {self.process.wait()}; see --verbose")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def copy_gb_per_s() -> float:
    """Bytes read plus written per second by a copy that all cores share, in GB/s; the best of 5."""
    import numpy as np

    cores = os.cpu_count() or 1
    size = 2**28 // cores
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(cores)]
    best = float("inf")
    for _ in range(5):
        threads = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - began)
    return 2 * size * cores / best / 1e9


def measure(args: argparse.Namespace, name: str, vocab: int, batch: int, forms, rounds: int):
    """Rows of one shape: each format of ours, and nanochat at its own shape, in turn."""
    shape = {"nanochat": NANOCHAT, "smollm2": SMOLLM2}[name]
    arguments = {"shape": shape, "vocab": vocab, "batch": batch}
    workers = {form: Worker(sys.executable, "ours", args, form=form, **arguments) for form in forms}
    if name == "nanochat" and args.theirs:
        workers["theirs"] = Worker(args.python, "theirs", args, form="float32", **arguments)
    answers: dict[str, list[dict]] = {side: [] for side in workers}
    bandwidths = []
    try:
        for worker in workers.values():
            worker.generate()  # compile and warm up, one side at a time
        for _ in range(rounds):
            bandwidths.append(copy_gb_per_s())
            for side, worker in workers.items():
                answers[side].append(worker.generate())
    finally:
        for worker in workers.values():
            worker.close()
    rows = [
        row(name, vocab, batch, side, answers[side], statistics.median(bandwidths))
        for side in workers
    ]
    if "theirs" in workers:
        base = next(r for r in rows if r["side"] == "nanochat")["tokens_per_s"]
        for r in rows:
            r["ratio_to_nanochat"] = round(r["tokens_per_s"] / base, 2)
    return rows


def row(name: str, vocab: int, batch: int, side: str, answers: list[dict], copied: float) -> dict:
    """The figures of one side."""
    rates = [batch * NEW / a["seconds"] for a in answers]
    result = {
        "shape": name,
        "vocab": vocab,
        "batch": batch,
        "side": "nanochat" if side == "theirs" else "ours",
        "form": "float32" if side == "theirs" else side,
        **harness.spread("tokens_per_s", rates),
        **harness.spread("ttft_ms", [1e3 * a["first"] for a in answers]),
    }
    if side != "theirs":
        step = statistics.median((a["seconds"] - a["first"]) / (NEW - 1) for a in answers)
        read = (answers[0]["weight_bytes"] + answers[0]["kv_bytes"]) / step / 1e9
        result |= {
            "read_gb_per_s": round(read, 2),
            "copy_gb_per_s": round(copied, 2),
            "hbm_or_ram_bandwidth_share": round(read / copied, 3),
        }
    return result


def reason_to_skip(args: argparse.Namespace) -> str | None:
    """Says why nanochat cannot be timed here; None where it can."""
    if args.nanochat is None or not (args.nanochat / "nanochat" / "engine.py").is_file():
        return f"--nanochat is {args.nanochat}: no nanochat/engine.py there"
    ran = subprocess.run(
        [args.python, "-c", "import torch, nanochat.engine"],
        env=os.environ | {"PYTHONPATH": str(args.nanochat)}, capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        return f"{args.python} cannot import torch and nanochat: {ran.stderr.strip()[-200:]}"
    return None


def main(args: argparse.Namespace) -> dict:
    """`--quick`: V 8192 only, two formats, three rounds."""
    reason = reason_to_skip(args)
    args.theirs = reason is None
    if reason:
        print(f"nanochat left out: {reason}")
    cases = [("nanochat", v, b) for v in (8192, 32768) for b in (1, 8)]
    cases += [("smollm2", 49152, b) for b in (1, 8, 32)]
    if args.quick:
        cases = cases[:2]
    if args.only:
        cases = [c for c in cases if c[0] == args.only]
    forms = ["float32", "int8"] if args.quick else args.forms
    rows = []
    print(f"{'shape':9} {'vocab':>6} {'batch':>5} {'side':9} {'form':13} tokens/s  ttft ms  share")
    for name, vocab, batch in cases:
        for r in measure(args, name, vocab, batch, forms, 3 if args.quick else args.rounds):
            rows.append(r)
            share, ratio = r.get("hbm_or_ram_bandwidth_share"), r.get("ratio_to_nanochat")
            print(
                f"{name:9} {vocab:>6} {batch:>5} {r['side']:9} {r['form']:13} "
                f"{r['tokens_per_s']:>8.1f} {r['ttft_ms']:>8.1f}  {share if share else '':>5}"
                + (f"  {ratio:.2f}x nanochat" if ratio else ""),
                flush=True,
            )
    return {"rows": rows, "nanochat_left_out": reason}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--forms", nargs="+", default=["float32", "bfloat16", "int8", "int8+kv"])
    parser.add_argument("--only", choices=("nanochat", "smollm2"), help="one of the two shapes")
    parser.add_argument("--rounds", type=int, default=5, help="alternations per row")
    parser.add_argument("--verbose", action="store_true", help="show the workers' messages")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        harness.run(main, __doc__, _arguments)
