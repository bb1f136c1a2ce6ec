"""`gchat data show`: a batch as training sees it, its segments and what of them is learned."""

import dataclasses
import json
import os
import sys
from typing import Any, Literal

import numpy as np
import tyro

from gaia.data.batch import IGNORE, Batch
from gaia.data.loader import make_loader
from gaia.data.packing import Packing
from gaia.errors import ConfigError
from gchat.tokenizer import Tokenizer

_LEARNED, _READ, _SPECIAL, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[1;35m", "\x1b[0m"


@dataclasses.dataclass(frozen=True)
class Show:
    """Print rows of a batch: each segment, learned text in green, the rest dim."""

    data_dir: tyro.conf.Positional[str]
    """Local folder or gs:// prefix."""
    packing: Packing = "best_fit"
    """Way in which documents become rows."""
    seq_len: int = 256
    """Tokens of a row."""
    rows: int = 2
    """Number of rows to print."""
    step: int = 0
    """Step of the batch, with as many rows to a batch."""
    seed: int = 0
    """Seed of the order of rows."""
    color: Literal["auto", "always", "never"] = "auto"
    """Use of colours; auto: on a terminal, unless NO_COLOR is set."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> Batch:
        """Reads the batch and prints it."""
        if self.step < 0:
            raise ConfigError(f"step = {self.step} is negative", "use 0 or more")
        tokenizer = Tokenizer.load(self.data_dir)
        with make_loader(
            self.data_dir, seq_len=self.seq_len, batch_size=self.rows, seed=self.seed,
            packing=self.packing, prefetch=0,
        ) as loader:  # fmt: skip
            batch = loader.batch(self.step)
            places = [loader.locate(int(row)) for row in loader.row_ids(self.step)]
            said = loader.describe()
        shown = [_segments(batch, b, tokenizer) for b in range(self.rows)]
        if self.json:
            rows = [
                {"shard": shard, "row": row, "segments": segments}
                for (shard, row), segments in zip(places, shown, strict=True)
            ]
            print(json.dumps({"packing": said, "rows": rows}))
            return batch
        color = self.color == "always"
        if self.color == "auto":
            color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(said)
        for (shard, row), segments in zip(places, shown, strict=True):
            used = sum(len(segment["tokens"]) for segment in segments)
            print(f"\n{shard} row {row}: {used} of {self.seq_len} places, {len(segments)} segments")
            for segment in segments:
                print(_line(segment, color))
        return batch


def _segments(batch: Batch, row: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The segments of one row: tokens, their text, and which of them are targets in it."""
    inputs_T, targets_T = batch.inputs_BT[row], batch.targets_BT[row]
    segments_T = np.ones_like(inputs_T) if batch.segments_BT is None else batch.segments_BT[row]
    shown = []
    for number in range(1, int(segments_T.max(initial=0)) + 1):
        here = segments_T == number
        tokens, targets = inputs_T[here].tolist(), targets_T[here]
        # A token is learned where it is the target of the one before it.
        learned = [False, *(targets[:-1] != IGNORE).tolist()]
        end = int(targets[-1])
        shown.append(
            {
                "tokens": tokens,
                "text": [tokenizer.decode([token]) for token in tokens],
                "special": [tokenizer.is_special(token) for token in tokens],
                "learned": learned,
                "then": None if end == IGNORE else tokenizer.decode([end]),
            }
        )
    return shown


def _line(segment: dict[str, Any], color: bool) -> str:
    """One segment as text; without colours, what is only read stands in ‹ ›."""
    parts, reading = [], False
    for text, special, learned in zip(
        segment["text"], segment["special"], segment["learned"], strict=True
    ):
        if color:
            style = (_LEARNED if learned else _READ) + (_SPECIAL if special else "")
            parts.append(f"{style}{text}{_PLAIN}")
        else:
            if reading == learned:
                parts.append("‹" if not learned else "›")
                reading = not learned
            parts.append(text)
    if reading:
        parts.append("›")
    then = segment["then"]
    after = f" → {then}" if then is not None else ""
    return f"  {sum(segment['learned']):>4} learned  {''.join(parts)}{after}"
