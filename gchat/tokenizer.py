"""Text to token ids and back: GPT-2's BPE, or a BPE trained on the corpus.

Both kinds encode with tiktoken (20 MB/s per core). Nine special tokens for chats are reserved from
the start, after nanochat: for `bpe` at the end of the vocabulary, for `gpt2` in the padding
(50,257 ids round up to 50,304 rows). The ids of specials cannot come out of user text: `encode`
never matches them.

A tokenizer is stored whole, as JSON, beside the data it made and in every run:

    ids 0 … len(ranks)-1    byte pairs by merge rank
    then                    special tokens (`specials`: name -> id)
    vocab_size              ids in use
    padded_vocab_size       vocab_size rounded up to a multiple of 128: rows of the embedding
"""

import base64
import functools
import hashlib
import json
import os
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from gaia import storage
from gaia.errors import ConfigError, DataError
from gaia.manifest import TokenizerInfo

FILE = "tokenizer.json"
PAD_TO = 128  # a vocabulary of 50,257 rows divides over no mesh
BOS = "<|bos|>"
SPECIALS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# GPT-4's split pattern with numbers of one or two digits, which nanochat measured to be better at
# small vocabularies (bpb 0.965 against 0.969 with one and 0.972 with three). Both patterns match
# what the published ones do, but all alternatives without look-ahead stand in one group, and
# nothing is possessive (it never mattered): the regex engine then runs them as one automaton
# instead of one by one, which makes encoding 1.4 times as fast (measured, same ids).
PATTERN = (
    r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n])|\s+(?!\S)|\s+"
)
GPT2_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"
# The file OpenAI published: byte-pair merges in order, from which the whole vocabulary follows.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_NAMES = ("vocab.bpe", "merges.txt")  # the second is what model hubs call the same file
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_FORMAT = "gaia-tokenizer"
_VERSION = 1


class Tokenizer:
    """An immutable tokenizer; make one with `gpt2()`, `train_bpe()` or `load()`.

    Attributes:
        kind: "gpt2" or "bpe".
        vocab_size: ids in use, specials included.
        padded_vocab_size: rows of the embedding table, a multiple of 128.
        specials: id by name.
        bos_id: id of `<|bos|>`, which begins every document.
        sha256: of the stored definition; two tokenizers with the same one give the same ids.
    """

    def __init__(
        self, kind: str, pattern: str, ranks: Sequence[bytes], specials: dict[str, int]
    ) -> None:
        self.kind = kind
        self.pattern = pattern
        self.specials = dict(specials)
        self._ranks = tuple(ranks)
        self._check()
        self.vocab_size = max(specials.values()) + 1
        self.padded_vocab_size = -(-self.vocab_size // PAD_TO) * PAD_TO
        self.bos_id = specials[BOS]
        self._text = self._to_json()
        self.sha256 = hashlib.sha256(self._text.encode()).hexdigest()
        self._encoding = tiktoken.Encoding(
            f"gaia-{kind}-{self.sha256[:12]}",
            pat_str=pattern,
            mergeable_ranks={piece: rank for rank, piece in enumerate(self._ranks)},
            special_tokens=self.specials,
        )

    def _check(self) -> None:
        known = set(self._ranks)
        if len(known) != len(self._ranks) or any(bytes([b]) not in known for b in range(256)):
            raise DataError(
                "tokenizer: a byte is missing or a pair is listed twice", "make it again"
            )
        if missing := [name for name in SPECIALS if name not in self.specials]:
            raise DataError(f"tokenizer lacks {missing}", "make it again")
        ids = sorted(self.specials.values())
        if ids != list(range(len(self._ranks), len(self._ranks) + len(ids))):
            raise DataError("tokenizer: special ids do not follow the byte pairs", "make it again")

    def special(self, name: str) -> int:
        """Id of a special token, named as `<|bos|>` or `bos`; ConfigError for an unknown name."""
        found = self.specials.get(name, self.specials.get(f"<|{name}|>"))
        if found is None:
            raise ConfigError(
                f"special token {name!r} is unknown", f"use one of {' '.join(self.specials)}"
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; text that looks like a special token stays text."""
        return self._encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, as a uint32 array [n] (no Python list in between)."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode_array` of each text; tiktoken lets go of the GIL, so threads help."""
        if threads <= 1 or len(texts) < 2:
            return [self.encode_array(text) for text in texts]
        # One piece of work per thread: a future per text costs as much as encoding it.
        share = -(-len(texts) // threads)
        parts = [texts[i : i + share] for i in range(0, len(texts), share)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for part in pool.map(self.encode_batch, parts) for ids in part]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids; specials appear by name, broken UTF-8 as U+FFFD.

        Raises:
            DataError: an id outside the vocabulary (padding has no text).
        """
        listed = [int(i) for i in ids]
        if bad := next((i for i in listed if not 0 <= i < self.vocab_size), None):
            raise DataError(
                f"id {bad} is outside the vocabulary of {self.vocab_size}",
                "mask the padded logits before sampling",
            )
        return self._encoding.decode(listed)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Raw bytes of ids: what streaming needs, where a character may be cut in two."""
        return self._encoding.decode_bytes([int(i) for i in ids])

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.zeros(self.padded_vocab_size, np.uint16)
        lengths[: len(self._ranks)] = [len(piece) for piece in self._ranks]
        lengths.setflags(write=False)
        return lengths

    def token_bytes(self) -> np.ndarray:
        """uint16 [padded_vocab_size]: raw bytes of each id, 0 for specials and padding."""
        return self._lengths

    @property
    def info(self) -> TokenizerInfo:
        """What a manifest keeps of it."""
        return TokenizerInfo(
            kind=self.kind,
            sha256=self.sha256,
            vocab_size=self.vocab_size,
            padded_vocab_size=self.padded_vocab_size,
            bos_id=self.bos_id,
        )

    def _to_json(self) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "kind": self.kind,
                "pattern": self.pattern,
                "specials": self.specials,
                "ranks": [base64.b64encode(piece).decode() for piece in self._ranks],
            },
            sort_keys=True,
        )

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as JSON; a folder (or one that ends in /) gets `tokenizer.json`."""
        storage.write_text(stored_at(path), self._text)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads what `save` wrote, from a file or the folder that holds it.

        Raises:
            DataError: missing, not a tokenizer, or damaged.
        """
        where = stored_at(path)
        if not storage.exists(where):
            raise DataError(f"tokenizer {where} does not exist", "prepare the data again")
        try:
            raw = json.loads(storage.read_bytes(where))
            if raw["format"] != _FORMAT or raw["version"] != _VERSION:
                raise DataError(f"{where} is not a version {_VERSION} {_FORMAT}", "prepare again")
            ranks = [base64.b64decode(piece, validate=True) for piece in raw["ranks"]]
            return cls(raw["kind"], raw["pattern"], ranks, raw["specials"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"tokenizer {where} is damaged ({error})", "prepare again") from error

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} ids, {self.sha256[:12]})"

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.kind, self.pattern, self._ranks, self.specials)


def stored_at(path: str | Path) -> str:
    """The tokenizer file of a path that may name its folder."""
    text = os.fspath(path)
    return text if text.endswith(".json") else storage.join(text, FILE)


def gpt2(folder: str | Path | None = None) -> Tokenizer:
    """The standard GPT-2 tokenizer, with the chat specials in the padding.

    Its file (`vocab.bpe`) is taken from `folder`, else `$GAIA_GPT2_DIR`, else
    `$GAIA_HOME/gpt2-bpe`, else downloaded there; its SHA-256 is checked every time.

    Raises:
        DataError: not found and not downloadable, or not the published file.
    """
    lines = _gpt2_merges(folder).decode().split("\n")[1:-1]
    # GPT-2 writes bytes as printable characters: those that are printable stand for themselves,
    # the others follow from U+0100; the byte tokens come in that order.
    order = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = [b for b in range(256) if b not in order]
    byte = {chr(b): b for b in order} | {chr(256 + i): b for i, b in enumerate(rest)}
    pieces = [bytes([b]) for b in order + rest]
    pieces += [bytes(byte[c] for c in line.replace(" ", "")) for line in lines]
    return Tokenizer("gpt2", GPT2_PATTERN, pieces, _numbered(("<|endoftext|>", *SPECIALS), pieces))


def _gpt2_merges(given: str | Path | None) -> bytes:
    """Finds or downloads vocab.bpe, and checks that it is the published one."""
    given = given or os.environ.get("GAIA_GPT2_DIR")
    folder = Path(given) if given else storage.home() / "gpt2-bpe"
    remedy = f"put OpenAI's {GPT2_NAMES[0]} into {folder}, or use `--tokenizer bpe`"
    found = next((folder / name for name in GPT2_NAMES if (folder / name).is_file()), None)
    if found is not None:
        data = found.read_bytes()
    elif given:
        raise DataError(f"GPT-2 tokenizer: no {' or '.join(GPT2_NAMES)} in {folder}", remedy)
    else:
        try:
            with urllib.request.urlopen(GPT2_URL, timeout=60) as response:
                data = response.read()
        except OSError as error:
            raise DataError(f"GPT-2 tokenizer: the download failed ({error})", remedy) from error
    if hashlib.sha256(data).hexdigest() != GPT2_SHA256:
        raise DataError(f"GPT-2 tokenizer: {found or GPT2_URL} is not the published file", remedy)
    if found is None:
        storage.write_bytes(folder / GPT2_NAMES[0], data)
    return data


def _numbered(names: Sequence[str], pieces: Sequence[bytes]) -> dict[str, int]:
    """Ids of special tokens: they follow the byte pairs."""
    return {name: len(pieces) + i for i, name in enumerate(names)}


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-pair encoding; `vocab_size` counts the nine specials.

    A corpus with fewer pairs than asked for gives a smaller vocabulary.

    Raises:
        ConfigError: vocab_size below 256 bytes + 9 specials.
    """
    import rustbpe  # only needed here: most runs load a tokenizer

    least = 256 + len(SPECIALS)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size = {vocab_size} is too small",
            f"use at least {least}: 256 bytes and {len(SPECIALS)} special tokens",
        )
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_from_iterator(iter(texts), vocab_size - len(SPECIALS), pattern=PATTERN)
    ranks = {bytes(piece): rank for piece, rank in trainer.get_mergeable_ranks()}
    pieces = sorted(ranks, key=lambda piece: ranks[piece])
    return Tokenizer("bpe", PATTERN, pieces, _numbered(SPECIALS, pieces))
