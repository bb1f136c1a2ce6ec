"""The run folder of an imported model, written beside its place and moved there whole.

RUN/config.yaml  tokenizer.json  checkpoints/0/  import.json  chat_template.jinja

The checkpoint holds parameters and no state of an optimizer: the model can be sampled, scored, and
a new run can begin with it (`--init-from`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gaia.checkpoint import Checkpointer
from gaia.config import to_dict
from gaia.errors import CheckpointError, ConfigError
from gaia.whole_output import check_room, refusing_os_errors
from gaia.work_folder import refuse_difference
from gaia.writer_lock import WriterLock
from gchat.chat_format import CHAT_TEMPLATE
from gchat.config import CHECKPOINTS, CONFIG, TrainConfig
from gchat.importing.source import Source
from gchat.importing.weights import parameters
from gchat.model_config import GPTConfig
from gchat.model_shape import all_params
from gchat.run.folder import IMPORTED, RunFolder, write_atomically
from gchat.run_config import RunConfig
from gchat.tokenizer import Tokenizer

_SCRATCH = ".tensors"


def named(out: Path) -> Path:
    """A place by a path that ends in its name: what is written first lies beside it.

    "." has none, and "a/.." is there even where "a" is not. Other paths stay as they were given.
    """
    return out if out.name and ".." not in out.parts else Path(os.path.abspath(out))


def finished(out: Path, asked: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The facts of an import that `out` holds already; None where one may be written.

    Raises:
        ConfigError: `out` holds something else than an import.
        DataError: it holds another import, and `overwrite` is not given.
    """
    if not out.exists() or not any(out.iterdir() if out.is_dir() else [out]):
        return None
    facts = out / IMPORTED
    if not facts.is_file():
        what = "a run that was trained" if (out / CONFIG).is_file() else "something else"
        raise ConfigError(f"out = {str(out)!r} holds {what}", "choose another --out")
    if overwrite:
        return None
    stored = json.loads(facts.read_text(encoding="utf-8"))
    refuse_difference(out, stored.get("asked") or {}, dict(asked), "an imported model")
    return stored


def write(
    source: Source,
    model: GPTConfig,
    tokenizer: Tokenizer,
    out: Path,
    facts: Mapping[str, Any],
    progress: Any,
) -> None:
    """Writes the run folder; an import that lies there is replaced.

    Args:
        source: checked.
        model: derived.
        tokenizer: of the model.
        out: the run's folder.
        facts: for import.json.
        progress: told the number of elements after each tensor.

    Raises:
        ImportRefused: a tensor cannot be read.
        DataError: the disk is full, or `out` cannot be written.
        FolderInUse: another process imports into `out`.
    """
    partial = out.with_name(f".{out.name}.importing")
    with refusing_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with WriterLock(partial.with_suffix(".lock"), f"a run in {out}"):
            shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
            try:
                _write(source, model, tokenizer, out, partial, facts, progress)
                _move(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def _write(
    source: Source,
    model: GPTConfig,
    tokenizer: Tokenizer,
    out: Path,
    folder: Path,
    facts: Mapping[str, Any],
    progress: Any,
) -> None:
    config = TrainConfig(model=model, run=RunConfig(name=out.name, dir=str(folder)))
    scratch = folder / _SCRATCH
    scratch.mkdir(parents=True)
    check_room(out, 2 * 4 * all_params(model), "the import")  # scratch, and the checkpoint
    params = parameters(source, model, scratch, progress)
    meta = {
        "imported": dict(facts),
        "tokenizer_sha256": tokenizer.sha256,
        "config": json.loads(json.dumps(to_dict(replace(config, run=RunConfig(name=out.name))))),
    }
    checkpoints = Checkpointer(str(folder / CHECKPOINTS))
    problem = checkpoints.save(0, {"params": params}, meta)
    if problem := problem or checkpoints.close():
        raise CheckpointError(f"the parameters cannot be written ({problem})", "make room")
    del params
    shutil.rmtree(scratch)
    RunFolder(folder).write_config(config, tokenizer)
    if source.vocabulary.chat_template is not None:
        write_atomically(folder / CHAT_TEMPLATE, source.vocabulary.chat_template)
    write_atomically(folder / IMPORTED, json.dumps(dict(facts), indent=1) + "\n")


def _move(partial: Path, out: Path) -> None:
    """Puts the finished folder in its place, in one step where nothing lies there."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def digest(paths: list[Path]) -> str:
    """SHA-256 over the contents of files, in the given order."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()
