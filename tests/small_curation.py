"""A small corpus with planted copies, and curations of it, for the tests of `gchat data curate`."""

import json

import numpy as np
import pyarrow as pa

from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options

STEMS = (
    "ship", "line", "sail", "port", "wind", "sea", "crew", "map", "gun", "deck", "sky", "rope",
    "mast", "tide", "oar", "bell", "fog", "net",
)  # fmt: skip
COMMON = ("the", "of", "and", "to")


def words(rng, count):
    """A vocabulary of 18 * 18 words is enough for 5-grams never to repeat."""
    pairs = rng.integers(0, len(STEMS), (count, 2))
    return [f"{STEMS[a]}{STEMS[b]}" if a % 3 else COMMON[b % 4] for a, b in pairs]


def document(rng, count=90):
    w = words(rng, count)
    return " ".join(" ".join(w[i : i + 15]).capitalize() + "." for i in range(0, count, 15))


def edited(rng, text, edits=2):
    w = text.split()
    for i in rng.choice(len(w), edits, replace=False):
        w[i] = "changed"
    return " ".join(w)


def write_corpus(folder, files=3, documents=40, seed=0):
    """Files of documents; each file's first is copied exactly and nearly into the next ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    first = document(rng)
    kinds = {"fresh": 0, "exact": 0, "near": 0, "bad": 0}
    for f in range(files):
        rows = [{"text": document(rng), "id": f"{f}-{i}", "url": "https://a.example/x"}
                for i in range(documents)]  # fmt: skip
        kinds["fresh"] += documents
        if f == 0:
            rows.append({"text": first, "id": "first"})
            kinds["fresh"] += 1
        else:
            rows += [{"text": first.upper(), "id": "x"}, {"text": edited(rng, first), "id": "n"}]
            kinds["exact"] += 1
            kinds["near"] += 1
        rows += [{"text": "Too short.", "id": "s"}]
        kinds["bad"] += 1
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{f}.jsonl").write_text(lines)
    return kinds


def run(tmp_path, out="out", **options):
    given = {"input": str(tmp_path / "in"), "workers": 1} | options
    return curate(Options(out=tmp_path / out, **given), progress=False)


def written(folder):
    found = []
    for part in sorted(folder.glob("part-*.jsonl.zst")):
        with pa.input_stream(str(part), compression="zstd") as stream:
            found += [json.loads(line) for line in stream.read().splitlines()]
    return found


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def removed(report):
    return {rule["rule"]: rule["documents"] for rule in report["removed"]}
