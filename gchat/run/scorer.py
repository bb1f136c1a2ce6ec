"""A trained run as the scorer of curation's perplexity filter.

`gchat.data` may not import the trainer's side, so the recipe is made here and passed in.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from gaia.parallel import make_mesh
from gchat.data.curation.scores import Scorer
from gchat.evals import bpb
from gchat.run.loading import LoadedRun, load_run
from gchat.train_step import EVAL_ROWS, make_scorer

Piece = tuple[int, np.ndarray, int]
"""(document, tokens of a window and its next one, leading targets that were scored before)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Recipe of a scorer from the folder of a run."""

    path: str

    def __call__(self) -> Scorer:
        """Loads the run (in the process that scores)."""
        return _RunScorer(load_run(self.path))


class _RunScorer:
    """Bits per byte of many documents, packed into rows with a segment each."""

    def __init__(self, run: LoadedRun) -> None:
        mesh = make_mesh()
        self._tokenizer = run.tokenizer
        self._seq_len = run.config.model.seq_len
        self._stride = max(1, round(self._seq_len * run.config.eval.stride_fraction))
        self._rows = EVAL_ROWS * mesh.size
        self._score = partial(make_scorer(run.graph, run.config, mesh), run.params)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float [D]: bits per byte of each text."""
        bits_D = np.zeros(len(texts))
        rows = self._pack(texts)
        for first in range(0, len(rows), self._rows):
            batch = rows[first : first + self._rows]
            pieces = [[(tokens, skip) for _, tokens, skip in row] for row in batch]
            laid = bpb.lay_out(pieces, self._rows, self._seq_len)
            nll_BT = np.asarray(self._score(laid), np.float64)
            nll_BT[laid.targets_BT == bpb.IGNORE] = 0.0
            for b, row in enumerate(batch):
                owners = np.array([0, *(document for document, *_ in row)])[laid.segments_BT[b]]
                bits_D += np.bincount(owners, nll_BT[b], minlength=len(texts)) / math.log(2)
        return bits_D / [max(1, len(text.encode())) for text in texts]

    def _pack(self, texts: Sequence[str]) -> list[list[Piece]]:
        """Windows of all texts, one after another, into rows of seq_len."""
        rows: list[list[Piece]] = []
        left = 0
        for document, text in enumerate(texts):
            ids = np.concatenate([[self._tokenizer.bos_id], self._tokenizer.encode_array(text)])
            for tokens, skip in bpb.windows(ids, self._seq_len, self._stride):
                if len(tokens) - 1 > left:
                    rows.append([])
                    left = self._seq_len
                rows[-1].append((document, tokens, skip))
                left -= len(tokens) - 1
        return rows
