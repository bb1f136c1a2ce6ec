"""SentencePiece as a codec: trained without normalisation and with byte fallback, so lossless.

SentencePiece writes a space as U+2581; where a text holds that character itself it is given as its
three bytes, so that it comes back. A newline is a piece of its own.

Forced pieces are ids behind those of the model, taken where a pattern finds them, and what lies
between is the model's. SentencePiece's own user-defined symbols could not keep the promise: they
match inside longer words and numbers too (`1944` in `19440`).

Needs sentencepiece (the extra `tokenizers`). Kudo & Richardson 2018, arXiv:1808.06226.
"""

import base64
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gaia.errors import ConfigError
from gaia.extras import install

_SPACE = "\u2581"
_LONGEST = 1 << 16  # characters of a training sentence; longer ones would be skipped
_SENTENCES = 2_000_000  # shuffled sample that the trainer keeps in memory


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError(
            "tokenizer kind sentencepiece needs sentencepiece", install("tokenizers")
        ) from None
    return sentencepiece


class Codec:
    """Text to ids 0 … size-1 and back.

    Args:
        model: as SentencePiece writes it.
        forced: pieces that are single ids, behind those of the model.
        pattern: finds them, in Python's `re`.

    Attributes:
        size: ids of the model, and of the forced pieces.
        lengths: bytes of text of each id; 0 for the unknown piece, which never occurs.
    """

    def __init__(self, model: bytes, forced: Sequence[str] = (), pattern: str = "") -> None:
        self._model, self._forced, self._pattern = model, tuple(forced), pattern
        self._processor = _library().SentencePieceProcessor(model_proto=model)
        own = self._processor.get_piece_size()
        self.size = own + len(self._forced)
        self._id_of = {piece: own + i for i, piece in enumerate(self._forced)}
        self._finder = re.compile(f"({pattern})") if self._forced else None
        self._bytes = [self._piece(i) for i in range(own)] + [p.encode() for p in self._forced]
        self.lengths = [len(piece) for piece in self._bytes]
        pieces = ("".join(f"<0x{b:02X}>" for b in [byte]) for byte in _SPACE.encode())
        self._literal_space = [self._processor.piece_to_id(piece) for piece in pieces]

    def _piece(self, i: int) -> bytes:
        if self._processor.is_unknown(i) or self._processor.is_control(i):
            return b""
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        if self._finder is None:
            return self._plain(text)
        ids: list[int] = []
        for number, part in enumerate(self._finder.split(text)):  # every second one is forced
            if number % 2:
                ids.append(self._id_of[part])
            elif part:
                ids += self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        if _SPACE not in text:
            return self._processor.encode(text)
        parts = self._processor.encode(text.split(_SPACE))
        joined = itertools.chain.from_iterable([*part, *self._literal_space] for part in parts)
        return list(joined)[: -len(self._literal_space)]

    def encode_array(self, text: str) -> np.ndarray:
        """Ids as uint32 [n]."""
        return np.array(self.encode(text), np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids."""
        return b"".join(map(self._bytes.__getitem__, ids))

    def definition(self) -> dict[str, Any]:
        """Fields of the stored tokenizer."""
        model = {"model": base64.b64encode(self._model).decode()}
        if not self._forced:
            return model
        return model | {"forced": list(self._forced), "pattern": self._pattern}

    def arguments(self) -> tuple[Any, ...]:
        """Arguments that make the same codec again."""
        return (self._model, self._forced, self._pattern)


def train(texts: Iterable[str], size: int) -> bytes:
    """Trains a BPE model of `size` ids; fewer where the text has fewer pairs.

    Raises:
        ConfigError: the text cannot give so many pieces, or so few.
    """
    library = _library()
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=_LONGEST,
            input_sentence_size=_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=1,  # more threads find pairs of equal frequency in another order
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        line = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise ConfigError(
            f"vocab_size: SentencePiece cannot make {size} pieces of this text ({line})",
            "use another --vocab-size or more text",
        ) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, because a sentence must not hold a line end."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST // 4):
                yield line[start : start + _LONGEST // 4].replace("\0", " ")
