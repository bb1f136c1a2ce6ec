"""Curation on 50,000 documents of 0.9 KB, of which 10% are near-copies of others.

The documents are drawn from a word bigram of the installed packages' docstrings, so that words have
natural frequencies and no two documents share a sentence. Of the planted copies half have 2.5% of
their words replaced, a quarter 1%, and a quarter a sentence more at either end. A pair is found
when exactly one of the two stays (recall); a removal is right when its document belongs to a
planted pair (precision).

Rates are in CPU seconds of one process. MinHash: words to hashes, 5-grams, signatures of 128
hashes, 32 bands, candidates and clusters. Rules: all families with a document that keeps every one
of them, so that none is spared. The limits: rensa alone makes 21,000 signatures of such passages a
second from words; for the rules it is Python's split and dictionaries.
"""

import argparse
import re
import sys
import time

import numpy as np

import harness

DOCUMENTS = 50_000
COPIES = DOCUMENTS // 10
WORDS = 140


def main(args: argparse.Namespace) -> dict:
    from gchat.data.curation import near, shingles
    from gchat.data.curation.near import Duplicates

    texts, originals = planted(np.random.default_rng(0))
    size = sum(map(len, texts))
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {COPIES:,} near-copies planted")
    options = Duplicates()
    started = time.process_time()
    signatures, bands = [], []
    for first in range(0, len(texts), 512):
        h = shingles.hashed(texts[first : first + 512])
        signatures.append(near.signatures(h, options))
        bands.append(near.band_hashes(signatures[-1], options))
    signed_s = time.process_time() - started
    all_signatures, all_bands = np.concatenate(signatures), np.concatenate(bands, axis=1)
    copies = near.near_copies(
        iter(all_bands), all_signatures.__getitem__, np.ones(len(texts), bool), options.threshold
    )
    minhash_s = time.process_time() - started
    result = quality(copies, originals)
    result["minhash_docs_per_s"] = round(len(texts) / minhash_s)
    result["signature_docs_per_s"] = round(len(texts) / signed_s)
    print(f"recall {result['recall']:.4f}, precision {result['precision']:.4f}")
    print(f"MinHash and clusters: {result['minhash_docs_per_s']:,} documents/s per core")
    result |= rules(texts[: 10_000 if args.quick else None])
    result["documents"], result["text_mb"] = len(texts), round(size / 1e6, 1)
    return result


def rules(texts: list[str]) -> dict:
    """Documents per second through every family of rules, near-duplicates left out."""
    from gchat.data.curation.options import Options
    from gchat.data.curation.removed import Removed
    from gchat.data.curation.stages import Filter
    from gchat.data.sources.unit import Row

    job = Filter(Options(out="unused", input="unused"), None)  # pyright: ignore[reportArgumentType]
    removed = Removed()
    rates, kept = [], 0
    for part in range(3):
        mine = texts[part::3]
        started = time.process_time()
        for first in range(0, len(mine), 512):
            batch = [Row(text, {}) for text in mine[first : first + 512]]
            for rows, _ in job._survivors(batch, removed, frozenset()):
                kept += len(rows)
        rates.append(len(mine) / (time.process_time() - started))
    print(f"rules: {min(rates):,.0f} to {max(rates):,.0f} documents/s per core, {kept:,} kept")
    return harness.spread("filter_docs_per_s", rates, 0) | {"kept_share": kept / len(texts)}


def quality(copies: np.ndarray, originals: np.ndarray) -> dict:
    """Recall and precision; `originals[i]` is what document i was copied from, or -1."""
    planted_at = np.flatnonzero(originals >= 0)
    found = copies[planted_at] != copies[originals[planted_at]]
    paired = np.zeros(len(copies), bool)
    paired[planted_at] = paired[originals[planted_at]] = True
    return {
        "recall": round(float(found.mean()), 5),
        "precision": round(float(paired[copies].mean()), 5),
        "removed": int(copies.sum()),
    }


def planted(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """The documents in random order, and of which document each is a copy (-1: of none)."""
    words, starts, followers = bigram()
    made = sample(rng, starts, followers, DOCUMENTS - COPIES)
    chosen = rng.permutation(len(made))[:COPIES]
    ids = [*made, *(altered(rng, made[c], kind % 4, len(words)) for kind, c in enumerate(chosen))]
    source = np.concatenate([np.full(len(made), -1), chosen])
    order = rng.permutation(len(ids))
    place = np.argsort(order)
    originals = np.where(source[order] >= 0, place[np.maximum(source[order], 0)], -1)
    return [written(words[ids[i]]) for i in order.tolist()], originals


def bigram() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words; where each one's followers begin; the followers."""
    from gchat.data.sources import docs

    taken, chars = [], 0
    generator = docs.documents()
    for document in generator:
        taken.append(document)
        chars += len(document)
        if chars > 3_000_000:
            break
    generator.close()
    text = re.findall(r"[A-Za-z']{1,20}", " ".join(taken).lower())
    words, ids = np.unique(np.array([w for w in text if w.strip("'")]), return_inverse=True)
    order = np.argsort(ids[:-1], kind="stable")
    starts = np.searchsorted(ids[:-1][order], np.arange(len(words) + 1))
    return words, starts, ids[1:][order]


def sample(
    rng: np.random.Generator, starts: np.ndarray, followers: np.ndarray, count: int
) -> list[np.ndarray]:
    """Walks over the bigram, all at once."""
    walks = np.empty((count, WORDS + 40), np.int64)
    walks[:, 0] = rng.choice(followers, count)
    for step in range(1, walks.shape[1]):
        at = walks[:, step - 1]
        room = np.maximum(1, starts[at + 1] - starts[at])
        jump = starts[at] + (rng.random(count) * room).astype(np.int64)
        fresh = rng.choice(followers, count)
        # One step in eight jumps, or walks would fall into the same frequent phrases.
        stays = (rng.random(count) > 0.125) & (starts[at + 1] > starts[at])
        walks[:, step] = np.where(stays, followers[np.minimum(jump, len(followers) - 1)], fresh)
    lengths = rng.integers(WORDS - 40, WORDS + 40, count)
    return [walk[:n] for walk, n in zip(walks, lengths, strict=True)]


def altered(rng: np.random.Generator, ids: np.ndarray, kind: int, vocab: int) -> np.ndarray:
    """A near-copy of one of four kinds."""
    if kind == 3:
        return np.concatenate([rng.integers(0, vocab, 6), ids, rng.integers(0, vocab, 6)])
    copy = ids.copy()
    edits = max(1, round(len(ids) * (0.01 if kind == 2 else 0.025)))
    copy[rng.choice(len(ids), edits, replace=False)] = rng.integers(0, vocab, edits)
    return copy


def written(words: np.ndarray) -> str:
    """Words as sentences of twelve, five to a line."""
    sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
    lines = [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    harness.run(main, __doc__)
