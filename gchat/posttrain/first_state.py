"""The state that a stage begins with: a base run's parameters under a fresh optimizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gchat.config import TrainConfig
from gchat.run.folder import read_config
from gchat.run.loading import load_params
from gchat.train_state import TrainState, init_state


def first_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The base run's parameters under a fresh optimizer, and fresh adapters where there are any."""
    base = Path(str(config.training.init_from))
    state = init_state(config, mesh)
    theirs = load_params(
        str(base), read_config(base), mesh, model=config.model, step=config.stage.base_step
    )
    return state._replace(params=with_base(state.params, theirs.state))


def with_base(params: Any, base: Any) -> Any:
    """Parameters with those of a base run in their places; adapters, which it lacks, stay."""
    if not isinstance(params, Mapping):
        return base
    return {
        name: with_base(value, base[name]) if name in base else value
        for name, value in params.items()
    }
