"""Byte-level BPE as the `tokenizers` library stores it: the text of a tokenizer.json.

Bytes are written as printable letters (GPT-2's table), merges as pairs of pieces in these letters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def byte_letters() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def spelled(pieces: Sequence[bytes]) -> list[str]:
    """Pieces in the letters of byte-level BPE."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    return ["".join(letters[byte] for byte in piece) for piece in pieces]


def merges_of(pieces: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Merges that do what ranks do: every pair of pieces that together are a piece, by its rank.

    tiktoken merges whatever two neighbours form the piece of the lowest rank; programs that know
    merges only do the same if all pairs are listed, not just the one seen in training.

    Args:
        pieces: by rank.
    """
    rank = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[bytes, bytes]] = []
    for piece in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        whole = [pair for pair in pairs if pair[0] in rank and pair[1] in rank]
        merges += sorted(whole, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return merges


def tokenizer_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Mapping[str, tuple[int, bool]],
    patterns: Sequence[str],
    *,
    ignore_merges: bool,
    bos: str | None = None,
) -> str:
    """Text of a tokenizer.json.

    Args:
        vocabulary: ids of pieces, in the letters of `byte_letters`.
        merges: pairs of pieces, the first merged first.
        added: id of each added token, and whether it is special (left out of decoded text).
        patterns: of the pre-tokenizer, applied one after the other (Oniguruma's syntax).
        ignore_merges: a piece that is in the vocabulary becomes that id, whatever the merges say.
        bos: added token that is put in front of every text.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    in_order = sorted(added.items(), key=lambda item: item[1][0])
    steps: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in patterns
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocabulary),
        "merges": [list(pair) for pair in merges],
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            # transformers numbers them in this order, whatever their ids say.
            "added_tokens": [_added(token, *facts) for token, facts in in_order],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [*steps, byte_level | {"use_regex": False}],
            },
            "post_processor": None if bos is None else _in_front(bos, added[bos][0]),
            "decoder": byte_level | {"use_regex": True},
            "model": model,
        },
        ensure_ascii=False,
    )


def _added(token: str, number: int, special: bool) -> dict[str, Any]:
    stripping = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **stripping, "special": special}


def _in_front(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a token in front of each text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special | {}, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
