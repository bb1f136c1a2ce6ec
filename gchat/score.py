"""Log-likelihoods of continuations: what task evaluations, perplexity and `echo` stand on.

    scorer = Scorer(graph, config, mesh)
    scorer.loglikelihood(params, [(context_ids, continuation_ids), …])

What sequences begin with in common is forwarded once (`gaia.data.tries`), sequences of all lengths
share rows of few lengths, and logits are made only where something is scored. Contexts begin with
BOS. The crop rule: of context and continuation together the last `seq_len` tokens count, so BOS is
the first to go; a token without any before it has no likelihood and adds nothing to the sum.

Every process of a run calls this alike, with the same requests: rows are shared out over all
devices, and each process gets all results.

Shapes: B rows, R tokens of a row, M targets of a row; b and r of one device; c targets of a row at
once, D model.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.data import tries
from gaia.kernels.cross_entropy import target_scores, whole_head
from gaia.kernels.segments import Trie
from gchat.config import TrainConfig
from gchat.model import GPT
from gchat.score_rows import BATCH_TOKENS, Packing, Pair

_AT_ONCE = 256  # targets whose logits exist at one time


class LogLikelihood(NamedTuple):
    """Score of a continuation."""

    sum: float
    """Nats, negative."""
    per_token: np.ndarray
    """fp32, of each token that counts: after a crop, of the last ones."""
    greedy: bool
    """True where each token is the most likely one (of equal ones that with the smallest id)."""


class Forwarded(NamedTuple):
    """Work done so far."""

    tokens: int
    """Tokens that were forwarded, padding included."""
    used: int
    """Without padding."""
    plain: int
    """Tokens that one sequence at a time would have forwarded."""
    batches: int


class Scorer:
    """Scores continuations; compiles one program for each length of row that it meets.

    Args:
        graph: static part of the model.
        config: derived.
        mesh: that the parameters lie on.
        batch_tokens: forwarded at once by each device.

    Attributes:
        forwarded: work done so far.
    """

    def __init__(
        self, graph: Any, config: TrainConfig, mesh: Mesh, *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self._graph, self._mesh = graph, mesh
        self._vocab = config.model.sizes.vocab
        parts = mesh.shape["sequence"]
        self._packing = Packing(
            config.model.seq_len,
            self._vocab,
            multiple=8 * parts,
            devices=mesh.size // parts // mesh.shape["tensor"],
            batch_tokens=batch_tokens,
        )
        self._program: Callable[..., Any] | None = None
        self.forwarded = Forwarded(0, 0, 0, 0)

    def loglikelihood(self, params: Any, pairs: Iterable[Pair]) -> list[LogLikelihood]:
        """The likelihood of each continuation after its context, in the order given.

        Args:
            params: on the mesh, as training keeps them.
            pairs: contexts of one id or more, and continuations; an empty one scores 0.

        Raises:
            ConfigError: a context has no tokens, or an id is outside of the vocabulary.
        """
        results = {n: score for batch in self.stream(params, pairs) for n, score in batch}
        return [results[n] for n in range(len(results))]

    def stream(
        self, params: Any, pairs: Iterable[Pair]
    ) -> Iterator[list[tuple[int, LogLikelihood]]]:
        """Yields (number of the pair, its likelihood) batch by batch, in an order of its own.

        `pairs` are taken while the devices work; a long iterable needs no memory.
        """
        pending: deque[tuple[Any, tries.Laid]] = deque()
        for batches, empty in self._packing.windows(pairs):
            if empty:
                yield [(n, LogLikelihood(0.0, np.zeros(0, np.float32), True)) for n in empty]
            for rows in batches:
                pending.append(self._dispatch(params, rows))
                if len(pending) > 2:  # the devices work on two while the host reads one
                    yield _read(*pending.popleft())
        while pending:
            yield _read(*pending.popleft())

    def _dispatch(self, params: Any, rows: list[tries.Row]) -> tuple[Any, tries.Laid]:
        length = rows[0].length
        laid = tries.lay_out(rows, self._packing.rows(length), length)
        if self._program is None:
            self._program = _program(self._graph, self._vocab, params, self._mesh)
        scores = self._program(params, laid)
        plain = sum(len(r.tokens) for row in rows for u in row.units for r in u.requests)
        more = Forwarded(laid.inputs_BR.size, laid.tokens, plain, 1)
        self.forwarded = Forwarded(*(a + b for a, b in zip(self.forwarded, more, strict=True)))
        return scores, laid


def _read(scores: Any, laid: tries.Laid) -> list[tuple[int, LogLikelihood]]:
    nats_BM, greedy_BM = (np.asarray(x) for x in scores)
    results = []
    for b, owners in enumerate(laid.owners):
        for number, first, count in owners:
            part = slice(first, first + count)
            per_token = -nats_BM[b, part]
            total = float(per_token.sum(dtype=np.float64))
            results.append(
                (number, LogLikelihood(total, per_token, bool(greedy_BM[b, part].all())))
            )
    return results


def _program(graph: Any, vocab: int, params: Any, mesh: Mesh) -> Callable[..., Any]:
    """The jitted forward pass (params, rows) -> nats [B, M] and whether each is greedy."""

    def score(params, inputs_br, positions_br, ends_br, at_bM, targets_bM, most):
        model: GPT = nnx.merge(graph, params)
        trie = Trie(ends_br, positions_br)
        x_brD, _ = model(inputs_br, positions_BT=positions_br, segment_ids_BT=trie)
        head_DV = whole_head(model.head_kernel, x_brD.dtype)
        b, M = at_bM.shape
        c = min(M, max(1, _AT_ONCE // b))
        # Whole chunks: a slice at the edge would be moved back over targets that are done.
        at, targets = (jnp.pad(x, ((0, 0), (0, -M % c))) for x in (at_bM, targets_bM))

        def chunk(i, done):
            at_bc, targets_bc = (
                jax.lax.dynamic_slice_in_dim(x, i * c, c, axis=1) for x in (at, targets)
            )
            x_bcD = _taken(x_brD, at_bc)
            scores = target_scores(
                x_bcD.reshape(b * c, -1),
                head_DV,
                jnp.maximum(targets_bc, 0).reshape(-1),
                vocab_size=vocab,
            )
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(all_bM, new.reshape(b, c), i * c, axis=1)
                for all_bM, new in zip(done, scores, strict=True)
            )

        begin = (jnp.zeros_like(at, jnp.float32), jnp.zeros_like(at, bool))
        nats, greedy = jax.lax.fori_loop(0, (most + c - 1) // c, chunk, begin)
        return nats[:, :M], greedy[:, :M]

    specs = jax.tree.map(
        lambda x: x.sharding.spec if isinstance(x.sharding, NamedSharding) else P(), params
    )
    tokens = parallel.batch_sharding(mesh)
    rows = NamedSharding(mesh, P(tokens.spec[0]))
    arguments = (specs, *[tokens.spec] * 3, *[rows.spec] * 2, P())
    program = jax.jit(
        parallel.per_device(score, mesh, arguments, (rows.spec, rows.spec)),
        out_shardings=parallel.replicated(mesh),  # every process reads the same results
    )

    def run(params: Any, laid: tries.Laid) -> Any:
        whole = [
            jax.make_array_from_process_local_data(sharding, array, array.shape)
            for sharding, array in zip(
                [tokens] * 3 + [rows] * 2,
                (laid.inputs_BR, laid.positions_BR, laid.ends_BR, laid.at_BM, laid.targets_BM),
                strict=True,
            )
        ]
        return program(params, *whole, np.int32(laid.targets))

    return run


def _taken(x_brD: jax.Array, at_bc: jax.Array) -> jax.Array:
    """Hidden states [b, c, D] at indices of whole rows, of which this device may hold a part."""
    r = x_brD.shape[1]
    local_bc = at_bc - parallel.index("sequence") * r
    here_bc = (local_bc >= 0) & (local_bc < r)
    x_bcD = jnp.take_along_axis(x_brD, jnp.where(here_bc, local_bc, 0)[..., None], axis=1)
    return parallel.psum(jnp.where(here_bc[..., None], x_bcD, 0), ("sequence",))
