"""An exported file beside its run: arrays, token ids, logits, likelihoods.

B batch, T time, V vocab; P positions whose logits are compared, of all rows together.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaia.parallel import make_mesh
from gchat import tokenizer as tokenizers
from gchat.exporting.source import Run
from gchat.importing.source import Source
from gchat.importing.weights import parameters
from gchat.model import GPT
from gchat.model_config import GPTConfig
from gchat.model_shape import model_shape
from gchat.run.loading import load_params
from gchat.tokenizer import PAD_TO, Tokenizer

_BATCH_TOKENS = 1024  # whose logits are in memory at once


@dataclass(frozen=True)
class Probes:
    """Questions that all programs are asked."""

    texts: list[str]
    talks: list[list[dict[str, str]]]
    talk_ids: list[list[int]]
    """Ids of the conversations, rendered by us."""
    rows: list[list[int]]
    greedy: list[list[int]]
    steps: int
    windows: list[list[int]] = field(default_factory=list)

    @property
    def positions(self) -> list[list[int]]:
        """Places of each row whose logits are compared: its middle and its end."""
        return [sorted({len(row) // 2, len(row) - 1}) for row in self.rows]

    def job(self, model: Path) -> dict[str, Any]:
        """A job of `reference.py`."""
        return {
            "model": str(model),
            "texts": self.texts,
            "talks": self.talks,
            "rows": self.rows,
            "positions": self.positions,
            "greedy": self.greedy,
            "steps": self.steps,
            "windows": self.windows,
        }


@partial(jax.jit, static_argnums=0)
def _logits(graph: Any, params: Any, tokens_BT: jax.Array) -> jax.Array:
    """fp32 logits [B, T, V]."""
    model: GPT = nnx.merge(graph, params)
    return model.logits(model(tokens_BT)[0])


@partial(jax.jit, static_argnums=0)
def _nll(graph: Any, params: Any, tokens_BT: jax.Array) -> jax.Array:
    """Nats [B, T - 1] of all ids but the first."""
    log_p_BTV = jax.nn.log_softmax(_logits(graph, params, tokens_BT)[:, :-1])
    return -jnp.take_along_axis(log_p_BTV, tokens_BT[:, 1:, None], -1)[..., 0]


class Model:
    """A model of ours in fp32 that answers what `reference.py` asks of the others."""

    def __init__(self, config: GPTConfig, params: Any) -> None:
        self._graph = model_shape(config).graph
        self._params = jax.device_put(params)
        self._vocab = config.sizes.vocab

    def logits(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Logits [P, V] at the given places of the given rows."""
        out: list[np.ndarray | None] = [None] * len(rows)
        for batch, tokens_BT in _batches(rows):
            logits_BTV = _logits(self._graph, self._params, tokens_BT)
            for place, i in enumerate(batch):
                at = np.array(positions[i])
                out[i] = np.asarray(logits_BTV[place, at, : self._vocab])
        return np.concatenate([one for one in out if one is not None])

    def nll(self, rows: Sequence[Sequence[int]]) -> float:
        """Nats of all ids but the first of each row, summed."""
        total = 0.0
        for batch, tokens_BT in _batches(rows):
            nll_BT = np.asarray(_nll(self._graph, self._params, tokens_BT), np.float64)
            total += sum(nll_BT[place, : len(rows[i]) - 1].sum() for place, i in enumerate(batch))
        return float(total)


def _batches(rows: Sequence[Sequence[int]]) -> Any:
    """Indices of rows of like length, and their ids [B, T], padded behind their ends."""
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(max(16, 1 << (len(row) - 1).bit_length()), []).append(i)
    for length, indices in sorted(by_length.items()):
        count = max(1, _BATCH_TOKENS // length)
        for start in range(0, len(indices), count):
            batch = indices[start : start + count]
            tokens_BT = np.zeros((count, length), np.int32)  # one shape, one compile
            for place, i in enumerate(batch):
                tokens_BT[place, : len(rows[i])] = rows[i]
            yield batch, tokens_BT


def arrays(run: Run, source: Source) -> dict[str, Any]:
    """The tensors of a file beside those of its run, one after the other."""
    equal, largest, squares, all_squares = 0, 0.0, 0.0, 0.0
    names = []
    for parameter, values in run.tensors():
        theirs = source.tensors[parameter.name].read()
        names.append(parameter.name)
        if np.array_equal(values, theirs):
            equal += 1
        difference = np.abs(values - theirs)
        largest = max(largest, float(difference.max()))
        squares += float(np.square(difference, dtype=np.float64).sum())
        all_squares += float(np.square(values, dtype=np.float64).sum())
    kinds = sorted({tensor.kind for tensor in source.tensors.values()})
    return {
        "tensors": len(names),
        "equal": equal,
        "largest_difference": largest,
        "relative_error": (squares / max(all_squares, 1e-30)) ** 0.5,
        "kinds": kinds,
    }


def tokenizer_of(source: Source) -> Tokenizer:
    """The tokenizer that an import of a file would have."""
    words = source.vocabulary
    return tokenizers.imported(
        words.definition, rows=source.layout.rows, bos=words.bos, stops=words.stops
    )


def model_of_file(source: Source, scratch: Path) -> Model:
    """The model of a file, its parameters mapped from files in `scratch`."""
    padded = -(-source.layout.rows // PAD_TO) * PAD_TO
    config = source.layout.config(seq_len=None, compute_dtype="float32", padded_rows=padded)
    return Model(config, parameters(source, config, scratch, lambda count: None))


def model_of_run(run: Run) -> Model:
    """The run's own model, in fp32 whatever it was trained in."""
    config = replace(run.config.model.without_adapters(), compute_dtype="float32")
    path = str(run.path)
    params = load_params(path, run.config, make_mesh(), step=run.step).state
    return Model(config, params)


def compare(run: Run, source: Source, probes: Probes) -> tuple[dict[str, Any], Model]:
    """Arrays, token ids, logits and likelihood of a file, read by us, beside its run.

    Returns:
        The findings, and the file's model for the comparison with other programs.
    """
    findings: dict[str, Any] = {"arrays": arrays(run, source)}
    ours = [run.tokenizer.encode(text) for text in probes.texts]
    theirs = [*map(tokenizer_of(source).encode, probes.texts)]
    gchat: dict[str, Any] = {"texts": differing(probes.texts, ours, theirs)}
    with tempfile.TemporaryDirectory(prefix="gaia-") as scratch:
        model = model_of_file(source, Path(scratch))
    of_file = model.logits(probes.rows, probes.positions)
    of_run = of_file
    if findings["arrays"]["equal"] < findings["arrays"]["tensors"]:
        own = model_of_run(run)
        of_run = own.logits(probes.rows, probes.positions)
        if probes.windows:
            findings["run_perplexity"] = perplexity(own.nll(probes.windows), probes)
    gchat["logits"] = logits_apart(of_run, of_file)
    if probes.windows:
        gchat["perplexity"] = perplexity(model.nll(probes.windows), probes)
    findings["gchat"] = gchat
    return findings, model


def other_program(
    probes: Probes, ours: Sequence[Sequence[int]], model: Model, answer: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Compares another program's answer with our own reading of the same file.

    Args:
        probes: given to it.
        ours: token ids of the texts.
        model: of the file.
        answer: of `reference.py`.
    """
    texts = _lists(answer["texts"], answer["texts_lengths"])
    findings: dict[str, Any] = {"texts": differing(probes.texts, ours, texts)}
    findings["logits"] = logits_apart(model.logits(probes.rows, probes.positions), answer["logits"])
    talks = _lists(answer["talks"], answer["talks_lengths"])
    if any(talks):
        said = [str(talk) for talk in probes.talks]
        findings["talks"] = differing(said, probes.talk_ids, talks)
    findings["greedy"] = [
        _first_difference(model, row, [int(i) for i in chosen])
        for row, chosen in zip(probes.greedy, answer["greedy"], strict=True)
    ]
    if probes.windows:
        findings["perplexity"] = perplexity(float(answer["nll"].sum()), probes)
    return findings


def _lists(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [flat[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]


def differing(
    texts: Sequence[str], ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Number of texts, and those with other ids."""
    other = [t for t, a, b in zip(texts, ours, theirs, strict=True) if list(a) != list(b)]
    return {"count": len(texts), "other": len(other), "examples": other[:5]}


def logits_apart(ours_PV: np.ndarray, theirs_PV: np.ndarray) -> dict[str, Any]:
    """Measures how far logits are from one another."""
    difference = np.abs(ours_PV - theirs_PV)
    log_p, log_q = (x - _log_sum(x) for x in (ours_PV, theirs_PV))
    return {
        "places": len(ours_PV),
        "largest": float(difference.max()),
        "std": float(ours_PV.std()),
        "kl": float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
        "same_top": float((ours_PV.argmax(-1) == theirs_PV.argmax(-1)).mean()),
    }


def _log_sum(logits_PV: np.ndarray) -> np.ndarray:
    largest_P1 = logits_PV.max(-1, keepdims=True)
    exp_PV = np.exp((logits_PV - largest_P1).astype(np.float64))
    return np.log(exp_PV.sum(-1, keepdims=True)) + largest_P1


def _first_difference(model: Model, row: list[int], chosen: list[int]) -> dict[str, Any]:
    """The first of another program's greedy ids that is not ours.

    Our model reads the whole answer at once: as long as all ids are its own likeliest, it would
    have written the same.
    """
    places = list(range(len(row) - 1, len(row) + len(chosen) - 1))
    logits_TV = model.logits([[*row, *chosen]], [places])
    own = logits_TV.argmax(-1)
    at = next((i for i, number in enumerate(chosen) if number != own[i]), None)
    if at is None:
        return {"tokens": len(chosen), "at": None}
    gap = float(logits_TV[at, own[at]] - logits_TV[at, chosen[at]])
    return {"tokens": len(chosen), "at": at, "ours": int(own[at]), "theirs": chosen[at], "gap": gap}


def perplexity(nats: float, probes: Probes) -> float:
    """Perplexity of the windows' ids."""
    return float(np.exp(nats / sum(len(row) - 1 for row in probes.windows)))
