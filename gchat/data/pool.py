"""Worker processes: one job, many tasks, results as they come.

A worker gets the job once, then tasks. It ends with its parent, even when that is killed; a worker
that is killed ends the whole run with one line. Tasks must leave their result on disk atomically,
so that a run that ended early is simply repeated.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gaia.errors import GaiaError

T = TypeVar("T")
R = TypeVar("R")
_job: Callable[[Any], Any] | None = None


class WorkerError(GaiaError):
    """A worker process ended without finishing its task."""

    exit_status = 1


def cores() -> int:
    """Processor cores that this process may use."""
    with contextlib.suppress(AttributeError):  # macOS has no affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    job: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    done: Callable[[T, R], None],
) -> None:
    """Calls `job(task)` for every task, in up to `workers` processes, and `done` with each result.

    Args:
        job: picklable; a single worker runs it in this process.
        tasks: taken from the iterable only when a worker will soon be free.
        workers: processes; 1 stays in this process.
        done: called in this process, in no particular order.

    Raises:
        WorkerError: a worker was killed.
        Exception: what the job raised; tasks that run at that moment are abandoned.
    """
    # A process that is itself being spawned, or is daemonic, must not have children.
    if workers <= 1 or multiprocessing.parent_process() is not None:
        for task in tasks:
            done(task, job(task))
        return
    # Not fork: a process with JAX threads may deadlock in its child.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job,))
    running: dict[Future, T] = {}
    try:
        for task in tasks:
            running[pool.submit(_work, task)] = task
            if len(running) > workers:  # one waits, so that no worker does
                _collect(running, done)
        while running:
            _collect(running, done)
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed (perhaps for memory)",
            "run it again: what was finished is kept; use fewer --workers where memory is short",
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(running: dict[Future, T], done: Callable[[T, R], None]) -> None:
    """Hands over what is finished, after waiting for at least one."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        task = running.pop(future)
        done(task, future.result())


def _start(job: Callable[[Any], Any]) -> None:
    """In the worker: keeps the job, leaves Ctrl-C to the parent, and ends with it."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _work(task: Any) -> Any:
    assert _job is not None
    return _job(task)
