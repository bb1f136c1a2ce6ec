"""Trains the tiny model on one device and on meshes of eight fake ones; prints what differs.

    python tests/gchat/eight_devices.py [--few] '{"fsdp": 4, "tensor": 2}' …

`--few` leaves out adapters, the batch ramp and AdamW, whose programs take long to compile.
One JSON object per line and mesh, each a relative difference from the single device. Run by
`test_meshes.py` in a process of its own: the number of CPU devices is fixed when JAX starts.
"""

import json
import os
import sys
from pathlib import Path

FLAGS = os.environ.get("XLA_FLAGS", "")  # the tests' own, which compile fast
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from unittest.mock import patch  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import tiny  # noqa: E402
from gaia import parallel  # noqa: E402
from gaia.adapters import merged  # noqa: E402
from gaia.data.batch import Batch  # noqa: E402
from gaia.data.packing import Example, pack_examples  # noqa: E402
from gaia.parallel import MeshConfig, make_mesh  # noqa: E402
from gchat import train_state, train_step  # noqa: E402
from gchat.engine.engine import Engine  # noqa: E402
from gchat.engine.requests import SamplingConfig  # noqa: E402
from gchat.evals import bpb  # noqa: E402
from gchat.score import Scorer  # noqa: E402

ROWS, STEPS = 8, 20
# Three layers, which no mesh divides; grouped heads; norms on heads; padded vocabulary.
MODEL = {"depth": 3, "dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "seq_len": 32}


# Everything that Muon can be told: what it adds to the plain rule must know the mesh, too.
MUON = {
    "normuon_beta2": 0.9, "muon_equilibrate": True, "muon_renormalize": True,
    "momentum_start": 0.8, "matrix_weight_decay": 0.1, "decay_schedule": "cosine",
    "cautious_decay": True,
}  # fmt: skip


def batch(rows: int = ROWS) -> Batch:
    tokens = tiny.tokens(rows, MODEL["seq_len"] + 1)
    targets = tokens[:, 1:].copy()
    targets[0, :9] = -1  # devices get different numbers of targets
    return Batch(tokens[:, :-1], targets)


def packed_batch() -> Batch:
    """Rows of whole documents, with padding; their segments run across parts of a row."""
    lengths = (30, 9, 17, 20, 5, 33, 12, 3, 25, 28, 31, 14, 2, 8, 22)
    documents = [tiny.tokens(n, seed=n) for n in lengths]
    rows = pack_examples([Example(d, d % 5 > 0) for d in documents], MODEL["seq_len"])
    empty = Batch.padding(ROWS - len(rows.inputs_BT), MODEL["seq_len"])
    return jax.tree.map(lambda *pair: np.concatenate(pair), rows, empty)


def sgd(_config, _steps, _roles, _ramp) -> optax.GradientTransformation:
    """Plain gradient descent whose state is the last gradient."""

    def update(grads, _state, _params=None):
        return jax.tree.map(lambda g: -0.1 * g, grads), grads

    return optax.GradientTransformation(lambda p: jax.tree.map(jax.numpy.zeros_like, p), update)


def start(mesh, optimizer: str, packing="split", lora_rank=0, **training):
    """The step function and the state with random weights in every place, on this mesh."""
    config = tiny.train_config(
        model=MODEL | {"lora_rank": lora_rank},
        optim={"name": optimizer} | (MUON if optimizer == "muon" else {}),
        training={"batch_size": ROWS} | training,
        data={"packing": packing},
    )
    graph = train_state.graphdef(config)
    state = train_state.init_state(config, mesh)
    _, params = tiny.make(config.model)
    put = jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), params, state.params)
    return config, graph, state._replace(params=put)


def train(mesh, optimizer: str, steps: int, packing="split", lora_rank=0, parts=1, **training):
    """(losses, parameters, optimizer state after the first step), on the host."""
    training = {"batch_size": ROWS * parts} | training
    config, graph, state = start(mesh, optimizer, packing, lora_rank, **training)
    step = train_step.make_train_step(graph, config, mesh, parts=parts)
    whole = batch(ROWS * parts) if packing == "split" else packed_batch()
    rows = jax.tree.map(lambda a: parallel.shard_rows(a, mesh), whole)
    losses, first = [], None
    for _ in range(steps):
        state, metrics = step(state, rows)
        losses.append(float(metrics.loss))
        if packing != "split":
            losses += [float(value) for value in metrics.more.values()]
        first = jax.device_get(state.opt_state) if first is None else first
    params = merged(state.params, config.model.lora_scale) if lora_rank else state.params
    return np.array(losses), jax.device_get(params), first


def evaluate(mesh):
    """(nats of packed rows, log-likelihoods, greedy tokens) from sharded parameters."""
    config, graph, state = start(mesh, "adamw")
    documents = [tiny.tokens(n, seed=n) for n in (9, 30, 17, 50)]
    packed = bpb.pack(documents, seq_len=MODEL["seq_len"], stride=16, batch_size=ROWS)
    nats = train_step.make_scorer(graph, config, mesh)(state.params, packed[0])
    engine = Engine(graph, state.params, seq_len=MODEL["seq_len"], stop_ids=())
    greedy = SamplingConfig(temperature=0.0)
    prompts = [[1, 2, 3], [4, 5]]
    pairs = [(tiny.tokens(n, seed=n), tiny.tokens(m, seed=m)) for n in (3, 30, 17) for m in (1, 6)]
    scores = Scorer(graph, config, mesh, batch_tokens=256).loglikelihood(state.params, pairs)
    sums = np.array([[score.sum, score.greedy] for score in scores])
    return np.asarray(nats), sums, engine.generate(prompts, max_new_tokens=6, sampling=greedy)


def apart(tree, reference) -> float:
    """The relative difference in the 2-norm, over all leaves together."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True))
    difference = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
    return (difference / sum(float(np.sum(b**2)) for _, b in pairs)) ** 0.5


def apart_by_leaf(tree, reference) -> float:
    """The same for the leaf where it is largest."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    return max(apart(a, b) for a, b in pairs)


def results(mesh, few: bool, **training) -> dict:
    with patch.object(train_state, "make_optimizer", sgd):
        plain = {
            "": train(mesh, "adamw", STEPS, **training),
            "packed_": train(mesh, "adamw", 5, "best_fit", **training),
        }
        if not few:
            plain["adapted_"] = train(mesh, "adamw", 3, lora_rank=4, **training)
            plain["ramp_"] = train(mesh, "adamw", 3, parts=2, **training)
    found = {
        name + what: value
        for name, values in plain.items()
        for what, value in zip(("losses", "params", "gradients"), values, strict=True)
    }
    for name in ("muon",) if few else ("adamw", "muon"):
        found[f"{name}_losses"], found[f"{name}_params"], _ = train(mesh, name, 5, **training)
    found["nats"], found["scores"], found["tokens"] = evaluate(mesh)
    return found


def main() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    few = sys.argv[1] == "--few"
    reference = results(make_mesh(MeshConfig(), jax.devices()[:1]), few)
    for text in sys.argv[1 + few :]:
        sizes = json.loads(text)
        training = {"grad_accum": sizes.pop("grad_accum", 1)}
        found = results(make_mesh(MeshConfig(**sizes)), few, **training)
        line = {k: apart(found[k], reference[k]) for k in found if k != "tokens"}
        line["each_gradient"] = apart_by_leaf(found["gradients"], reference["gradients"])
        line["same_tokens"] = found["tokens"] == reference["tokens"]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
