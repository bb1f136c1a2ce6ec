"""The trainer's shapes on one device, beside nanochat's torch code on the same device.

    python tests/benchmarks/train_step.py --shapes d12,d20,d24 --attention xla,cudnn --packed
        --nanochat DIR --python TORCH_PYTHON

On a GPU or TPU this is what `train_step.py` does by itself. d12, d20 and d24 have width 768, 1280
and 1536 in heads of 128, SwiGLU, GPT-2's vocabulary, seq 2048, bf16 compute, fp32 parameters, Muon:
what `gchat` trains at that `--depth`. Every line is a process of its own, one after the other, that
owns the device: the batch starts at 64 rows and is halved until the step fits. XLA's own attention
(`xla`: blocks of queries, gaia/kernels/attention.py) and cuDNN's flash attention (`cudnn`) are
timed apart; `--packed` adds rows of several documents each, which cuDNN refuses through
jax.nn.dot_product_attention (it takes no segment ids), so that on a GPU they go through XLA.
nanochat trains as its base_train does: torch.compile, its MuonAdamW, full-length attention (FA3
where it can be loaded, else torch's own).

`mfu` counts 6 x matmul parameters + 6·L·T·D FLOPs a token (causal) against the maker's dense bf16
peak, `mfu_full_square` all of attention's square. The aim is 0.55 at d24 on an H100 or H200 and
a `ratio_to_nanochat` above 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import harness
from shapes import SHAPES, Shape
from vs_nanochat import nanochat_step, reason_to_skip

ATTENTION = {"cpu": ("xla",), "gpu": ("xla", "cudnn"), "tpu": ("xla", "splash")}
"""By platform, the slowest first."""
_ANSWER = "answer "
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train_step.py` that are about this."""
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)}; separated by commas")
    parser.add_argument("--attention", help="of xla, cudnn (GPU), splash (TPU)")
    parser.add_argument("--packed", action="store_true", help="rows of several documents too")
    parser.add_argument("--remat", default="none", help="as model.remat")
    parser.add_argument("--rows", type=int, help="of a batch, the first tried")
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--verbose", action="store_true", help="show the workers' messages")


def measure(args: argparse.Namespace, machine: Any) -> dict:
    """Every shape with every attention, then nanochat; one table and one JSON object."""
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(machine.platform, machine.platform)
    shapes = _chosen("--shapes", args.shapes or "d12,d20,d24", tuple(SHAPES))
    known = tuple(sorted({a for row in ATTENTION.values() for a in row}))
    kinds = _chosen("--attention", args.attention or ",".join(ATTENTION[kind]), known)
    for attention in kinds:
        if attention not in ATTENTION[kind]:
            where = {"cudnn": "an NVIDIA GPU", "splash": "a TPU"}[attention]
            _refuse(f"--attention {attention} needs {where}; here is {machine.device_kind}")
    from gaia.runtime import peak_flops

    peak, source = peak_flops(machine, "bfloat16")
    peak /= machine.devices if machine.platform != "cpu" else 1
    skipped = reason_to_skip(args)
    if skipped:
        print(f"nanochat is skipped: {skipped}")
    rows = []
    print("shape  what            rows     tok/s  step ms    MFU  square")
    for name in shapes[:1] if args.quick else shapes:
        for request in _requests(args, name, kinds, kind, skipped is None):
            found = _measured(args, request, SHAPES[name], peak)
            rows.append(found)
            print(_line(found), flush=True)
    return {
        "rows": rows,
        "peak": source,
        "step_breakdown": {f"{r['shape']}/{r['what']}": r.get("breakdown") for r in rows},
        "mfu": max((r["mfu"] for r in rows if _ours(r)), default=None),
        "ratio_to_nanochat": _ratios(rows),
        "nanochat_skipped": skipped,
        "optimizer": args.optimizer or "muon",
    }


def _chosen(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            _refuse(f"{option} has {name!r}: use some of {', '.join(known)}")
    return names


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(2)


def _requests(args, name: str, kinds: list[str], platform: str, nanochat: bool) -> Iterator[dict]:
    common = {"shape": name, "steps": 5 if args.quick else 20}
    ours = common | {"side": "ours", "optimizer": args.optimizer or "muon", "remat": args.remat}
    for attention in kinds:
        yield ours | {"what": attention, "attention": attention, "packed": False}
    if args.packed:
        attention = "splash" if platform == "tpu" else "xla"
        yield ours | {"what": f"{attention}, packed", "attention": attention, "packed": True}
    if nanochat:
        yield common | {"side": "nanochat", "what": "nanochat"}


def largest_fitting(try_rows: Callable[[int], dict | None], first: int) -> dict | None:
    """The first answer for `first` rows, half of that, …; None where even one does not fit."""
    rows = first
    while rows >= 1:
        if (found := try_rows(rows)) is not None:
            return found
        rows //= 2
    return None


def _measured(args: argparse.Namespace, request: dict, shape: Shape, peak: float) -> dict:
    """One line of the table: a worker's answer at the largest batch that fits, and its rates."""
    line = {"shape": request["shape"], "what": request["what"], "dtype": "bfloat16"}
    line |= {"vocab": shape.vocab, "side": request["side"]}
    try:
        found = largest_fitting(
            lambda rows: _worker(args, request | {"rows": rows}), args.rows or shape.rows
        )
    except WorkerFailed as error:
        return line | {"error": str(error)}
    if found is None:
        return line | {"error": "one row does not fit"}
    tokens = found["rows"] * shape.seq_len
    step_s = found.pop("step_s")
    share = [found["flops"] / s / peak for s in step_s]
    square = found["flops_full_square"] / found["flops"]
    return line | found | {
        **harness.spread("tokens_per_s", [tokens / s for s in step_s]),
        **harness.spread("step_ms", [1e3 * s for s in step_s], 2),
        **harness.spread("gflops", [found["flops"] / s / 1e9 for s in step_s]),
        **harness.spread("mfu", share, 4),
        "mfu_full_square": round(statistics.median(share) * square, 4),
    }  # fmt: skip


class WorkerFailed(Exception):
    """A worker ended without an answer that is about memory."""


def _worker(args: argparse.Namespace, request: dict) -> dict | None:
    """Its answer, or None where its batch did not fit."""
    python = args.python if request["side"] == "nanochat" else sys.executable
    path = os.pathsep.join([str(args.nanochat or ""), str(harness.ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "NANOCHAT_DTYPE": "bfloat16"}
    # This process holds a context on the device but no memory (train_step.main), so nearly all of
    # it is the worker's.
    environment |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    environment.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
    done = subprocess.run(
        [python, __file__, "--worker", json.dumps(request)],
        env=environment, text=True, capture_output=True,
    )  # fmt: skip
    if args.verbose:
        print(done.stderr, file=sys.stderr)
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode == 0 and answers:
        return json.loads(answers[-1].removeprefix(_ANSWER)) | {"rows": request["rows"]}
    if any(word in done.stderr for word in _EXHAUSTED):
        return None
    last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
    raise WorkerFailed(f"status {done.returncode}: {last}")


def work(request: dict) -> dict:
    """In a worker: seconds of the steps, FLOPs of one, and where its time goes."""
    from dataclasses import replace

    shape = replace(SHAPES[request["shape"]], rows=request["rows"])
    if request["side"] == "nanochat":
        made = nanochat_step(shape)
    else:
        made = _ours_here(request, shape)
    for _ in range(3):
        made["step"]()  # compile and warm up
    step_s = []
    for _ in range(request["steps"]):
        began = time.perf_counter()
        made["step"]()
        step_s.append(time.perf_counter() - began)
    facts = {name: made[name]() for name in ("flops", "flops_full_square", "params", "peak_gib")}
    return {"step_s": step_s} | facts | made["more"](step_s)


def _ours_here(request: dict, shape: Shape) -> dict[str, Callable]:
    import jax

    from gaia.runtime import start
    from train_step import breakdown_ms, make_matmul, make_step, seconds

    platform = start().platform
    made = make_step(
        shape, "bfloat16", request["optimizer"], attention=request["attention"],
        remat=request["remat"], packed=request["packed"],
    )  # fmt: skip

    def peak_gib() -> float | None:
        stats = jax.local_devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        return peak and round(peak / 2**30, 2)

    def more(step_s: list[float]) -> dict:
        n = 1024 if platform == "cpu" else 8192
        product = make_matmul("bfloat16", n)
        product()
        matmul = [2 * n**3 / seconds(product) / 1e9 for _ in range(5)]
        gflops = made["flops"]() / statistics.median(step_s) / 1e9
        return {
            **harness.spread("matmul_gflops", matmul),
            "ratio_to_matmul": round(gflops / statistics.median(matmul), 3),
            "dispatch_ms": round(made["dispatch_ms"](), 2),
            "breakdown": breakdown_ms(made, step_s, 3),
        }

    return made | {"peak_gib": peak_gib, "more": more}


def _ours(row: dict) -> bool:
    return row["side"] == "ours" and "mfu" in row


def _ratios(rows: list[dict]) -> dict[str, float]:
    """Our best whole-row tokens/s over nanochat's, by shape."""
    theirs = {r["shape"]: r["tokens_per_s"] for r in rows if r["side"] != "ours" and "mfu" in r}
    ours = [r for r in rows if _ours(r) and not r["what"].endswith("packed")]
    return {
        name: round(max(r["tokens_per_s"] for r in ours if r["shape"] == name) / rate, 3)
        for name, rate in theirs.items()
        if any(r["shape"] == name for r in ours)
    }


def _line(r: dict) -> str:
    head = f"{r['shape']:6} {r['what']:14}"
    if "error" in r:
        return f"{head} {r['error']}"
    return (
        f"{head} {r['rows']:>5} {r['tokens_per_s']:>9.0f} {r['step_ms']:>8.1f} {r['mfu']:>6.3f} "
        f"{r['mfu_full_square']:>7.3f}  {r.get('breakdown', '')}"
    )


if __name__ == "__main__":
    print(_ANSWER + json.dumps(work(json.loads(sys.argv[2]))), flush=True)
