"""Text to token ids and back: GPT-2's BPE, a BPE of the corpus, SentencePiece, a model's own.

The first two encode with tiktoken (20 MB/s per core). Sixteen special tokens for chats
(gchat.vocab.specials) are there from the start: at the end of a trained vocabulary, for `gpt2` in
the padding (50,257 ids round up to 50,304 rows, which has room for 47). The ids of specials cannot
come out of user text: `encode` never matches them.

A tokenizer is stored whole, as JSON, beside the data it made and in every run:

    ids 0 … n-1             byte pairs by merge rank (`ranks`), or the pieces of a `model`
    then                    special tokens (`specials`: name -> id)
    vocab_size              ids in use
    padded_vocab_size       vocab_size rounded up to a multiple of 128: rows of the embedding

Version 1 of the file had nine special tokens; such a tokenizer stays what it was. The tokenizer of
an imported model (`gchat.vocab.hub`) keeps its own ids and its own specials, wherever these stand.
"""

import base64
import functools
import hashlib
import itertools
import json
import os
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gaia import storage
from gaia.data.manifest import TokenizerInfo
from gaia.errors import ConfigError, DataError
from gchat.vocab import forced, hub, sentencepieces
from gchat.vocab.byte_level import byte_letters
from gchat.vocab.byte_pairs import BytePairs
from gchat.vocab.hub import IMPORTED
from gchat.vocab.specials import ASSISTANT_END, BOS, BY_VERSION, NEWEST, SPECIALS
from gchat.vocab.splits import DEFAULT_DIGITS, DIGITS, GPT2_PATTERN

FILE = "tokenizer.json"
PAD_TO = 128  # a vocabulary of 50,257 rows could not be split over any mesh
# The file OpenAI published: byte-pair merges in order, from which the whole vocabulary follows.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_NAMES = ("vocab.bpe", "merges.txt")  # the second is what model hubs call the same file
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
SENTENCEPIECE = "sentencepiece"
_FORMAT = "gaia-tokenizer"


class Codec(Protocol):
    """Text to ids 0 … size-1 and back, without special tokens."""

    size: int
    lengths: list[int]
    """Bytes of text of each id."""

    def encode(self, text: str) -> list[int]: ...  # noqa: D102
    def encode_array(self, text: str) -> np.ndarray: ...  # noqa: D102
    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...  # noqa: D102
    def definition(self) -> dict[str, Any]: ...  # noqa: D102
    def arguments(self) -> tuple[Any, ...]: ...  # noqa: D102


class Tokenizer:
    """An immutable tokenizer; make one with `gpt2()`, `train_bpe()`, … or `load()`.

    Attributes:
        kind: "gpt2", "bpe", "sentencepiece" or "imported".
        vocab_size: ids in use, specials included.
        padded_vocab_size: rows of the embedding table, a multiple of 128.
        specials: id by name.
        bos_id: id of `<|bos|>`, or of an imported model's own, which begins every document.
        stop_ids: ids that end an answer; the first is bos_id.
        sha256: of the stored definition; two tokenizers with the same one give the same ids.
        version: of the stored format; decides the special tokens.
    """

    def __init__(
        self, kind: str, codec: Codec, specials: dict[str, int], version: int = NEWEST
    ) -> None:
        self.kind = kind
        self.codec = codec
        self.specials = dict(specials)
        self.version = version
        if isinstance(codec, hub.Codec):
            self.vocab_size, self.bos_id = codec.size, codec.bos_id
            self.stop_ids = tuple(dict.fromkeys((codec.bos_id, *codec.stop_ids)))
        else:
            self._check_specials()
            self.vocab_size, self.bos_id = max(specials.values()) + 1, specials[BOS]
            self.stop_ids = (self.bos_id, specials[ASSISTANT_END])
        self._names = {i: name.encode() for name, i in self.specials.items()}
        self.padded_vocab_size = -(-self.vocab_size // PAD_TO) * PAD_TO
        self._text = self._to_json()
        self.sha256 = hashlib.sha256(self._text.encode()).hexdigest()

    def _check_specials(self) -> None:
        """Raises DataError where a special token of the version is missing or out of place."""
        if missing := [name for name in BY_VERSION[self.version] if name not in self.specials]:
            raise DataError(f"tokenizer lacks {missing}", "make it again")
        ids = sorted(self.specials.values())
        if ids != list(range(self.codec.size, self.codec.size + len(ids))):
            raise DataError("tokenizer: special ids do not follow the others", "make it again")

    def is_special(self, number: int) -> bool:
        """Tells whether an id is that of a special token."""
        return number in self._names

    def special(self, name: str) -> int:
        """Id of a special token, named as `<|bos|>` or `bos`; ConfigError for an unknown name."""
        number = self.specials.get(name, self.specials.get(f"<|{name}|>"))
        if number is None:
            raise ConfigError(
                f"special token {name!r} is unknown to this tokenizer (version {self.version})",
                f"use one of {' '.join(self.specials)}",
            )
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; text that looks like a special token stays text."""
        return self.codec.encode(text)

    def encode_array(self, text: str) -> np.ndarray:
        """Encodes as `encode` does, into a uint32 array [n]."""
        return self.codec.encode_array(text)

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
        return self.decode_bytes(listed).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Raw bytes of ids: what streaming needs, where a character may be cut in two."""
        listed = [int(i) for i in ids]
        if not listed or max(listed) < self.codec.size:
            return self.codec.decode_bytes(listed)
        runs = itertools.groupby(listed, key=self._names.__contains__)
        return b"".join(
            b"".join(self._names[i] for i in run) if special else self.codec.decode_bytes([*run])
            for special, run in runs
        )

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.zeros(self.padded_vocab_size, np.uint16)
        lengths[: self.codec.size] = self.codec.lengths
        lengths.setflags(write=False)
        return lengths

    def token_bytes(self) -> np.ndarray:
        """uint16 [padded_vocab_size]: raw bytes of each id, 0 for specials and padding."""
        return self._lengths

    @property
    def info(self) -> TokenizerInfo:
        """Facts that a manifest keeps of it."""
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
                "version": self.version,
                "kind": self.kind,
                "specials": self.specials,
                **self.codec.definition(),
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
            version = raw["version"]
            if raw["format"] != _FORMAT or version not in BY_VERSION:
                raise DataError(
                    f"{where} is no {_FORMAT} of version {' or '.join(map(str, BY_VERSION))}",
                    "prepare again",
                )
            codec: Codec
            if raw["kind"] == SENTENCEPIECE:
                model = base64.b64decode(raw["model"], validate=True)
                extra = raw.get("forced", ()), raw.get("pattern", "")
                codec = sentencepieces.Codec(model, *extra)
            elif raw["kind"] == IMPORTED:
                own = json.dumps(raw["tokenizer"])
                codec = hub.Codec(own, raw["rows"], raw["bos"], raw["stops"])
            else:
                ranks = [base64.b64decode(piece, validate=True) for piece in raw["ranks"]]
                codec = BytePairs(raw["pattern"], ranks)
            return cls(raw["kind"], codec, raw["specials"], version)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"tokenizer {where} is damaged ({error})", "prepare again") from error

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} ids, {self.sha256[:12]})"

    def __reduce__(self) -> tuple:
        codec = self.codec
        return _again, (self.kind, type(codec), codec.arguments(), self.specials, self.version)


def _again(
    kind: str,
    codec: type[Codec],
    arguments: tuple[Any, ...],
    specials: dict[str, int],
    version: int,
) -> Tokenizer:
    """Unpickles a tokenizer (tiktoken's and SentencePiece's own objects cannot be pickled)."""
    return Tokenizer(kind, codec(*arguments), specials, version)


def stored_at(path: str | Path) -> str:
    """The tokenizer file of a path that may name its folder."""
    text = os.fspath(path)
    return text if text.endswith(".json") else storage.join(text, FILE)


def imported(definition: str, *, rows: int, bos: str, stops: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of an imported model; arguments as those of `gchat.vocab.hub.Codec`."""
    codec = hub.Codec(definition, rows, bos, stops)
    return Tokenizer(IMPORTED, codec, codec.specials)


def gpt2(folder: str | Path | None = None) -> Tokenizer:
    """The standard GPT-2 tokenizer, with the chat specials in the padding.

    Its file (`vocab.bpe`) is taken from `folder`, else `$GAIA_GPT2_DIR`, else
    `$GAIA_HOME/gpt2-bpe`, else downloaded there; its SHA-256 is checked every time.

    Raises:
        DataError: not found and not downloadable, or not the published file.
    """
    lines = _gpt2_merges(folder).decode().split("\n")[1:-1]
    # GPT-2 writes bytes as printable characters; the byte tokens come in the order of that table.
    byte = byte_letters()
    pieces = [bytes([b]) for b in byte.values()]
    pieces += [bytes(byte[c] for c in line.replace(" ", "")) for line in lines]
    names = ("<|endoftext|>", *SPECIALS)
    return Tokenizer("gpt2", BytePairs(GPT2_PATTERN, pieces), _numbered(names, len(pieces)))


def _gpt2_merges(given: str | Path | None) -> bytes:
    """Finds or downloads vocab.bpe, and checks that it is the published one."""
    given = given or os.environ.get("GAIA_GPT2_DIR")
    folder = Path(given) if given else storage.home() / "gpt2-bpe"
    remedy = f"put OpenAI's {GPT2_NAMES[0]} into {folder}, or use `--tokenizer bpe`"
    file = next((folder / name for name in GPT2_NAMES if (folder / name).is_file()), None)
    if file is not None:
        data = file.read_bytes()
    elif given:
        raise DataError(f"GPT-2 tokenizer: no {' or '.join(GPT2_NAMES)} in {folder}", remedy)
    else:
        try:
            with urllib.request.urlopen(GPT2_URL, timeout=60) as response:
                data = response.read()
        except OSError as error:
            raise DataError(f"GPT-2 tokenizer: the download failed ({error})", remedy) from error
    if hashlib.sha256(data).hexdigest() != GPT2_SHA256:
        raise DataError(f"GPT-2 tokenizer: {file or GPT2_URL} is not the published file", remedy)
    if file is None:
        storage.write_bytes(folder / GPT2_NAMES[0], data)
    return data


def _numbered(names: Sequence[str], first: int) -> dict[str, int]:
    """Ids of special tokens: they follow the others."""
    return {name: first + i for i, name in enumerate(names)}


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    years: Sequence[str] = (),
    terms: Sequence[str] = (),
    digits: int = DEFAULT_DIGITS,
) -> Tokenizer:
    """Trains a byte-pair encoding; `vocab_size` counts the sixteen specials.

    A corpus with fewer pairs than asked for gives a smaller vocabulary.

    Args:
        texts: to train on.
        vocab_size: ids.
        years: years that become single tokens (`forced.years`).
        terms: words and phrases that become single tokens, alone and after a space.
        digits: most digits of a piece of a number (`gchat.vocab.splits.DIGITS`).

    Raises:
        ConfigError: vocab_size below 256 bytes + 16 specials, or too small for what is forced.
    """
    import rustbpe  # only needed here: most runs load a tokenizer

    wanted = forced.pieces(years, terms)
    # A forced piece of n bytes needs n-1 merges at most, about 1.3 in a trained vocabulary.
    least = 256 + len(SPECIALS) + 2 * len(wanted)
    if vocab_size < least:
        forced_too = f" and {len(wanted)} forced pieces" if wanted else ""
        raise ConfigError(
            f"vocab_size = {vocab_size} is too small",
            f"use at least {least}: 256 bytes and {len(SPECIALS)} special tokens{forced_too}",
        )
    base = DIGITS[digits]
    pattern = forced.pattern(base, years, terms) if wanted else base
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_from_iterator(iter(texts), vocab_size - len(SPECIALS), pattern=pattern)
    learned = {bytes(piece): rank for piece, rank in trainer.get_mergeable_ranks()}
    pieces = _with_forced(learned, wanted, vocab_size - len(SPECIALS))
    made = Tokenizer("bpe", BytePairs(pattern, pieces), _numbered(SPECIALS, len(pieces)))
    if cut := [piece for piece in wanted if len(made.encode(piece)) != 1]:
        raise ConfigError(f"{cut[:3]} cannot become single tokens", "leave them out")
    return made


def _with_forced(learned: dict[bytes, int], wanted: Sequence[str], size: int) -> list[bytes]:
    """The pieces by rank; the last learned merges make room for those that are forced."""
    kept = sorted(learned, key=lambda piece: learned[piece])
    for _ in range(100):  # a shorter list may need more merges for what is forced
        ranks = forced.inject({piece: rank for rank, piece in enumerate(kept)}, wanted)
        if len(ranks) <= size or not wanted:
            return sorted(ranks, key=lambda piece: ranks[piece])
        kept = kept[: max(256, len(kept) - (len(ranks) - size))]
    raise ConfigError(f"vocab_size leaves no room for {len(wanted)} forced pieces", "use more")


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    *,
    years: Sequence[str] = (),
    terms: Sequence[str] = (),
) -> Tokenizer:
    """Trains SentencePiece's BPE; `vocab_size` counts the sixteen specials.

    Args:
        years: years that become single tokens (`forced.years`).
        terms: words and phrases that become single tokens, alone and after a space.

    Raises:
        ConfigError: vocab_size below 256 bytes + 16 specials, or more than the text has pieces.
    """
    wanted = forced.pieces(years, terms)
    least = 256 + len(SPECIALS) + 64 + len(wanted)  # bytes, specials, and letters
    if vocab_size < least:
        raise ConfigError(f"vocab_size = {vocab_size} is too small", f"use at least {least}")
    model = sentencepieces.train(texts, vocab_size - len(SPECIALS) - len(wanted))
    codec = sentencepieces.Codec(model, wanted, forced.matcher(years, terms))
    return Tokenizer(SENTENCEPIECE, codec, _numbered(SPECIALS, codec.size))
