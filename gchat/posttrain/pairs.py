"""Pairs of answers of which people prefer one: files, and rows of tokens.

    {"prompt": "Hi", "chosen": "Hello! What can I do?", "rejected": "What."}
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": […]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": […]}

The third is how preference sets of the hub write whole conversations (with or without a prompt
beside them). Of either only the last answer is learned.

A row of tokens holds a pair: the chosen conversation as segment 1, the rejected one as segment 2,
neither of which sees the other.

Shapes: B pairs, T time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gaia.data.batch import IGNORE, Batch
from gaia.errors import ConfigError, DataError, GaiaError
from gchat.chat_format import ChatFormat, Conversation
from gchat.data.sources.files import opened

_ROW = 128  # rows are a multiple of this long


@dataclass(frozen=True)
class Pair:
    """Two conversations as ids; where `learned` says so, an id is a target of its answer."""

    ids: tuple[np.ndarray, np.ndarray]
    """Chosen and rejected, int32."""
    learned: tuple[np.ndarray, np.ndarray]

    @property
    def tokens(self) -> int:
        """Positions of a row that they take."""
        return sum(len(ids) - 1 for ids in self.ids)

    @property
    def targets(self) -> int:
        """Learned ids of both."""
        return sum(int(learned.sum()) for learned in self.learned)


def read_pairs(places: Sequence[str]) -> list[tuple[Conversation, Conversation]]:
    """(chosen, rejected) of every line of .jsonl files, or of those in folders.

    Raises:
        DataError: naming file, line and field.
        ConfigError: no file is named.
    """
    if not places:
        raise ConfigError("stage.data is not set", "add --data pairs.jsonl")
    pairs = []
    for place in places:
        for path in _files(Path(place)):
            with opened(path) as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        pairs.append(_pair(line, f"{path}, line {number}"))
    return pairs


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if ".jsonl" in p.suffixes)
        if not files:
            raise DataError(f"stage.data {str(path)!r} holds no .jsonl file", "check the path")
        return files
    if not path.exists():
        raise DataError(f"stage.data {str(path)!r} does not exist", "check the path")
    return [path]


def _pair(line: bytes, where: str) -> tuple[Conversation, Conversation]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: it is not JSON ({error})", "mend the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: it is no JSON object", "write prompt, chosen and rejected")
    answers = []
    for name in ("chosen", "rejected"):
        if name not in row:
            there = ", ".join(map(repr, list(row)[:8])) or "nothing"
            raise DataError(
                f"{where}: {name!r} is missing (there is {there})",
                "write prompt, chosen and rejected",
            )
        try:
            answers.append(_conversation(row, row[name]))
        except GaiaError as error:
            raise DataError(f"{where}: {name!r}: {error.problem}", error.remedy) from None
    chosen, rejected = answers
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise DataError(
            f"{where}: 'chosen' and 'rejected' answer different conversations",
            "let them differ in the last answer only",
        )
    return chosen, rejected


def _conversation(row: dict[str, Any], answer: Any) -> Conversation:
    """The conversation with one of its answers; only that is learned."""
    prompt = row.get("prompt", row.get("question"))
    if isinstance(answer, dict):
        answer = [answer]
    whole = isinstance(answer, list) and (
        prompt is None or any(isinstance(m, dict) and m.get("role") == "user" for m in answer)
    )
    if whole:
        made = Conversation.from_json({"messages": answer})
    elif isinstance(answer, list):
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        made = Conversation.from_json({"messages": [*asked, *answer]})
    elif isinstance(prompt, list):
        said = [{"role": "assistant", "content": answer}]
        made = Conversation.from_json({"messages": [*prompt, *said]})
    else:
        if prompt is None:
            raise DataError("there is no prompt beside it", "add prompt")
        made = Conversation.from_json({"prompt": prompt, "completion": answer})
    others = [i for i, m in enumerate(made.messages[:-1]) if m.role == "assistant"]
    return replace(made, unlearned=tuple(others))


def rendered(
    conversations: Sequence[tuple[Conversation, Conversation]], fmt: ChatFormat, seq_len: int
) -> tuple[list[Pair], list[str]]:
    """Pairs as ids, and sentences on those that are left out or teach nothing.

    Raises:
        DataError: none fits.
    """
    pairs, too_long, equal = [], 0, 0
    for both in conversations:
        made = [fmt.render(conversation) for conversation in both]
        if max(len(one.ids) for one in made) - 1 > seq_len:
            too_long += 1
            continue
        equal += made[0].ids == made[1].ids
        chosen, rejected = (
            (np.asarray(one.ids, np.int32), np.asarray(one.mask, bool)) for one in made
        )
        pairs.append(Pair((chosen[0], rejected[0]), (chosen[1], rejected[1])))
    said = []
    if too_long:
        said.append(f"{too_long} of {len(conversations)} pairs are longer than model.seq_len")
    if equal:
        said.append(f"{equal} pairs have two equal answers, which teach nothing")
    if not pairs:
        raise DataError(
            f"none of {len(conversations)} pairs fits model.seq_len {seq_len}",
            "shorten them, or begin with a run of longer rows" if conversations else "add pairs",
        )
    return pairs, said


def row_length(pairs: Sequence[Pair]) -> int:
    """T of the rows that hold the pairs."""
    return -(-max(pair.tokens for pair in pairs) // _ROW) * _ROW


def rows(
    pairs: Sequence[Pair], length: int, reference: Sequence[np.ndarray] | None = None
) -> Batch:
    """Pairs as rows [B, length].

    Args:
        pairs: one per row.
        length: T.
        reference: of each pair, the base run's log-probabilities of its learned ids, in order;
            they become `more["reference"]`.
    """
    batch = Batch.padding(len(pairs), length)
    reference_BT = np.zeros((len(pairs), length), np.float32)
    for b, pair in enumerate(pairs):
        start = 0
        for segment, (ids, learned) in enumerate(zip(pair.ids, pair.learned, strict=True), start=1):
            here = slice(start, start + len(ids) - 1)
            batch.inputs_BT[b, here] = ids[:-1]
            batch.targets_BT[b, here] = np.where(learned[1:], ids[1:], IGNORE)
            batch.positions_BT[b, here] = np.arange(len(ids) - 1)
            batch.segments_BT[b, here] = segment
            start = here.stop
        if reference is not None:
            reference_BT[b, batch.targets_BT[b] != IGNORE] = reference[b]
    return batch if reference is None else batch._replace(more={"reference": reference_BT})
