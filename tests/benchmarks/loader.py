"""Tokens per second from local shards: rows of T=512 in batches, int32, as the trainer takes them.

The limit is one core's memory copies: each token is copied three times (row gather in uint16, and
inputs and targets widened to int32), so some 14 bytes move per token and a core that copies 5 GB/s
cannot pass 350 Mtok/s. What is seen below that is the fixed cost of a step (about 0.1 ms of Grain
and NumPy calls), which larger batches spread thinner. `wait_share`, the share of a real training
run spent waiting for data, comes from the run folder of such a run (`--run DIR`).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import harness

VOCAB = 8192
SEQ_LEN = 512
BATCHES = (8, 32, 128)


def main(args: argparse.Namespace) -> dict:
    from gaia.data.loader import make_loader
    from gaia.data.manifest import TokenizerInfo
    from gaia.data.shards import write_shards

    tokens = 1 << (22 if args.quick else 25)
    rng = np.random.default_rng(0)
    info = TokenizerInfo("bpe", "0" * 64, VOCAB, VOCAB, VOCAB - 1)

    def documents(total: int):
        while total > 0:
            document = np.minimum(rng.zipf(1.3, size=int(rng.integers(50, 500))), VOCAB - 2)
            document[0] = info.bos_id
            total -= len(document)
            yield document

    rows = []
    with tempfile.TemporaryDirectory(prefix="gaia-loader-") as folder:
        started = time.perf_counter()
        write_shards(folder, documents(tokens), documents(10_000), info, shard_tokens=tokens // 4)
        write_s = time.perf_counter() - started
        for batch in BATCHES:
            for prefetch in (0, 8):
                with make_loader(
                    folder, seq_len=SEQ_LEN, batch_size=batch, seed=1, prefetch=prefetch
                ) as loader:
                    started = time.perf_counter()
                    next(loader)
                    first_s = time.perf_counter() - started
                    rates = [_rate(loader, batch, args.quick) for _ in range(5)]
                row = {"batch": batch, "prefetch": prefetch, "first_batch_s": round(first_s, 3)}
                row |= harness.spread("tokens_per_s", rates, 0)
                rows.append(row)
                print(
                    f"B={batch:4d} prefetch={prefetch}: {row['tokens_per_s'] / 1e6:6.1f} Mtok/s "
                    f"({row['tokens_per_s_min'] / 1e6:.1f}-{row['tokens_per_s_max'] / 1e6:.1f}), "
                    f"first batch {first_s * 1e3:.0f} ms"
                )
    shown = next(row for row in rows if row["batch"] == 32 and row["prefetch"] == 0)
    return {
        **{key: value for key, value in shown.items() if key.startswith("tokens_per_s")},
        "wait_share": _wait_share(args.run) if args.run else None,
        "write_tokens_per_s": round(tokens / write_s),
        "rows": rows,
    }


def _rate(loader, batch: int, quick: bool) -> float:
    steps = max(20, (1 << (21 if quick else 23)) // (batch * SEQ_LEN))
    started = time.perf_counter()
    for _ in range(steps):
        next(loader)
    return steps * batch * SEQ_LEN / (time.perf_counter() - started)


def _wait_share(run: str) -> float | None:
    """Waiting for data over step time in a run's metrics; the first five steps are left out."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "perf/data_wait_ms" in line and "perf/step_ms" in line][5:]
    total = sum(line["perf/step_ms"] for line in lines)
    return round(sum(line["perf/data_wait_ms"] for line in lines) / total, 6) if total else None


if __name__ == "__main__":
    harness.run(
        main,
        __doc__,
        lambda parser: parser.add_argument("--run", help="run folder to take wait_share from"),
    )
