"""Text to a finished data set: source -> documents -> tokenizer -> shards -> manifest.

The same parameters give the same shards, byte for byte, whether or not the work was interrupted:
- a document belongs to validation when the hash of its text falls below `val_fraction` (so exact
  copies stay on one side), unless the source has validation text of its own; where that leaves
  none, the document with the lowest hash is taken;
- documents are shuffled by `seed` inside buffers of 128 MiB of text, that is, a small corpus as a
  whole; the loader shuffles again;
- the work is divided into units (groups of files); a finished unit is noted in `.prepare.json` and
  not done again;
- manifest.json is written last.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.errors import ConfigError, DataError, GaiaError
from gaia.manifest import MANIFEST, VERSION, Manifest, load_manifest, write_manifest
from gaia.shards import SHARD_TOKENS, VAL_NAME, WINDOW, ShardWriter, read_shard
from gchat import tokenizer as tokenizers
from gchat.data.sources import climbmix, docs, text
from gchat.data.sources.unit import Corpus, Tally
from gchat.data.work import STATE, State, Work, position, progress_bar
from gchat.tokenizer import Tokenizer

TOKEN_BYTES = "token_bytes.npy"
_TOKENIZER_CHARS = 200_000_000  # text the BPE is trained on
_DOCUMENT_CAP = 10_000  # characters of one document that the BPE training looks at, as in nanochat


def prepare(
    *,
    source: str,
    out: str | Path,
    input: str | None = None,
    tokenizer: str = "bpe",
    vocab_size: int = 8192,
    seed: int = 0,
    val_fraction: float = 0.05,
    text_column: str = "text",
    document_chars: int = text.DOCUMENT_CHARS,
    shards: int = 8,
    revision: str = "main",
    keep_text: bool = True,
    shard_tokens: int = SHARD_TOKENS,
    window: int = WINDOW,
    threads: int = 1,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Prepares a data set, or returns at once when `out` already holds it.

    Args:
        source: "docs", "text" or "climbmix".
        out: local folder for shards, manifest.json, tokenizer.json and token_bytes.npy.
        input: file, folder or glob of source "text".
        tokenizer: "bpe" (trained on this text), "gpt2", or the path of a stored tokenizer.
        vocab_size: of a "bpe", special tokens included.
        seed: of the document shuffle.
        val_fraction: share of documents kept for validation (by hash of their text).
        text_column: field of .jsonl and .parquet files.
        document_chars: least characters of a document cut from .txt and .md files.
        shards: training shards of source "climbmix".
        revision: of source "climbmix"; pinned to a commit.
        keep_text: keep downloaded parquet files.
        shard_tokens: tokens in one shard.
        window: shards that the loader shuffles together.
        threads: that encode.
        overwrite: replace another data set in `out` instead of refusing.
        progress: show a bar; None shows it on a terminal.

    Raises:
        DataError: no usable text, or `out` holds another data set (the differing fields are named).
        ConfigError: a parameter out of range.
    """
    folder = _local(out)
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction = {val_fraction} is out of range", "use e.g. 0.05")
    if shard_tokens < 1 or window < 1:
        raise ConfigError(
            f"shard_tokens = {shard_tokens}, window = {window}", "both must be at least 1"
        )
    # An interrupted preparation goes on with the commit it began with, whatever main is now.
    pinned = {} if overwrite else _previous(folder)
    corpus = _corpus(
        source,
        input,
        text_column,
        document_chars,
        shards,
        pinned.get("revision", revision),
        keep_text,
    )
    parameters = {
        "source": source,
        **corpus.identity,
        **_tokenizer_parameters(tokenizer, vocab_size),
        "seed": seed,
        "val_fraction": val_fraction,
        "shard_tokens": shard_tokens,
        "window": window,
        "version": VERSION,
    }
    if overwrite:
        _clear(folder)
    if (finished := _finished(folder, parameters)) is not None:
        return finished
    existed = folder.exists()
    state = _resume(folder, parameters)
    try:
        encoder = _tokenizer(folder, corpus, tokenizer, vocab_size, state, progress)
        work = Work(folder, encoder, state, seed, val_fraction, shard_tokens, threads, progress)
        work.run(corpus)
        return _finish(folder, corpus, encoder, state, window)
    except GaiaError:
        if not state.done:  # bad input leaves nothing behind
            _clear(folder)
            if not existed and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _local(out: str | Path) -> Path:
    if storage.is_remote(out):
        raise ConfigError(
            f"out = {str(out)!r} is not a local folder",
            "prepare locally, then copy the folder to the bucket",
        )
    return Path(out).expanduser()


def _corpus(
    source: str,
    input: str | None,
    text_column: str,
    document_chars: int,
    shards: int,
    revision: str,
    keep_text: bool,
) -> Corpus:
    if source == "text":
        if input is None:
            raise ConfigError("input is not set", "give --input a file, folder or glob")
        return text.corpus(input, text_column=text_column, document_chars=document_chars)
    if source in ("docs", "climbmix") and input is not None:
        raise ConfigError(f"input = {input!r} does not go with source = {source!r}", "drop it")
    if source == "docs":
        return docs.corpus()
    if source == "climbmix":
        return climbmix.corpus(shards, revision=revision, keep=keep_text)
    raise ConfigError(f"source = {source!r} is unknown", "use docs, text or climbmix")


def _tokenizer_parameters(tokenizer: str, vocab_size: int) -> dict[str, Any]:
    if tokenizer == "bpe":
        return {"tokenizer": "bpe", "vocab_size": vocab_size}
    if tokenizer == "gpt2":
        return {"tokenizer": "gpt2"}
    if not storage.exists(tokenizer):
        raise ConfigError(
            f"tokenizer = {tokenizer!r} is unknown", "use bpe, gpt2 or the path of a tokenizer.json"
        )
    with storage.local_file(tokenizers.stored_at(tokenizer)) as path:
        return {"tokenizer": storage.sha256_file(path)}  # which is that of the tokenizer


def _previous(folder: Path) -> dict[str, Any]:
    """Parameters of what `folder` holds, finished or not; empty when it holds nothing."""
    if (folder / MANIFEST).exists():
        return load_manifest(folder).parameters
    if (folder / STATE).exists():
        return json.loads(storage.read_text(folder / STATE))["parameters"]
    return {}


def _finished(folder: Path, parameters: dict[str, Any]) -> Manifest | None:
    """The manifest in `folder` when it was made with these parameters and all shards are there."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    _refuse_difference(folder, manifest.parameters, parameters)
    for shard in manifest.train + manifest.val:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(
                f"shard {path} is missing or has another size than its manifest says",
                "prepare again with --overwrite",
            )
    return manifest


def _refuse_difference(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = sorted(key for key in old | new if old.get(key) != new.get(key))
    if differing:
        what = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differing)
        raise DataError(
            f"out = {str(folder)!r} holds a data set made with other parameters: {what}",
            "choose another --out, or replace it with --overwrite",
        )


def _resume(folder: Path, parameters: dict[str, Any]) -> State:
    """The state of an interrupted preparation, or a new one."""
    storage.make_folder(folder)
    for leftover in folder.glob(".*.tmp"):  # of a killed process
        leftover.unlink(missing_ok=True)
    if (folder / STATE).exists():
        state = State(**json.loads(storage.read_text(folder / STATE)))
        _refuse_difference(folder, state.parameters, parameters)
        return state
    if others := sorted(f.name for f in folder.glob("*.arrayrecord")):
        raise DataError(
            f"out = {str(folder)!r} holds {others[0]} but no manifest.json",
            "choose another --out, or replace it with --overwrite",
        )
    state = State(parameters)
    state.save(folder)  # says whose shards these are before there are any
    return state


def _clear(folder: Path) -> None:
    """Removes a data set, finished or not, and nothing else."""
    for pattern in (MANIFEST, STATE, TOKEN_BYTES, tokenizers.FILE, "*.arrayrecord", ".*.tmp"):
        for file in [*folder.glob(pattern), *folder.glob("." + pattern)]:
            file.unlink(missing_ok=True)


def _tokenizer(
    folder: Path,
    corpus: Corpus,
    name: str,
    vocab_size: int,
    state: State,
    progress: bool | None,
) -> Tokenizer:
    """Loads or trains the tokenizer and stores it in `folder`."""
    path = folder / tokenizers.FILE
    if path.exists():  # of the interrupted preparation with the same parameters
        return Tokenizer.load(path)
    if name == "gpt2":
        found = tokenizers.gpt2()
    elif name == "bpe":
        found = tokenizers.train_bpe(
            _training_text(corpus, state.parameters["val_fraction"], progress), vocab_size
        )
    else:
        found = Tokenizer.load(name)
    found.save(path)
    return found


def _training_text(corpus: Corpus, val_fraction: float, progress: bool | None) -> Iterator[str]:
    """Training documents from the beginning, for the BPE; validation text is left out."""
    left = _TOKENIZER_CHARS
    with progress_bar("tokenizer", None, progress) as bar:
        for unit in corpus.units:
            if unit.split == "val":
                continue
            for document in unit.documents(Tally()):
                if unit.split is None and position(document) < val_fraction:
                    continue
                bar.update(len(document))
                yield document[:_DOCUMENT_CAP]
                left -= min(len(document), _DOCUMENT_CAP)
                if left <= 0:
                    return


def _finish(
    folder: Path, corpus: Corpus, encoder: Tokenizer, state: State, window: int
) -> Manifest:
    """Joins the validation parts, writes token_bytes.npy, and the manifest last."""
    documents = {split: state.total("documents", split) for split in ("train", "val")}
    if not documents["train"] or not documents["val"]:
        state.done.clear()  # nothing here is worth keeping
        raise DataError(
            f"the input gave {documents['train']} training and {documents['val']} validation "
            "documents",
            "use more text, a smaller --document-chars, or another --val-fraction",
        )
    parts = state.shards("val")
    with ShardWriter(folder, dtype=encoder.info.dtype, name=VAL_NAME, shard_tokens=None) as writer:
        for part in parts:
            tokens, starts = read_shard(folder, part, encoder.info)
            for document in np.split(tokens, starts[1:]):
                writer.add(document)
    array = io.BytesIO()
    np.save(array, encoder.token_bytes())
    storage.write_bytes(folder / TOKEN_BYTES, array.getvalue())
    manifest = Manifest(
        tokenizer=encoder.info,
        train=tuple(state.shards("train")),
        val=tuple(writer.shards),
        documents=documents,
        text_bytes={split: state.total("text_bytes", split) for split in ("train", "val")},
        sources=corpus.sources,
        invalid_utf8=state.total("invalid_utf8"),
        dtype=encoder.info.dtype.name,
        window=window,
        parameters=state.parameters,
    )
    write_manifest(folder, manifest)
    for file in [*(folder / part.name for part in parts), folder / STATE]:
        file.unlink(missing_ok=True)
    return manifest
