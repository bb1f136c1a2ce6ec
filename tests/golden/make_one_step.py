"""Makes one_step.json: what the first three updates of a tiny model report at a fixed seed.

    PYTHONPATH=.:tests python tests/golden/make_one_step.py       (in the repository's root)

Run it again only when a change is meant to alter training, and say so in the commit.
"""

import json
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "one_step.json"


def measure() -> dict[str, list[float]]:
    """Loss, gradient norm and parameter norm after each of three updates."""
    import jax
    import optax

    import tiny
    from gaia import parallel
    from gaia.data.batch import Batch
    from gchat.train_state import graphdef, init_state
    from gchat.train_step import make_train_step

    config = tiny.train_config()
    mesh = parallel.make_mesh()
    graph, state = graphdef(config), init_state(config, mesh)
    train_step = make_train_step(graph, config, mesh)
    norm = jax.jit(optax.tree.norm)
    found: dict[str, list[float]] = {"loss": [], "grad_norm": [], "param_norm": []}
    rows = tiny.tokens(4, 33, seed=7)
    for _ in range(3):
        state, metrics = train_step(state, Batch(rows[:, :-1], rows[:, 1:]))
        values = (metrics.loss, metrics.grad_norm, norm(state.params))
        for name, value in zip(found, values, strict=True):
            found[name].append(float(np.float32(value)))
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps(measure(), indent=1) + "\n")
    print(PATH.read_text())
