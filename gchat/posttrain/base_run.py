"""The run that a later stage begins with: what it hands down, and whether it can be begun with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gaia.config import load_yaml
from gaia.errors import ConfigError, DataError
from gaia.step_ranges import read_changes
from gchat import applied
from gchat.config import CONFIG, TrainConfig, without_places
from gchat.model_config import plain_model
from gchat.run.checkpoints import read_run, saved_checkpoints
from gchat.run.folder import IMPORTED
from gchat.tokenizer import FILE as TOKENIZER
from gchat.tokenizer import Tokenizer

_HANDED_DOWN: Mapping[str, tuple[str, ...]] = {
    "training": ("batch_size", "grad_accum", "seed", "loss_chunk"),
    "eval": ("tokens", "stride_fraction", "sample_tokens"),
    "run": ("log_interval", "in_flight"),
    "checkpoint": ("every_minutes", "keep"),
}
"""Fields of groups that a stage takes over in part; model, optim and guards are taken whole."""


class BaseRun(NamedTuple):
    """A run to begin with."""

    path: Path
    """Its folder, absolute."""
    config: TrainConfig
    tokenizer: Tokenizer
    step: int
    """Step of the checkpoint to begin with."""
    commit: str | None
    """Commit of the code that trained it, as its summary says."""


def open_base(given: str, *, step: int | None, allow_unfinished: bool) -> BaseRun:
    """Reads a run's configuration and finds the checkpoint to begin with.

    Args:
        given: folder of the run, trained or imported.
        step: of the checkpoint; the newest when left out.
        allow_unfinished: begin with a run that has not reached its last step.

    Raises:
        CheckpointError: no run lies there, or one with ideas that this code lacks.
        ConfigError: it holds no finished checkpoint, or not that of its last step.
    """
    path = Path(given).absolute()
    applied.check(path / CONFIG)
    config = read_run(given)
    steps = [saved.step for saved in saved_checkpoints(config)]
    if not steps:
        raise ConfigError(f"--base {given!r} holds no finished checkpoint", "train it first")
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise ConfigError(
            f"stage.base_step is {step}, which --base {given!r} does not have",
            f"use one of {known}",
        )
    if step is None:
        step, last = steps[-1], config.training.steps
        imported = (path / IMPORTED).exists()
        if not imported and last is not None and step < last and not allow_unfinished:
            raise ConfigError(
                f"--base {given!r} is not finished: it is saved at step {step} of {last}",
                f"finish it (--resume --run-dir {given}), or add --allow-unfinished",
            )
    return BaseRun(path, config, Tokenizer.load(path / TOKENIZER), step, _commit(path))


def _commit(path: Path) -> str | None:
    try:
        return json.loads((path / "summary.json").read_text(encoding="utf-8")).get("commit")
    except (OSError, ValueError, AttributeError):
        return None


def handed_down(path: Path) -> dict[str, Any]:
    """Hyper-parameters of the run in a folder, as a preset of the stage that begins with it.

    Its model, optimizer and guards, batch size and seed; not its data, length, mesh, prompts,
    files to score, name or places. Changes of weight decay are at steps of its own length: the
    decays that it ended with are handed down without them.

    Raises:
        ConfigError: no run lies there.
    """
    if not (path / CONFIG).exists():
        raise ConfigError(f"--base {str(path)!r} holds no run", "give the folder of a run")
    tree = without_places(load_yaml(path / CONFIG), of_new_run=True)
    groups = {name: dict(tree.get(name) or {}) for name in ("optim", "guards")}
    _end_decays(groups["optim"], (tree.get("training") or {}).get("steps"))
    groups["model"] = plain_model(dict(tree.get("model") or {}))
    for name, fields in _HANDED_DOWN.items():
        group = tree.get(name) or {}
        groups[name] = {field: group[field] for field in fields if field in group}
    return {name: group for name, group in groups.items() if group}


def _end_decays(optim: dict[str, Any], steps: int | None) -> None:
    """Puts the weight decays of a run's last step in place of their changes."""
    for name in ("weight_decay", "matrix_weight_decay"):
        texts = optim.pop(f"{name}_steps", None) or ()
        for change in read_changes(f"optim.{name}_steps", texts):
            if steps is None or change.in_epochs or change.at < steps:
                optim[name] = change.value


def check_tokenizer(base: BaseRun, theirs: Tokenizer, place: str) -> None:
    """Raises DataError where prepared data has another tokenizer than the base run."""
    own = base.tokenizer
    if theirs.sha256 != own.sha256:
        raise DataError(
            f"{place} was made with another tokenizer ({theirs.kind} {theirs.sha256[:12]}) than "
            f"--base {str(base.path)!r} ({own.kind} {own.sha256[:12]})",
            f"prepare it again with --tokenizer {base.path / TOKENIZER}",
        )
