"""A run's tokenizer for other programs: a tokenizer.json, or the fields of a GGUF file.

llama.cpp splits by patterns of its own, known by name (`gchat.vocab.splits`). A vocabulary goes
there only where its pattern is one of these and its merges alone give the same ids; everything else
is refused by name, because a model that reads other ids than it was trained on still talks.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gchat.chat_format import ChatFormat
from gchat.exporting.source import ExportRefused
from gchat.importing.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from gchat.tokenizer import Tokenizer
from gchat.vocab import hub
from gchat.vocab.byte_level import merges_of, spelled, tokenizer_json
from gchat.vocab.byte_pairs import BytePairs
from gchat.vocab.splits import NAMES, SPLITS

_OTHER = "export it as a Hugging Face folder (gchat export hf)"
# Another spelling of the same split, in tokenizer.json files of Llama 3 and Qwen 2.
_SPELLINGS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
)


@dataclass(frozen=True)
class Ends:
    """Ids that begin and end texts, and the chat template."""

    bos: int
    """Begins every document."""
    eos: int
    """Ends an answer; of a model without chat the id that begins the next document."""
    stops: tuple[int, ...]
    """All ids that end an answer, eos first."""
    template: str | None
    """In Jinja; None for a model that was never trained on conversations."""


def ends_of(tokenizer: Tokenizer, chat: ChatFormat, *, generation: bool) -> Ends:
    """The ids and template of a run.

    Args:
        tokenizer: of the run.
        chat: format that the run was trained on.
        generation: mark answers in the template, as transformers wants it.
    """
    own = [i for i in tokenizer.stop_ids if i != tokenizer.bos_id]
    stops = [chat.end_id] if chat.end_id is not None else []
    # A base model of ours has never seen the end of an answer.
    stops += own if isinstance(tokenizer.codec, hub.Codec) else []
    stops = list(dict.fromkeys([*stops, tokenizer.bos_id]))
    template = None if chat.kind == "text" else chat.jinja(generation=generation)
    return Ends(tokenizer.bos_id, stops[0], tuple(stops), template)


def definition(tokenizer: Tokenizer) -> str:
    """Text of a tokenizer.json that gives the same ids.

    Raises:
        ExportRefused: the tokenizer is SentencePiece's.
    """
    codec = tokenizer.codec
    if isinstance(codec, hub.Codec):
        return json.dumps(codec.definition()["tokenizer"], ensure_ascii=False)
    if not isinstance(codec, BytePairs):
        raise _sentencepiece()
    letters = spelled(codec.ranks)
    _check_apart(letters, tokenizer)
    by_piece = dict(zip(codec.ranks, letters, strict=True))
    name = NAMES.get(codec.pattern)
    return tokenizer_json(
        {letter: i for i, letter in enumerate(letters)},
        [(by_piece[a], by_piece[b]) for a, b in merges_of(codec.ranks)],
        {special: (i, True) for special, i in tokenizer.specials.items()},
        SPLITS[name].patterns if name else (codec.pattern,),
        ignore_merges=True,  # as tiktoken does
        bos=tokenizer.decode([tokenizer.bos_id]),
    )


def _sentencepiece() -> ExportRefused:
    return ExportRefused(
        "the tokenizer is of kind 'sentencepiece': its forced pieces and the letter U+2581 have no "
        "place in other programs' files",
        "train with a tokenizer of kind bpe",
    )


def _check_apart(letters: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises ExportRefused where a piece is written as a special token is."""
    if both := sorted(set(letters) & set(tokenizer.specials)):
        raise ExportRefused(
            f"the vocabulary holds {both[0]!r} as text and as a special token",
            "train a tokenizer without forcing that term",
        )


@dataclass(frozen=True)
class GgufVocabulary:
    """Fields `tokenizer.ggml.*` of a file, for byte-level BPE."""

    pre: str
    """llama.cpp's name of the split."""
    tokens: list[str]
    """By id, one for each row of the embedding."""
    kinds: list[int]
    merges: list[str]
    add_bos: bool
    notes: tuple[str, ...] = ()
    """Differences that remain, for people."""


def for_llama_cpp(tokenizer: Tokenizer, rows: int) -> GgufVocabulary:
    """The vocabulary as llama.cpp reads it.

    Args:
        tokenizer: of the run.
        rows: of the exported embedding.

    Raises:
        ExportRefused: llama.cpp would give other ids.
    """
    codec = tokenizer.codec
    if isinstance(codec, hub.Codec):
        return _imported(codec, rows)
    if not isinstance(codec, BytePairs):
        raise _sentencepiece()
    pre = NAMES.get(codec.pattern)
    if pre is None:
        forced = "forced pieces" if "(?<!" in codec.pattern else r"numbers of two digits"
        raise ExportRefused(
            f"the tokenizer splits text by a pattern ({forced}) that llama.cpp does not have",
            f"{_OTHER}, or train with one of `gchat tokenizer train --digits 1`",
        )
    letters = spelled(codec.ranks)
    _check_apart(letters, tokenizer)
    by_piece = dict(zip(codec.ranks, letters, strict=True))
    merges = [(by_piece[a], by_piece[b]) for a, b in merges_of(codec.ranks)]
    if not SPLITS[pre].ignore_merges:
        _check_reached(letters, merges, pre)
    tokens, kinds = list(letters), [NORMAL] * len(letters)
    for special in sorted(tokenizer.specials, key=lambda name: tokenizer.specials[name]):
        tokens.append(special)
        kinds.append(CONTROL)
    _fill(tokens, kinds, rows)
    return GgufVocabulary(pre, tokens, kinds, [f"{a} {b}" for a, b in merges], add_bos=True)


def _imported(codec: hub.Codec, rows: int) -> GgufVocabulary:
    stored: dict[str, Any] = codec.definition()["tokenizer"]
    model = stored["model"]
    patterns = tuple(_patterns(stored.get("pre_tokenizer")))
    pre = next((name for name, split in SPLITS.items() if split.patterns == patterns), None)
    if pre is None or model.get("byte_fallback"):
        raise ExportRefused(
            "the imported tokenizer splits text by a pattern that llama.cpp's "
            f"{', '.join(SPLITS)} are not",
            _OTHER,
        )
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    added = stored.get("added_tokens", [])
    if bool(model.get("ignore_merges")) != SPLITS[pre].ignore_merges:
        apart = {token["content"] for token in added}
        _check_reached([piece for piece in model["vocab"] if piece not in apart], merges, pre)
    tokens, kinds = [""] * rows, [UNUSED] * rows
    for piece, i in model["vocab"].items():
        tokens[i], kinds[i] = piece, NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    _fill(tokens, kinds, rows)
    with_specials = hub.parse(json.dumps(stored)).encode("a").tokens
    normalizer = stored.get("normalizer")
    kind = normalizer.get("type") if isinstance(normalizer, Mapping) else None
    notes = (f"normalizer {kind} is left out: llama.cpp has none",) if kind else ()
    add_bos = with_specials[:1] == [codec.bos]
    return GgufVocabulary(pre, tokens, kinds, [f"{a} {b}" for a, b in merges], add_bos, notes)


def _patterns(part: Any) -> Iterator[str]:
    """Split patterns of a pre-tokenizer, in llama.cpp's spelling; "?" for a step it has not."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "Sequence":
        for step in part["pretokenizers"]:
            yield from _patterns(step)
    elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        yield str(part["pattern"].get("Regex", "?")).replace(*_SPELLINGS)
    elif kind == "Digits" and part.get("individual_digits"):
        yield r"\p{N}"
    elif kind == "ByteLevel" and not part.get("add_prefix_space"):
        if part.get("use_regex", True):
            yield SPLITS["gpt-2"].patterns[0]
    else:
        yield "?"


def _fill(tokens: list[str], kinds: list[int], rows: int) -> None:
    """Names for the rows that no text becomes."""
    known = set(tokens)
    tokens += [""] * (rows - len(tokens))
    kinds += [UNUSED] * (rows - len(kinds))
    for i, kind in enumerate(kinds):
        if kind == UNUSED:
            tokens[i] = f"[PAD{i}]" if f"[PAD{i}]" not in known else f"[PAD{i}_]"


def _check_reached(pieces: Sequence[str], merges: Sequence[Sequence[str]], pre: str) -> None:
    """Raises ExportRefused where a piece is an id as a whole, but not by merges."""
    ranks: dict[tuple[str, str], int] = {}
    for rank, (a, b) in enumerate(merges):
        ranks.setdefault((a, b), rank)
    if cut := [piece for piece in pieces if len(_merged(piece, ranks)) > 1]:
        raise ExportRefused(
            f"{len(cut)} pieces of the vocabulary, such as {cut[0]!r}, are no result of its "
            f"merges: llama.cpp's {pre} knows merges only",
            f"{_OTHER}, or train with a tokenizer of --digits 3",
        )


def _merged(piece: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one piece by pairs: the first merge first, from the left."""
    parts = list(piece)
    while len(parts) > 1:
        pairs = enumerate(itertools.pairwise(parts))
        known = [(ranks[pair], i) for i, pair in pairs if pair in ranks]
        if not known:
            break
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
