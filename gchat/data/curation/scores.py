"""Scores of documents under a small language model, in bits per byte.

A scorer is a callable from texts to bits per byte. Here are two that need no trained run: a token
bigram of our own, counted on a text that is known to be good, and KenLM where it is installed.
A scorer is made anew in every worker process, from a picklable recipe (`Maker`).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gaia.errors import ConfigError
from gchat.data.sources import text
from gchat.data.sources.unit import Tally
from gchat.tokenizer import Tokenizer, train_bpe

Scorer = Callable[[Sequence[str]], np.ndarray]
"""Texts to their bits per byte, float [D]."""
Maker = Callable[[], Scorer]

_VOCAB = 4096
_WEIGHT = 0.7  # of the bigram against the unigram
_DELTA = 0.1  # added to each unigram count


@dataclasses.dataclass(frozen=True)
class Ngram:
    """Recipe of a `Bigram` over a BPE of 4,096 ids, both from the text files behind `path`."""

    path: str

    def __call__(self) -> Scorer:
        """Trains both."""
        documents = [d for u in text.corpus(self.path).units for d in u.documents(Tally())]
        return Bigram(train_bpe(documents, _VOCAB), documents)


@dataclasses.dataclass(frozen=True)
class KenLM:
    """Recipe of a scorer from a KenLM model (.arpa or .bin); needs the package kenlm."""

    path: str

    def __call__(self) -> Scorer:
        """Reads the model."""
        try:
            import kenlm  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("scorer kenlm needs the package kenlm", "pip install kenlm") from None
        try:
            model = kenlm.Model(self.path)
        except OSError as error:
            raise ConfigError(f"scorer kenlm:{self.path} cannot be read", "check it") from error
        bits = np.log2(10)

        def score(texts: Sequence[str]) -> np.ndarray:
            logs = [model.score(" ".join(t.split())) for t in texts]
            return np.array(
                [-bits * x / max(1, len(t.encode())) for x, t in zip(logs, texts, strict=True)]
            )

        return score


class Bigram:
    """Token bigrams interpolated with unigrams (Jelinek-Mercer)."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        vocab = tokenizer.vocab_size
        ids = [self._with_bos(d) for d in documents]
        counts_V = np.bincount(np.concatenate(ids), minlength=vocab).astype(float)
        counts_V[tokenizer.bos_id] = 0
        self._unigram_V = (counts_V + _DELTA) / (counts_V.sum() + _DELTA * vocab)
        pairs = np.concatenate([d[:-1] * vocab + d[1:] for d in ids])
        self._pairs, counts = np.unique(pairs, return_counts=True)
        contexts = np.bincount(self._pairs // vocab, counts, minlength=vocab)
        self._conditional = counts / contexts[self._pairs // vocab]

    def _with_bos(self, document: str) -> np.ndarray:
        ids = self._tokenizer.encode_array(document).astype(np.int64)
        return np.concatenate([[self._tokenizer.bos_id], ids])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float [D]: bits per byte of each text."""
        return np.array([self._bits(t) / max(1, len(t.encode())) for t in texts])

    def _bits(self, document: str) -> float:
        ids = self._with_bos(document)
        wanted = ids[:-1] * self._tokenizer.vocab_size + ids[1:]
        places = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        seen = self._pairs[places] == wanted
        bigram = np.where(seen, self._conditional[places], 0.0)
        return float(-np.log2(_WEIGHT * bigram + (1 - _WEIGHT) * self._unigram_V[ids[1:]]).sum())
