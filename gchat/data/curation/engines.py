"""Engines that run the tasks of a stage: processes of this machine, or datatrove's executors.

Every engine only has to call each task at least once: tasks leave their result atomically and
return at once when it is there. After the engine has ended, what is missing is run again, so that a
lost machine costs time, not documents.

datatrove (the extra `curate-ray`) runs the same tasks as steps of its executors: local processes,
Slurm, or a Ray cluster that `ray.init` finds (`RAY_ADDRESS`). The Slurm one has never run for us.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gchat.data import pool
from gchat.data.curation.stages import SCRATCH, done

ENGINES = ("local", "datatrove-local", "datatrove-slurm", "datatrove-ray")
_ATTEMPTS = 3
_RAY_GB = 1.0  # memory asked for each Ray task
_TASK_SECONDS = 6 * 3600
_SLURM_WAIT_S = 30.0


class EngineError(GaiaError):
    """Tasks were lost and did not come back."""

    exit_status = 1


def run_stage(
    engine: str,
    folder: Path,
    stage: str,
    job: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    progress: Callable[[Any], object],
) -> None:
    """Runs the tasks of one stage that are not done.

    Args:
        engine: one of ENGINES.
        folder: where the markers of `stage` are.
        job: called with each task; a task is a number or a tuple that begins with it.
        workers: processes, or tasks of a cluster at a time.
        progress: called with each task that ends (only by the local engine).

    Raises:
        EngineError: after three attempts there are still tasks without a result.
        Exception: what the job raised (local engine).
    """
    todo = _missing(folder, stage, tasks)
    if engine == "local":
        pool.run(job, todo, min(workers, max(1, len(todo))), lambda task, _: progress(task))
        return
    for attempt in range(_ATTEMPTS):
        if not todo:
            return
        _executor(engine, folder, f"{stage}-{attempt}-{os.getpid()}", job, todo, workers)
        todo = _missing(folder, stage, tasks)
    if todo:
        numbers = ", ".join(str(_number(task)) for task in todo[:5])
        raise EngineError(
            f"{stage}: {len(todo)} tasks of {engine} gave no result (numbers {numbers})",
            f"see the logs under {folder / SCRATCH / 'logs'}, then run it again: it goes on",
        )


def _number(task: Any) -> int:
    return task if isinstance(task, int) else task[0]


def _missing(folder: Path, stage: str, tasks: Sequence[Any]) -> list[Any]:
    return [task for task in tasks if done(folder, stage, _number(task)) is None]


class _Steps:
    """A datatrove step: rank r does task r. A class, because it is pickled to the workers."""

    def __init__(self, job: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self.job = job
        self.tasks = tasks

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for task in self.tasks[rank::world_size]:
            self.job(task)
        return data


def _executor(
    engine: str,
    folder: Path,
    name: str,
    job: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
) -> None:
    """Runs the tasks on one of datatrove's executors and waits for them."""
    try:
        from datatrove.utils.logging import logger  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(f"engine = {engine!r} needs datatrove", install("curate-ray")) from None
    logger.remove()  # each task has a log file; the terminal shows ours
    logs = folder / SCRATCH / "logs" / name
    steps: list[Any] = [_Steps(job, tasks)]
    shared = {"tasks": len(tasks), "logging_dir": str(logs)}
    if engine == "datatrove-local":
        _local(steps, shared, workers)
    elif engine == "datatrove-slurm":
        _slurm(steps, shared, workers, name, logs, len(tasks))
    else:
        _ray(steps, shared, workers)


def _local(steps: list[Any], shared: dict[str, Any], workers: int) -> None:
    from datatrove.executor import (  # pyright: ignore[reportMissingImports]
        LocalPipelineExecutor,
    )

    LocalPipelineExecutor(steps, workers=workers, start_method="spawn", **shared).run()


def _ray(steps: list[Any], shared: dict[str, Any], workers: int) -> None:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from datatrove.executor.ray import (  # pyright: ignore[reportMissingImports]
            RayPipelineExecutor,
        )
    except ImportError:
        raise ConfigError("engine = 'datatrove-ray' needs ray", install("curate-ray")) from None
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    # datatrove hands a task on when its actor dies, but not when the process inside the actor
    # does: the time limit ends those.
    RayPipelineExecutor(
        steps, workers=workers, mem_per_cpu_gb=_RAY_GB, time=_TASK_SECONDS, **shared
    ).run()


def _slurm(
    steps: list[Any],
    shared: dict[str, Any],
    workers: int,
    name: str,
    logs: Path,
    count: int,
) -> None:
    from datatrove.executor import (  # pyright: ignore[reportMissingImports]
        SlurmPipelineExecutor,
    )

    SlurmPipelineExecutor(
        steps,
        workers=workers,
        time="24:00:00",
        partition=os.environ.get("SLURM_PARTITION", "cpu"),
        job_name=f"curate-{name}",
        **shared,
    ).run()  # submits; its completion markers say when it is over
    deadline = time.monotonic() + 24 * 3600
    while len(list((logs / "completions").glob("*"))) < count and time.monotonic() < deadline:
        time.sleep(_SLURM_WAIT_S)
