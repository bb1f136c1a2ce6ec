"""Decodes with the tiny model on one device and split over two fake ones; prints what differs.

Run by `test_split.py` in a process of its own: the number of CPU devices is fixed when JAX starts.
"""

import json
import os
import sys
import warnings
from pathlib import Path

FLAGS = os.environ.get("XLA_FLAGS", "")  # the tests' own, which compile fast
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2])]

import jax  # noqa: E402
import numpy as np  # noqa: E402

import tiny  # noqa: E402
from gaia.parallel import MeshConfig, make_mesh  # noqa: E402
from gaia.params import specs  # noqa: E402
from gchat.engine.engine import Engine  # noqa: E402
from gchat.engine.requests import Request, SamplingConfig  # noqa: E402
from gchat.model_shape import model_shape  # noqa: E402

warnings.simplefilter("error")  # such as of a cache that could not be donated
CONFIG = tiny.gpt_config(seq_len=64, heads=4, kv_heads=2)


def answers(params, graph, **options):
    """(tokens, log-probabilities) of a few requests beside one another."""
    engine = Engine(graph, params, seq_len=64, stop_ids=(), slots=2, piece=16, **options)
    prompts = [[*range(1, 40)], [5], [*range(1, 36)]]
    streams = [
        engine.submit(Request(p, 12, SamplingConfig(t, top_k=9, seed=3), logprobs=0))
        for p, t in zip(prompts, (0.0, 1.0, 0.0), strict=True)
    ]
    events = [event for stream in streams for event in stream]
    assert all(not event.error for event in events), events
    ids = [i for event in events for i in event.ids]
    caches = jax.tree.leaves(engine._ready().caches)
    split = {a.sharding.shard_shape(a.shape)[1] for a in caches}
    return ids, np.array([p.logprob for e in events for p in e.logprobs]), split


def main() -> None:
    """One JSON object: tokens equal, the largest difference, heads of the cache per device."""
    graph, params = tiny.make(CONFIG)
    shape = model_shape(CONFIG)
    mesh = make_mesh(MeshConfig(tensor=2, fsdp=1))
    places = specs(shape.placements, shape.arrays, mesh)
    sharded = jax.tree.map(
        lambda a, spec: jax.device_put(a, jax.sharding.NamedSharding(mesh, spec)), params, places
    )
    result = {}
    for name, options in {"plain": {}, "int8": {"weights": "int8", "kv": "int8"}}.items():
        alone, beside = answers(params, graph, **options), answers(sharded, graph, **options)
        result[name] = {
            "same_tokens": alone[0] == beside[0],
            "tokens": len(alone[0]),
            "difference": float(np.abs(alone[1] - beside[1]).max()),
            "cache_heads_per_device": sorted(beside[2]),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
