"""Text to shards, end to end (read -> encode -> write), in MB of text per second and core.

The text is the documentation of the installed packages (the offline corpus), written to .jsonl and
repeated to the size wanted. The limit is tiktoken: the regular expression that splits words and the
merges inside them (printed beside it, on the same text; 20 MB/s was measured on an idle machine);
reading, shuffling, compressing and checksums come on top. Training the BPE is timed apart.

Memory: two corpora, one four times the other, are each prepared in a process of its own with two
workers; the largest process counts. `rss_slope_mb_per_gb` is what a further gigabyte of text adds,
`rss_20_gib_mb` what follows for 20 GiB (`--quick` leaves this out: it takes minutes).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import harness

VOCAB = 32768
SIZES = (200_000_000, 800_000_000)  # corpora whose preparation is compared in memory


def main(args: argparse.Namespace) -> dict:
    from gchat import tokenizer
    from gchat.data.prepare import prepare
    from gchat.data.sources import docs

    size = 12_000_000 if args.quick else 200_000_000
    texts = _take(docs.documents(), 5_000_000 if args.quick else size)
    with tempfile.TemporaryDirectory(prefix="gaia-tokenize-") as folder:
        root = Path(folder)
        corpus = root / "corpus.jsonl"
        written = _write(corpus, texts, size)
        started = time.perf_counter()
        encoder = tokenizer.train_bpe(texts, VOCAB)
        train_s = time.perf_counter() - started
        encoder.save(root)
        rates, encode_only = [], []
        for repeat in range(3):
            started = time.process_time()
            encoder.encode_batch(texts)
            encode_only.append(_mb(texts) / (time.process_time() - started))
            wall, started = time.perf_counter(), time.process_time()
            prepare(
                source="text",
                input=str(corpus),
                out=root / f"out{repeat}",
                tokenizer=str(root / "tokenizer.json"),
                workers=1,
                progress=False,
            )
            # CPU time, because threads and a shared machine would hide what a core achieves.
            rates.append(written / 1e6 / (time.process_time() - started))
            wall = time.perf_counter() - wall
            print(f"{written / 1e6:.0f} MB in {wall:.1f} s, {rates[-1]:.1f} MB/s per core")
        memory = {} if args.quick else slope(root, texts)
    result = memory | harness.spread("mb_per_s_per_core", rates, 2)
    result |= harness.spread("encode_only_mb_per_s", encode_only, 2)
    result["peak_rss_mb"] = round(_peak_rss_mb(), 1)
    result["train_bpe_s"] = round(train_s, 2)
    result["text_mb"] = round(written / 1e6, 1)
    return result


def slope(root: Path, texts: list[str]) -> dict:
    """Peak memory of the largest process for two sizes of corpus."""
    peaks = []
    for size in SIZES:
        corpus = root / "large.jsonl"
        _write(corpus, texts, size)
        command = [sys.executable, __file__, "--prepare", str(root), str(corpus)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.split()[-1]))
        print(f"{size / 1e6:.0f} MB, 2 workers: {peaks[-1]:.0f} MB in the largest process")
    per_gb = (peaks[1] - peaks[0]) / (SIZES[1] - SIZES[0]) * 1e9
    return {
        "rss_mb": [round(peak, 1) for peak in peaks],
        "rss_text_mb": [size / 1e6 for size in SIZES],
        "rss_slope_mb_per_gb": round(per_gb, 1),
        "rss_20_gib_mb": round(peaks[1] + max(0.0, per_gb) * (20 * 2**30 - SIZES[1]) / 1e9),
    }


def prepare_alone(root: Path, corpus: str) -> None:
    """In a process of its own: prepares and prints the peak of it and its workers in MB."""
    sys.path.insert(0, str(harness.ROOT))
    from gchat.data.prepare import prepare

    prepare(
        source="text",
        input=corpus,
        out=root / "large",
        tokenizer=str(root / "tokenizer.json"),
        workers=2,
        overwrite=True,
        progress=False,
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(max(_peak_rss_mb(), children))


def _take(documents: Generator[str, None, None], chars: int) -> list[str]:
    """Documents until there are that many characters: parsing all of them takes 20 s."""
    taken: list[str] = []
    for document in documents:
        taken.append(document)
        chars -= len(document)
        if chars <= 0:
            break
    documents.close()
    return taken


def _mb(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _write(path: Path, texts: list[str], size: int) -> int:
    """Repeats the texts to about `size` bytes; each repeat is marked, so that none is a copy."""
    written = repeat = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            for text in texts:
                document = f"{repeat}\n{text}"
                file.write(json.dumps({"text": document}) + "\n")
                written += len(document.encode())
                if written >= size:
                    break
            repeat += 1
    return written


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare_alone(Path(sys.argv[2]), sys.argv[3])
    else:
        harness.run(main, __doc__)
