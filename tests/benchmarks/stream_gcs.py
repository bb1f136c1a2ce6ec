"""Streaming through the shard cache from a fake Google Cloud Storage, beside direct gs:// reading.

    rows           one epoch from an empty cache, with 0, 20 and 50 ms before each answer's first
                   byte; direct reading of the same tokens (one row a record, Grain's shuffle, 16
                   threads, as MaxText does it) in turn with it: A B A B
    wait_share     time spent waiting for batches over step time, at the consumption of a v6e-8
                   (0.4 Mtok/s), 50 ms, 2 Gbit/s; the first batch is left out
    first_batch_s  the first batch from an empty cache with shards and window of the default size,
                   50 ms, 2 Gbit/s: all four shards of the first window are needed for it

The limit of streaming is the link: 2 Gbit/s carry 125 Mtok/s of uint16, or 170 as zstd leaves them.
What is seen below that is decompression (0.6 GB/s) and the loader (see loader.py). The limit of
direct reading is threads / latency: 16 / 20 ms = 800 rows/s = 1.6 Mtok/s. The service is a Python
process on this machine that shares its cores with the reader, so absolute rates are lower bounds;
requests and bytes are exact. It has never run against the real service.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import harness

SEQ_LEN, BATCH = 2048, 32
LATENCIES_MS = (0, 20, 50)
CONSUMPTION = 0.4e6  # tokens/s of a v6e-8
LINK = 250e6  # 2 Gbit/s
SERVICE_LATENCY_S = 0.05
BUCKET = "gs://gaia-test"
DIRECT_THREADS = 16


def main(args: argparse.Namespace) -> dict:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fakes.gcs import spawn

    with tempfile.TemporaryDirectory(prefix="gaia-stream-") as folder, spawn() as fake:
        os.environ.update(fake.environment)
        data = _prepare(Path(folder), 12, 1 << 20)
        rows = [_row(fake, data, Path(folder), ms, args.quick) for ms in LATENCIES_MS]
        for row in rows:
            print(
                f"{row['latency_ms']:3d} ms: {row['tokens_per_s'] / 1e6:6.1f} Mtok/s, "
                f"{row['gets_per_record']:.4f} GETs a row, {row['bytes_ratio']:.3f} x the bytes; "
                f"direct {row['direct_tokens_per_s'] / 1e6:.2f} Mtok/s, "
                f"{row['direct_gets_per_record']:.2f} GETs a row: {row['ratio']:.0f} times as fast",
                flush=True,
            )
        fake.control({"faults": {"latency_s": SERVICE_LATENCY_S, "bandwidth": LINK}})
        wait = _wait_share(data, Path(folder), 15.0 if args.quick else 60.0)
        print(f"waiting at {CONSUMPTION / 1e6} Mtok/s: {wait['wait_share']:.3%} of the step time")
        first = _first_batch(fake, Path(folder))
        print(
            f"first batch from an empty cache: {first['first_batch_s']:.2f} s for "
            f"{first['first_batch_bytes'] / 1e6:.0f} MB"
        )
    return {"rows": rows, **wait, **first}


def _documents(tokens: int, vocab: int):
    rng = np.random.default_rng(0)
    while tokens > 0:
        document = np.minimum(rng.zipf(1.3, size=int(rng.integers(500, 3000))), vocab - 2)
        document[0] = vocab - 1
        tokens -= len(document)
        yield document


def _prepare(folder: Path, shards: int, shard_tokens: int) -> str:
    """Uploads one data set twice: as shards of long chunks, and as one record a row."""
    from array_record.python import array_record_module

    from gaia.data.manifest import TokenizerInfo
    from gaia.data.rows import TokenRows
    from gaia.data.shards import write_shards
    from gaia.storage import gcs
    from gchat.data.upload import upload

    info = TokenizerInfo("bpe", "0" * 64, 8192, 8192, 8191)
    local = folder / "data"
    documents = _documents(shards * shard_tokens, 8192)
    write_shards(
        local, documents, _documents(5000, 8192), info, shard_tokens=shard_tokens, window=3
    )
    upload(local, f"{BUCKET}/data", progress=False)
    rows = TokenRows(local, "train", SEQ_LEN)
    writer = array_record_module.ArrayRecordWriter(str(folder / "rows"), "group_size:1,zstd")
    ids = np.arange(min(len(rows), 4000))
    inputs_BT, targets_BT = (a.astype(rows.manifest.tokenizer.dtype) for a in rows.gather(ids)[:2])
    for inputs_T, targets_T in zip(inputs_BT, targets_BT, strict=True):
        writer.write(inputs_T.tobytes() + targets_T[-1:].tobytes())
    writer.close()
    rows.close()
    gcs.write(f"{BUCKET}/rows", (folder / "rows").read_bytes())
    return f"{BUCKET}/data"


def _row(fake, data: str, folder: Path, latency_ms: int, quick: bool) -> dict:
    """Streaming and direct reading in turn."""
    fake.control({"faults": {"latency_s": latency_ms / 1e3}})
    streamed, direct, counts = [], [], {}
    for number in range(2 if quick else 5):
        cache = folder / f"cache-{latency_ms}-{number}"
        _settle(fake)
        fake.control({"reset_stats": True})
        rate, rows, useful = _stream(data, cache)
        streamed.append(rate)
        stats = fake.control()
        counts["gets_per_record"] = round(stats["gets"] / rows, 5)
        counts["bytes_ratio"] = round(stats["bytes"] / useful, 4)
        rate, gets = _direct(fake, 3.0 if quick else 8.0)
        direct.append(rate)
        counts["direct_gets_per_record"] = round(gets, 3)
    row = {"latency_ms": latency_ms, **counts}
    row |= harness.spread("tokens_per_s", streamed, 0)
    row |= harness.spread("direct_tokens_per_s", direct, 0)
    return row | {"ratio": round(row["tokens_per_s"] / row["direct_tokens_per_s"], 2)}


def _settle(fake) -> None:
    """Waits until the threads of the direct reader before have ended: their bytes are not ours."""
    before, now = None, fake.control()
    while before != now:
        time.sleep(0.3)
        before, now = now, fake.control()


def _stream(data: str, cache: Path) -> tuple[float, int, int]:
    """Tokens/s of one epoch from an empty cache, rows read, and bytes of its shards."""
    from gaia.data.loader import make_loader
    from gaia.data.rows import CacheOptions

    began = time.perf_counter()
    with make_loader(
        data, seq_len=SEQ_LEN, batch_size=BATCH, seed=1, cache=CacheOptions(cache)
    ) as loader:
        steps = int(loader.steps_per_epoch)
        for _ in range(steps):
            next(loader)
        rate = steps * BATCH * SEQ_LEN / (time.perf_counter() - began)
        return rate, steps * BATCH, sum(shard.bytes for shard in loader.rows.shards)


def _direct(fake, seconds: float) -> tuple[float, float]:
    """Tokens/s of shuffled single records straight from the bucket, and GETs per row.

    Grain's threads read single rows here, which are batched behind them: batching first would have
    each thread read a batch in sequence. The first batch fills the pipeline and is not counted.
    """
    import grain

    source = grain.sources.ArrayRecordDataSource([f"{BUCKET}/rows"])
    dataset = (
        grain.MapDataset.source(source)
        .shuffle(seed=1)
        .repeat()
        .map(lambda record: np.frombuffer(record, np.uint16))
        .to_iter_dataset(grain.ReadOptions(num_threads=DIRECT_THREADS, prefetch_buffer_size=64))
        .batch(BATCH)
    )
    iterator = iter(dataset)
    next(iterator)
    fake.control({"reset_stats": True})
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(iterator)
        batches += 1
    took = time.perf_counter() - began
    gets = fake.control()["gets"]
    with contextlib.suppress(AttributeError):
        iterator.close()
    return batches * BATCH * SEQ_LEN / took, gets / (batches * BATCH)


def _wait_share(data: str, folder: Path, seconds: float) -> dict:
    """A consumer that sleeps for what is left of each step."""
    from gaia.data.loader import make_loader
    from gaia.data.rows import CacheOptions

    batch = 64
    step_s = batch * SEQ_LEN / CONSUMPTION
    with make_loader(
        data, seq_len=SEQ_LEN, batch_size=batch, seed=2, cache=CacheOptions(folder / "cache-wait")
    ) as loader:
        next(loader)
        waits = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            next(loader)
            waits.append(time.perf_counter() - asked)
            time.sleep(max(0.0, step_s - waits[-1]))
        took = time.perf_counter() - began
        windows = loader.rows.cache.stats.misses / loader.rows.manifest.window
    return {
        "wait_share": round(sum(waits) / took, 6),
        "wait_ms_max": round(1e3 * max(waits), 2),
        "wait_tokens_per_s": round(len(waits) * batch * SEQ_LEN / took),
        "wait_windows_fetched": windows,
    }


def _first_batch(fake, folder: Path) -> dict:
    """One shard of the default size under four names: it is written once to save time."""
    import dataclasses

    from gaia.data.loader import make_loader
    from gaia.data.manifest import WINDOW, Manifest, TokenizerInfo
    from gaia.data.rows import CacheOptions
    from gaia.data.shards import SHARD_TOKENS, ShardWriter
    from gaia.storage import gcs

    info = TokenizerInfo("gpt2", "0" * 64, 50257, 50304, 50256)
    rng = np.random.default_rng(0)
    block = rng.integers(0, 50257, 1 << 20).astype(np.uint16)
    with ShardWriter(folder / "large", dtype=info.dtype, shard_tokens=None) as writer:
        for _ in range(SHARD_TOKENS >> 20):
            writer.add(block)
            block = np.roll(block, 7)
    shard = writer.shards[0]
    fake.control({"faults": {}})
    target = f"{BUCKET}/large"
    first = gcs.blob(f"{target}/{shard.name}")
    first.upload_from_filename(str(folder / "large" / shard.name))
    shards = [dataclasses.replace(shard, name=f"tokens-{i:05d}.arrayrecord") for i in range(WINDOW)]
    for other in shards[1:]:
        first.bucket.copy_blob(first, first.bucket, f"large/{other.name}")
    val = dataclasses.replace(shard, name="test-tokens.arrayrecord")
    sizes = {"train": 1, "val": 1}
    manifest = Manifest(info, tuple(shards), (val,), sizes, sizes, dtype=info.dtype.name)
    gcs.write(f"{target}/manifest.json", manifest.to_json().encode())
    fake.control({"faults": {"latency_s": SERVICE_LATENCY_S, "bandwidth": LINK}})
    began = time.perf_counter()
    cache = CacheOptions(folder / "cache-first")
    with make_loader(target, seq_len=SEQ_LEN, batch_size=BATCH, seed=1, cache=cache) as loader:
        next(loader)
        took = time.perf_counter() - began
    return {"first_batch_s": round(took, 3), "first_batch_bytes": sum(s.bytes for s in shards)}


if __name__ == "__main__":
    harness.run(main, __doc__)
