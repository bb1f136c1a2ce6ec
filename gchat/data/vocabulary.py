"""`gchat tokenizer train|eval`: make a tokenizer, and measure several on several kinds of text."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from gaia import storage
from gaia.data.manifest import MANIFEST
from gaia.errors import ConfigError, DataError
from gchat import tokenizer as tokenizers
from gchat.data.prepare import training_text
from gchat.data.sources import files, text
from gchat.data.sources.choose import Source
from gchat.data.sources.unit import Tally
from gchat.tokenizer import Tokenizer
from gchat.vocab import forced
from gchat.vocab.splits import DEFAULT_DIGITS

_EVAL_CHARS = 20_000_000  # of each text


@dataclasses.dataclass(frozen=True)
class _Out:
    out: Path
    """Folder (or file that ends in .json) for the tokenizer."""


@dataclasses.dataclass(frozen=True)
class Train(Source, _Out):
    """Train a tokenizer on a text."""

    kind: Literal["bpe", "sentencepiece"] = "bpe"
    """bpe: byte pairs within GPT-4's split; sentencepiece: its BPE with byte fallback."""
    vocab_size: int = 8192
    """Ids, special tokens included."""
    digits: Literal[1, 2, 3] = DEFAULT_DIGITS
    """Limit of the digits in one token, for kind bpe. llama.cpp knows the split patterns of 1 and
    3, so that models with such a vocabulary can be exported as GGUF; not that of 2."""
    forced_years: str | None = None
    """Range of years that become single tokens, as 1900-1949."""
    forced_months: bool = False
    """The names of the months become single tokens."""
    forced_terms: str | None = None
    """File with one term per line; each becomes a single token."""

    def run(self) -> Tokenizer:
        """Trains, stores and describes it."""
        _refuse_bucket(self.out)
        if self.kind != "bpe" and self.digits != DEFAULT_DIGITS:
            raise ConfigError(
                f"digits = {self.digits}: SentencePiece takes single digits",
                "leave --digits out, or use --kind bpe",
            )
        if (folder := self._folder()) and (folder / MANIFEST).exists():
            raise ConfigError(
                f"out = {str(folder)!r} is a data set, whose tokens are of its own tokenizer",
                "give another folder, and prepare the data with it",
            )
        years = forced.years(self.forced_years) if self.forced_years else ()
        terms = self._terms()
        texts = training_text(self.corpus(exclude=self._folder()), 0.0)
        made = _trained(
            self.kind, texts, self.vocab_size, digits=self.digits, years=years, terms=terms
        )
        made.save(self.out)
        count = len(forced.pieces(years, terms))
        extra = f", {count} forced pieces" if count else ""
        print(f"{tokenizers.stored_at(self.out)}: {made.kind}, {made.vocab_size:,} ids{extra}")
        return made

    def _folder(self) -> Path | None:
        """The folder of the tokenizer, where it is one of its own."""
        return None if str(self.out).endswith(".json") else Path(self.out)

    def _terms(self) -> list[str]:
        terms: list[str] = list(forced.MONTHS) if self.forced_months else []
        if self.forced_terms:
            terms += files.listed("forced_terms", Path(self.forced_terms))
        return terms


@dataclasses.dataclass(frozen=True)
class Eval:
    """Compare how tightly tokenizers write several kinds of text."""

    text: tyro.conf.UseAppendAction[tuple[str, ...]]
    """NAME=PATH of a kind of text, given once for each: --text prose=wiki.txt --text code=src/"""
    tokenizer: tuple[str, ...] = ()
    """gpt2 and paths of stored tokenizers; each is compared with the first."""
    train_on: str | None = None
    """Text on which tokenizers of several sizes are trained for the comparison."""
    sizes: tuple[int, ...] = (8192, 16384, 32768)
    """Their vocabularies."""
    kinds: tuple[Literal["bpe", "sentencepiece"], ...] = ("bpe",)
    """Their kinds."""
    digits: tuple[Literal[1, 2, 3], ...] = (DEFAULT_DIGITS,)
    """Limits of the digits in one token, for tokenizers of kind bpe."""
    out: Path | None = None
    """File (.md or .json) for the report."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table."""
        if self.out is not None:
            _refuse_bucket(self.out)
        texts = {name: list(_documents(path)) for name, path in map(_named, self.text)}
        compared = dict(self._tokenizers())
        if not compared:
            raise ConfigError(
                "nothing to compare", "give --tokenizer gpt2 PATH …, or --train-on TEXT"
            )
        rows = [
            measure(label, made, name, documents)
            for name, documents in texts.items()
            for label, made in compared.items()
        ]
        first = {row["text"]: row["tokens"] for row in reversed(rows)}
        for row in rows:
            row["against_first"] = round(row["tokens"] / first[row["text"]], 4)
        comparison = {"rows": rows, "compared_with": next(iter(compared))}
        if self.out is not None:
            as_json = self.out.suffix == ".json"
            storage.write_text(
                self.out, json.dumps(comparison, indent=1) if as_json else table(comparison)
            )
        print(json.dumps(comparison) if self.json else table(comparison))
        return comparison

    def _tokenizers(self) -> Iterator[tuple[str, Tokenizer]]:
        for given in self.tokenizer:
            yield given, tokenizers.gpt2() if given == "gpt2" else Tokenizer.load(given)
        if self.train_on is None:
            return
        source = Source(input=self.train_on)
        for kind in self.kinds:
            for size in self.sizes:
                label = f"{size // 1024}K" if size % 1024 == 0 else f"{size}"
                for digits in self.digits if kind == "bpe" else (DEFAULT_DIGITS,):
                    texts = training_text(source.corpus(), 0.0, progress=False)
                    more = "" if self.digits == (DEFAULT_DIGITS,) else f", {digits} digits"
                    name = f"{kind} {label}{more if kind == 'bpe' else ''}"
                    yield name, _trained(kind, texts, size, digits=digits)


def _refuse_bucket(out: Path) -> None:
    if storage.is_remote(out) or str(out).startswith("gs:"):  # Path drops a slash
        raise ConfigError(f"out = {str(out)!r} is a bucket", "name a local folder, then copy it")


def _trained(
    kind: str,
    texts: Iterable[str],
    size: int,
    *,
    digits: int,
    years: Sequence[str] = (),
    terms: Sequence[str] = (),
) -> Tokenizer:
    """Trains a tokenizer of a kind."""
    if kind == "sentencepiece":
        return tokenizers.train_sentencepiece(texts, size, years=years, terms=terms)
    return tokenizers.train_bpe(texts, size, years=years, terms=terms, digits=digits)


def _named(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    if not equals or not name or not path:
        raise ConfigError(f"text = {given!r} is not NAME=PATH", "write e.g. prose=wiki.txt")
    return name, path


def _documents(path: str) -> Iterator[str]:
    left = _EVAL_CHARS
    for unit in text.corpus(path).units:
        for document in unit.documents(Tally()):
            yield document
            left -= len(document)
            if left <= 0:
                return


def measure(label: str, made: Tokenizer, name: str, documents: Iterable[str]) -> dict[str, Any]:
    """Tokens, bytes per token, and whether every document comes back.

    Raises:
        DataError: no text.
    """
    tokens = size = words = 0
    lossless = True
    for document in documents:
        ids = made.encode(document)
        tokens += len(ids)
        size += len(document.encode())
        words += len(document.split())
        lossless &= made.decode(ids) == document
    if not tokens:
        raise DataError(f"text {name} is empty", "give another file")
    return {
        "text": name,
        "tokenizer": label,
        "kind": made.kind,
        "vocab_size": made.vocab_size,
        "sha256": made.sha256[:12],
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": round(size / tokens, 4),
        "tokens_per_word": round(tokens / max(1, words), 4),
        "lossless": lossless,
    }


def table(comparison: dict[str, Any]) -> str:
    """A markdown table."""
    lines = [
        f"| text | tokenizer | ids | tokens | bytes/token | tokens/word | against "
        f"{comparison['compared_with']} | lossless |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in comparison["rows"]:
        lines.append(
            f"| {row['text']} | {row['tokenizer']} | {row['vocab_size']:,} | {row['tokens']:,} | "
            f"{row['bytes_per_token']:.3f} | {row['tokens_per_word']:.3f} | "
            f"{row['against_first']:.3f} | {'yes' if row['lossless'] else 'NO'} |"
        )
    return "\n".join(lines)


VERBS = {"train": Train, "eval": Eval}
