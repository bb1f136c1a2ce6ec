"""Pretraining: the step, and THE loop, in the order things happen.

    python -m gchat.train [CONFIG.yaml] [--group.field value …] [--resume]

A step number counts finished updates: step k is logged, validated and saved after k updates.
Shapes: B rows, T time, A micro-batches of a step.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

import gaia_metrics
from gaia import parallel
from gaia.checkpoint import Checkpointer
from gaia.errors import ConfigError, GaiaError, run_cli
from gaia.guards import StopRequest
from gaia.kernels.cross_entropy import cross_entropy, token_nll
from gaia.manifest import load_manifest
from gaia.optim import make_optimizer, schedule
from gaia.records import make_loader
from gaia.runtime import Machine, peak_flops, start
from gchat.config import FREE_ON_RESUME, TrainConfig, derive, load
from gchat.evals import bpb
from gchat.evals.ngram import ngram_baselines
from gchat.evals.periodic import EVAL_ROWS, Evaluator
from gchat.model import GPT
from gchat.progress import Progress
from gchat.report import write_report
from gchat.run_folder import RunFolder
from gchat.tokenizer import Tokenizer


class TrainState(NamedTuple):
    """Everything an update reads and writes: fp32 parameters, optimizer state, finished steps."""

    params: Any
    opt_state: Any
    step: jax.Array


class StepMetrics(NamedTuple):
    """Device scalars of one update, fp32."""

    loss: jax.Array
    grad_norm: jax.Array
    tokens: jax.Array


def init_state(config: TrainConfig, mesh: Mesh) -> tuple[Any, TrainState]:
    """The model's static graph and the state before the first update, born under jit."""
    optimizer = make_optimizer(config.optim, config.training.steps or 1)
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT(config.model, rngs=nnx.Rngs(0))))

    @partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def init(key: jax.Array) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(key))))
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return graph, init(jax.random.key(config.training.seed))


def make_train_step(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """The jitted update (state, inputs_BT, targets_BT) -> (state, metrics); donates the state.

    The loss is the mean over all unmasked targets (>= 0) of the step, however it is split over
    devices and micro-batches: each sum is divided by the count of the whole step.
    """
    optimizer = make_optimizer(config.optim, config.training.steps or 1)
    A, c = config.training.grad_accum, config.model

    def loss_share(params, inputs_BT, targets_BT, key, count):
        model: GPT = nnx.merge(graph, params)
        x_BTD, _ = model(inputs_BT, key=key)
        total, _ = cross_entropy(
            x_BTD.reshape(-1, x_BTD.shape[-1]),
            model.head_kernel,
            targets_BT.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return total / count

    def loss_and_grads(shared, inputs_bT, targets_bT):
        """Sums over the rows of one device, micro-batch by micro-batch."""
        params, key, count = shared
        key = jax.random.fold_in(key, parallel.device_index(mesh))

        def micro(inputs_mT, targets_mT, i):
            dropout_key = jax.random.fold_in(key, i) if c.dropout else None
            grad_of = jax.value_and_grad(loss_share)
            return grad_of(params, inputs_mT, targets_mT, dropout_key, count)

        if A == 1:
            return micro(inputs_bT, targets_bT, 0)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, micro(*batch)), None

        split = jax.tree.map(
            lambda a: a.reshape(A, a.shape[0] // A, a.shape[1]), (inputs_bT, targets_bT)
        )
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zeros, (*split, jnp.arange(A)))[0]

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, inputs_BT: jax.Array, targets_BT: jax.Array):
        count = jnp.maximum(jnp.sum(targets_BT >= 0), 1).astype(jnp.float32)
        # Randomness is a function of (seed, step, place), so a resume needs no stored key.
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        over_rows = parallel.sum_over_rows(loss_and_grads, mesh)
        loss, grads = over_rows((state.params, key, count), inputs_BT, targets_BT)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.global_norm(grads), count)
        return TrainState(params, opt_state, state.step + 1), metrics

    return train_step


def make_scorer(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """The jitted forward pass (params, packed rows) -> nats per target [B, T], fp32."""
    c = config.model

    def score(params, inputs_bT, targets_bT, positions_bT, segment_ids_bT):
        model: GPT = nnx.merge(graph, params)
        x_bTD, _ = model(inputs_bT, positions_BT=positions_bT, segment_ids_BT=segment_ids_bT)
        nll_n = token_nll(
            x_bTD.reshape(-1, x_bTD.shape[-1]),
            model.head_kernel,
            targets_bT.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return nll_n.reshape(targets_bT.shape)

    over_rows = jax.jit(parallel.map_over_rows(score, mesh))

    def score_rows(params, rows: bpb.Rows) -> jax.Array:
        return over_rows(params, *(parallel.shard_rows(a, mesh) for a in rows))

    return score_rows


class TrainingFailed(GaiaError):
    """The run cannot go on: the loss is not finite, or its last checkpoint cannot be written."""

    exit_status = 1


def train(config: TrainConfig, machine: Machine, *, resume: bool = False) -> dict[str, Any]:
    """Trains from scratch, or from the newest sound checkpoint, to the last step of `config`.

    Returns:
        The summary that is also written to RUN/summary.json (`finished` false if stopped early).

    Raises:
        GaiaError: the data, the configuration or the checkpoint cannot be used.
    """
    # ── Data and tokenizer ────────────────────────────────────────────────────────────────────
    if config.data.dir is None:
        raise ConfigError("data.dir is not set", "give --data-dir, or run gchat/speedrun.sh")
    manifest = load_manifest(config.data.dir)
    tokenizer = Tokenizer.load(f"{config.data.dir}/tokenizer.json")
    config, derived = derive(
        config, vocab_size=tokenizer.vocab_size, padded_vocab_size=tokenizer.padded_vocab_size
    )
    t, steps = config.training, config.training.steps or 0
    folder = RunFolder.open(config, resume=resume)
    for sentence in derived:
        print(sentence)

    # ── Model, optimizer, checkpoint ──────────────────────────────────────────────────────────
    mesh = parallel.make_mesh()
    parallel.check_rows((t.batch_size or 1) // t.grad_accum, mesh)
    graph, state = init_state(config, mesh)
    checkpoints = Checkpointer(
        config.checkpoint.dir or "",
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every,
    )
    progress = Progress(config, *peak_flops(machine, config.model.compute_dtype))
    step, run_id = 0, None
    if resume and (found := checkpoints.latest(report=print)) is not None:
        meta = checkpoints.read_meta(found)
        folder.check_resume(meta, config, tokenizer.sha256, FREE_ON_RESUME)
        step, state, meta = checkpoints.restore(found, state)
        checkpoints.discard_after(step)
        run_id = meta["metrics_run_id"]
        progress.restore(meta["progress"])
        print(f"resumed from step {step} of {steps}")
    resumed_at = step
    folder.write_config(config, tokenizer)
    run = gaia_metrics.init(
        "gchat", config.run.name, folder.plain, run_id, dir=folder.path, resume_step=step
    )

    # ── Steps, evals, data ────────────────────────────────────────────────────────────────────
    train_step = make_train_step(graph, config, mesh)
    scorer = make_scorer(graph, config, mesh)
    evaluator = Evaluator(config, tokenizer, graph, scorer, rows=EVAL_ROWS * mesh.size)
    learning_rate = schedule(config.optim, steps)
    batches = make_loader(
        config.data.dir,
        split="train",
        seq_len=config.model.seq_len,
        batch_size=t.batch_size or 1,
        seed=t.seed,
        start_step=step,
        process_index=machine.process_index,
        process_count=machine.process_count,
    )
    in_flight: deque[tuple[int, StepMetrics, float]] = deque()

    def read_metrics(keep: int) -> None:
        """Logs finished steps, oldest first, until at most `keep` are still in flight."""
        while len(in_flight) > keep:
            k, metrics, data_wait = in_flight.popleft()
            loss = float(metrics.loss)  # waits for step k; later steps keep the device busy
            values = progress.step(k, loss, data_wait)
            values |= {"train/loss": loss, "train/grad_norm": float(metrics.grad_norm)}
            run.log(k, values | {"train/lr_share": float(learning_rate(k - 1))})
            if not math.isfinite(loss):
                run.finish("crashed")
                raise TrainingFailed(
                    f"train/loss is {loss} at step {k}",
                    "lower the learning rate; the last checkpoint is sound, see --resume",
                )

    def evaluate(samples: bool) -> None:
        read_metrics(keep=0)
        with progress.paused("evaluating"):
            values = evaluator.validate(state.params)
            run.log(step, values)
            progress.evaluated(step, values)
            if samples:
                text = evaluator.sample(state.params)
                folder.append_samples(step, text)
                run.text(step, "samples", text)

    def save() -> str | None:
        """A checkpoint never outruns the metrics: those up to its step are on disk first."""
        read_metrics(keep=0)
        with progress.paused("saving"):
            if not run.wait_durable(step):
                print(f"metrics of step {step} are not on disk yet; saving all the same")
            problem = checkpoints.save(
                step, state, folder.meta(run.id, tokenizer.sha256, progress.state())
            )
        if problem:
            print(f"checkpoint {step} could not be saved ({problem}); the one before stays good")
        return problem

    # ── THE loop ──────────────────────────────────────────────────────────────────────────────
    every = config.eval.every_steps
    with StopRequest() as stop:
        if step == 0:
            evaluate(samples=False)
        progress.start(step)
        while step < steps and not stop:
            asked = time.perf_counter()
            batch = next(batches)
            data_wait = time.perf_counter() - asked
            inputs_BT = parallel.shard_rows(batch["inputs_BT"], mesh)
            targets_BT = parallel.shard_rows(batch["targets_BT"], mesh)
            state, metrics = train_step(state, inputs_BT, targets_BT)
            step += 1
            in_flight.append((step, metrics, data_wait))
            read_metrics(keep=config.run.in_flight)
            if every and step % every == 0 and step < steps:
                sampling = config.eval.sample_every
                evaluate(samples=bool(sampling) and step % sampling == 0)
            if step < steps and progress.save_due(step):
                save()

        # ── The end ───────────────────────────────────────────────────────────────────────────
        finished = step == steps
        if finished and resumed_at != steps:
            evaluate(samples=True)
        problem = (None if resumed_at == step > 0 else save()) or checkpoints.close()
    run.finish("finished" if finished else "stopped")
    summary = write_report(
        folder,
        config,
        machine,
        progress,
        manifest,
        params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        baselines=ngram_baselines(
            config.data.dir,
            progress.tokens_per_step * step,
            seq_len=config.model.seq_len,
            batch_size=t.batch_size or 1,
            seed=t.seed,
        ),
        finished=finished,
        checkpoint=f"{config.checkpoint.dir}/{step}",
    )
    if problem:
        raise TrainingFailed(
            f"the last checkpoint could not be written ({problem})",
            "make room, then go on with --resume",
        )
    if not finished:
        print(f"stopped after step {step} of {steps} and saved; go on with")
        print(f"  {folder.resume_command}")
    return summary


def run(args: list[str], *, prog: str = "python -m gchat.train") -> dict[str, Any]:
    """Parses [CONFIG.yaml] --group.field value … [--resume] and trains."""
    resume = "--resume" in args
    args = [a for a in args if a != "--resume"]
    config = load(RunFolder.resume_args(args) if resume else args, prog=prog)
    return train(config, start(matmul_precision=config.model.matmul_precision), resume=resume)


if __name__ == "__main__":
    sys.exit(run_cli("gchat", run, sys.argv[1:]))
