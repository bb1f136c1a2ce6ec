"""A tokenizer of the `tokenizers` library as a codec: that of an imported model, ids as they are.

Its special tokens stand among the other ids, unlike ours, which follow them. Text that looks like
one stays text. Byte-level BPE (GPT-2's kind) gives every text back; where the tokenizer normalises
(NFC, a space in front) it gives back the normalised text.

Needs tokenizers (the extra `import`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gaia.errors import ConfigError, DataError
from gaia.extras import install
from gchat.vocab.byte_level import byte_letters

IMPORTED = "imported"
_SPACE = "\u2581"  # stands for a space in pieces of SentencePiece's kind
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REMEDY = "import a model with byte-level BPE, or BPE with byte fallback"


def library() -> Any:
    """The module `tokenizers`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "the tokenizer of an imported model needs tokenizers", install("import")
        ) from None
    return tokenizers


class Codec:
    """Text to ids and back.

    Args:
        definition: text of a tokenizer.json.
        rows: ids of the model, those without text included.
        bos: token that begins every document.
        stops: tokens that end an answer.

    Raises:
        DataError: not a tokenizer.json, a kind whose pieces are not known as bytes, more ids than
            the model has, or a token that it lacks.

    Attributes:
        size: ids of the model.
        lengths: bytes of text of each id; 0 for specials and for ids without text.
        specials: id of each special token by name.
    """

    def __init__(self, definition: str, rows: int, bos: str, stops: Sequence[str] = ()) -> None:
        self._definition, self.size = definition, rows
        self.bos, self.stops = bos, tuple(stops)
        self._tokenizer = parse(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as text
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {t.content: i for i, t in sorted(added.items()) if t.special}
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if (largest := max(vocabulary.values(), default=0)) >= rows:
            raise DataError(
                f"tokenizer.json has ids up to {largest}, the model's vocabulary is {rows}",
                "take tokenizer and weights from the same revision",
            )
        if unknown := [name for name in (bos, *stops) if name not in vocabulary]:
            raise DataError(f"tokenizer.json lacks the token {unknown[0]!r}", _REMEDY)
        self.bos_id = vocabulary[bos]
        self.stop_ids = tuple(vocabulary[name] for name in stops)
        self._bytes = [b""] * rows
        piece_bytes = _reader_of_pieces(json.loads(definition))
        for piece, i in vocabulary.items():
            self._bytes[i] = piece.encode() if i in added else piece_bytes(piece)
        self.lengths = [len(piece) for piece in self._bytes]
        for i in self.specials.values():
            self.lengths[i] = 0

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_array(self, text: str) -> np.ndarray:
        """Ids as uint32 [n]."""
        return np.array(self.encode(text), np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; specials by name, nothing for ids without text."""
        return b"".join(map(self._bytes.__getitem__, ids))

    def definition(self) -> dict[str, Any]:
        """Fields of the stored tokenizer."""
        tokenizer = json.loads(self._definition)
        return {"tokenizer": tokenizer, "rows": self.size, "bos": self.bos, "stops": self.stops}

    def arguments(self) -> tuple[Any, ...]:
        """Arguments that make the same codec again."""
        return self._definition, self.size, self.bos, self.stops


def parse(definition: str) -> Any:
    """The library's own object of a tokenizer.json.

    Raises:
        DataError: the text is none.
    """
    try:
        return library().Tokenizer.from_str(definition)
    except ConfigError:
        raise
    except Exception as error:  # the library raises no narrower kind
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"tokenizer.json is damaged ({reason})", "fetch it again") from None


def _reader_of_pieces(definition: Mapping[str, Any]) -> Any:
    """A function from a piece, as the vocabulary writes it, to its bytes.

    Raises:
        DataError: a kind of tokenizer whose pieces do not say their bytes.
    """
    model = definition.get("model") or {}
    if (kind := model.get("type")) != "BPE":
        raise DataError(f"tokenizer.json: model.type is {kind!r}, not 'BPE'", _REMEDY)
    if "ByteLevel" in set(_types(definition.get("decoder"))):
        letters = byte_letters()

        def from_letters(piece: str) -> bytes:
            if all(letter in letters for letter in piece):
                return bytes(letters[letter] for letter in piece)
            return piece.encode()

        return from_letters
    spaced = {"Metaspace", "Prepend", "Replace"}
    if model.get("byte_fallback") and spaced & set(
        [*_types(definition.get("pre_tokenizer")), *_types(definition.get("normalizer"))]
    ):

        def from_text(piece: str) -> bytes:
            byte = _BYTE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()

        return from_text
    kinds = ", ".join(_types(definition.get("decoder"))) or "none"
    raise DataError(f"tokenizer.json: decoder is {kinds}, not ByteLevel", _REMEDY)


def _types(part: Any) -> Iterator[str]:
    """Types of a part of a tokenizer, and of the parts that it consists of."""
    if isinstance(part, Mapping):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for inner in part.values():
            yield from _types(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _types(inner)
