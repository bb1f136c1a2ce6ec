"""A run's parameters at one step, as a run of their own with a card: facts, metrics, lineage."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from gaia.checkpoint import Checkpointer
from gaia.config import to_dict
from gaia.errors import CheckpointError, ConfigError
from gaia.parallel import to_host
from gaia.writer_lock import WriterLock
from gchat.archive import card as cards
from gchat.archive.card import Card
from gchat.chat_format import CHAT, CHAT_TEMPLATE
from gchat.config import CHECKPOINTS, TrainConfig
from gchat.model_shape import all_params, matmul_params
from gchat.run import judged
from gchat.run.checkpoints import read_run
from gchat.run.folder import IMPORTED, RunFolder
from gchat.run.loading import LoadedRun, load_run
from gchat.run.series import Series, read_series

_METRICS = {
    "train_loss": "train/loss", "val_bpb": "eval/val_bpb", "val_loss": "eval/val_loss",
    "core_v1": "eval/core_v1", "core_v2": "eval/core_v2", "chatcore": "eval/chatcore",
}  # fmt: skip
_LONGEST_LINE = 20  # runs of a lineage; a circle of folders would have no end


def add(
    archive: Path, run: Path, *, step: str, name: str | None, status: str, note: str | None
) -> Card:
    """Copies a run's parameters into the archive.

    Args:
        archive: its folder, made where it is missing.
        run: folder of the run.
        step: of the checkpoint: last, best or a number.
        name: of the model; put together from the facts when left out.
        status: a word of `card.STATUSES`.
        note: a remark to begin with.

    Raises:
        ConfigError: the name is taken or no name, or these weights are there already.
        CheckpointError: the run has no such checkpoint, or the disk is full.
        FolderInUse: another process adds a model of that name.
    """
    loaded = load_run(str(run), step=step)
    weights = digest(loaded.params)
    for other in cards.every(archive):
        if other.facts["weights"] == weights:
            raise ConfigError(
                f"these weights are in the archive already, as {other.name!r}",
                f"gchat models note {other.name} TEXT says more about them",
            )
    metrics = _metrics(run, loaded.step)
    facts = _facts(run, loaded, weights)
    name = name or _name(facts, metrics, loaded.config)
    if not cards.NAME.fullmatch(name):
        raise ConfigError(f"--name is {name!r}", "use letters, digits, - _ . = and +")
    if (archive / name).exists():
        raise ConfigError(f"the archive has a model {name!r}", "choose another --name")
    card = Card(name, status, time.time(), facts, metrics, _lineage(archive, run, loaded.config))
    partial = archive / f".{name}.adding"
    archive.mkdir(parents=True, exist_ok=True)
    with WriterLock(partial.with_suffix(".lock"), f"the model {name} in {archive}"):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            _write(partial, run, loaded)
            cards.write(partial, card.noted(note, None))
            os.rename(partial, archive / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return cards.read(archive / name)


def digest(params: Any) -> str:
    """SHA-256 over all parameters: their places, shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = to_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _write(folder: Path, run: Path, loaded: LoadedRun) -> None:
    config = replace(loaded.config, run=replace(loaded.config.run, dir=str(folder)))
    checkpoints = Checkpointer(str(folder / CHECKPOINTS))
    meta = {
        "tokenizer_sha256": loaded.tokenizer.sha256,
        "config": json.loads(json.dumps(to_dict(config))),
    }
    problem = checkpoints.save(loaded.step, {"params": loaded.params}, meta)
    if problem := problem or checkpoints.close():
        raise CheckpointError(f"the parameters cannot be written ({problem})", "make room")
    checkpoint = replace(config.checkpoint, dir=None)
    RunFolder(folder).write_config(replace(config, checkpoint=checkpoint), loaded.tokenizer)
    for file in (CHAT, CHAT_TEMPLATE, IMPORTED):
        if (run / file).is_file():
            shutil.copyfile(run / file, folder / file)
    for file in ("metrics.jsonl", judged.HISTORY):
        if (run / file).is_file():
            whole, _, _torn = (run / file).read_bytes().rpartition(b"\n")
            kept = [line for line in whole.splitlines() if json.loads(line)["step"] <= loaded.step]
            (folder / file).write_bytes(b"".join(line + b"\n" for line in kept))


def _facts(run: Path, loaded: LoadedRun, weights: str) -> dict[str, Any]:
    config, model = loaded.config, loaded.config.model
    rows = config.training.batch_size
    imported = (run / IMPORTED).is_file()
    return {
        "run": str(run.resolve()),
        "step": loaded.step,
        "stage": "imported" if imported else config.stage.name,
        "params": all_params(model),
        "matmul_params": matmul_params(model),
        "tokens": None if imported or rows is None else loaded.step * rows * model.seq_len,
        "of_steps": config.training.steps,
        "shape": f"{model.depth} layers x {model.dim}, {model.heads} heads, context "
        f"{model.seq_len}, vocabulary {loaded.tokenizer.vocab_size}",
        "data": _data(config),
        "fingerprint": config.data.fingerprint,
        "tokenizer": f"{loaded.tokenizer.kind} {loaded.tokenizer.sha256[:16]}",
        "weights": weights,
        "commit": _summary(run).get("commit") or _live(run).get("commit"),
    }


def _data(config: TrainConfig) -> str | None:
    data = config.data
    listed = [f"{name}={place}" for name, place in data.mixture.items()]
    return ", ".join(filter(None, [data.dir, data.text, *listed])) or None


def _metrics(run: Path, step: int) -> dict[str, Any]:
    """Figures at this very step; one of an earlier step is no figure of these weights."""
    log = run / "metrics.jsonl"
    series: Series = read_series(log) if log.is_file() else {}
    known = {name: dict(series.get(key, ())).get(step) for name, key in _METRICS.items()}
    metrics: dict[str, Any] = {name: v for name, v in known.items() if v is not None}
    for path in sorted((run / "evals").glob("*.json")):
        figures = _json(path)
        if figures.get("step") == step:
            metrics |= {n: figures[n] for n in ("core_v1", "core_v2", "chatcore") if figures.get(n)}
    judgements = [
        one for one in judged.history(run) if one["step"] == step and one.get("rate") is not None
    ]
    if judgements:
        last = judgements[-1]
        metrics["judge"] = {
            name: last[name] for name in ("judge", "answers", "rate", "low", "high")
        }
    return metrics


def _name(facts: Mapping[str, Any], metrics: Mapping[str, Any], config: TrainConfig) -> str:
    bpb = metrics.get("val_bpb")
    end = "" if bpb is None else f"-bpb{bpb:.3f}"
    run = "".join(c if cards.NAME.fullmatch(f"a{c}") else "-" for c in config.run.name)
    return f"{run}-{cards.size(facts['params'])}-{facts['stage']}-step{facts['step']}{end}"


def _lineage(archive: Path, run: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Runs that this one began with, the first one first."""
    # A run may begin with the archived model itself, or with the run that this was made of.
    known = {
        (str(place), c.facts["step"]): c.name
        for c in cards.every(archive)
        for place in (c.facts["run"], (archive / c.name).resolve())
    }
    line: list[dict[str, Any]] = []
    here = run
    while len(line) < _LONGEST_LINE:
        imported = _json(here / IMPORTED)
        if imported:
            source = imported.get("source") or imported.get("path") or "made elsewhere"
            line.append({"stage": "imported", "source": str(source), "step": None})
            break
        before = config.training.init_from
        if before is None:
            break
        base, step = Path(before).resolve(), config.stage.base_step
        one: dict[str, Any] = {"run": str(base), "step": step, "stage": "?"}
        if (str(base), step) in known:
            one["model"] = known[str(base), step]
        line.append(one)
        if not (base / "config.yaml").is_file():
            one["gone"] = True
            break
        here, config = base, read_run(str(base))
        one["stage"] = "imported" if (base / IMPORTED).is_file() else config.stage.name
    return line[::-1]


def _summary(run: Path) -> dict[str, Any]:
    return _json(run / "summary.json")


def _live(run: Path) -> dict[str, Any]:
    return _json(run / "live.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}
