"""Measures each packing of a data set: how full its rows are, how fast they come, their cost.

    python tests/benchmarks/packing.py [--data DIR] [--seq-len 512] [--quick]

By packing: rows, fill, documents or pieces a row; `count_ms`, to count the rows of one shard from
lengths.npz when a run starts; `plan_tokens_per_s`, to plan a shard once it is read; and
`tokens_per_s` of the loader, prefetch off, padding not counted. `cut` is the share of documents
that do not lie whole in one row. Without --data, documents of log-normal lengths (median 350).
The aim is 10 Mtok/s for packed rows: a v6e-8 takes 0.4. On CPU `step` compares the update of
benchmarks/train_step.py over rows of one stream with the same over packed rows, taken in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import harness

PACKINGS = ("split", "first_fit", "best_fit", "none")
BATCH = 32


def main(args: argparse.Namespace) -> dict:
    from gaia.data.lengths import LENGTHS, write_lengths
    from gaia.data.manifest import load_manifest

    found = []
    with tempfile.TemporaryDirectory(prefix="gaia-packing-") as folder:
        data = args.data or _synthetic(Path(folder), 1 << (21 if args.quick else 24))
        manifest = load_manifest(data)
        if not (data / LENGTHS).exists():
            write_lengths(data, manifest)
        print("packing     rows     fill  a row    cut  count ms  plan Mtok/s  loader Mtok/s")
        for packing in PACKINGS:
            row = _row(data, manifest, packing, args.seq_len, args.quick)
            found.append(row)
            print(
                f"{packing:9} {row['rows']:7,} {row['fill']:8.2%} {row['examples_per_row']:6.2f} "
                f"{row['cut']:6.1%} {row['count_ms']:9.1f} {row['plan_tokens_per_s'] / 1e6:12.0f} "
                f"{row['tokens_per_s'] / 1e6:7.1f} ({row['tokens_per_s_min'] / 1e6:.1f}-"
                f"{row['tokens_per_s_max'] / 1e6:.1f})"
            )
    best = next(row for row in found if row["packing"] == "best_fit")
    return {
        "tokens_per_s": best["tokens_per_s"],
        "fill": best["fill"],
        "seq_len": args.seq_len,
        "tokens": manifest.tokens("train"),
        "rows": found,
        "step": None if args.no_step else _step(args.quick),
    }


def _synthetic(folder: Path, tokens: int) -> Path:
    from gaia.data.lengths import write_lengths
    from gaia.data.manifest import TokenizerInfo
    from gaia.data.shards import write_shards

    rng = np.random.default_rng(0)
    info = TokenizerInfo("bpe", "0" * 64, 8192, 8192, 8191)

    def documents(total: int) -> Iterator[np.ndarray]:
        while total > 0:
            n = int(np.clip(rng.lognormal(np.log(350), 1.1), 2, 100_000))
            yield np.concatenate([[info.bos_id], rng.integers(0, 8190, n - 1)])
            total -= n

    manifest = write_shards(
        folder, documents(tokens), documents(1000), info, shard_tokens=-(-tokens // 4)
    )
    write_lengths(folder, manifest)
    return folder


def _row(data: Path, manifest, packing: str, seq_len: int, quick: bool) -> dict:
    from gaia.data import packing as packers
    from gaia.data.lengths import read_lengths
    from gaia.data.loader import make_loader
    from gaia.data.shards import read_shard

    # Counted, planned and looked at is the first shard.
    lengths, shard = read_lengths(data, manifest)[0], manifest.train[0]
    tokens, starts, _ = read_shard(data, shard, manifest)
    began = time.perf_counter()
    here = packers.count_rows(*lengths, seq_len, packing)
    count_s = time.perf_counter() - began
    began = time.perf_counter()
    if packing != "split":
        packers.plan(starts, len(tokens), seq_len, packing)
    plan_s = time.perf_counter() - began
    options = {"seq_len": seq_len, "batch_size": BATCH, "seed": 1, "prefetch": 0}
    with make_loader(data, **options, packing=packing) as loader:
        next(loader)  # reads the first window
        for number in loader.order.shards(loader.order.place(0), 1):
            loader.rows._shards.get(number)  # the next window, which is read ahead as a rule
        share = loader.rows.tokens_per_row / seq_len
        rates = [share * _rate(loader, seq_len, quick) for _ in range(5)]
        rows = len(loader.rows)
    ends = np.append(starts[1:], len(tokens))
    if packing == "split":
        pieces = (ends - 1) // seq_len - starts // seq_len + 1
    else:
        pieces = -(-(ends - starts) // seq_len)
    return {
        "packing": packing,
        "rows": rows,
        "fill": round(share, 4),
        "examples_per_row": round(float(pieces.sum()) / here, 2),
        "cut": round(float((pieces > 1).mean()), 4),
        "count_ms": round(1e3 * count_s, 2),
        "plan_tokens_per_s": round(len(tokens) / max(plan_s, 1e-9)) if packing != "split" else 0,
        **harness.spread("tokens_per_s", rates, 0),
    }


def _rate(loader, seq_len: int, quick: bool) -> float:
    steps = max(10, (1 << (19 if quick else 21)) // (BATCH * seq_len))
    began = time.perf_counter()
    for _ in range(steps):
        next(loader)
    return steps * BATCH * seq_len / (time.perf_counter() - began)


def _step(quick: bool) -> dict:
    """Milliseconds of an update over one stream and over packed rows, in turns."""
    from shapes import cpu_shape
    from train_step import make_step

    made = {
        packed: make_step(cpu_shape(8192), "float32", "adamw", packed=packed)
        for packed in (False, True)
    }
    times: dict[bool, list[float]] = {False: [], True: []}
    for i in range(4 if quick else 14):
        for packed, calls in made.items():
            began = time.perf_counter()
            calls["step"]()
            if i > 1:
                times[packed].append(1e3 * (time.perf_counter() - began))
    stream, packed = (statistics.median(times[p]) for p in (False, True))
    print(f"step on CPU: {stream:.0f} ms one stream, {packed:.0f} ms packed, {packed / stream:.3f}")
    return {
        "split_ms": round(stream, 1),
        "packed_ms": round(packed, 1),
        "ratio": round(packed / stream, 3),
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a prepared data set")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--no-step", action="store_true", help="leave out the training step")


if __name__ == "__main__":
    harness.run(main, __doc__, _options)
