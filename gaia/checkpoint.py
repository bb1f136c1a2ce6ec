"""Checkpoints: Orbax's async manager, plus a checksum of every file and a fall-back on damage.

A checkpoint counts once its `checksums.json` exists; a thread writes that file as soon as Orbax has
renamed the finished step into place. A step without it was cut off, a step whose files disagree
with it was damaged. Both are skipped, with a printed line, in favour of the step before.

With several processes each writes the parts it holds; the directory must be one that all of them
see. Process 0 writes the checksums, deletes, and looks for damage; what went wrong on one process
is told to all, so that all go on in the same way.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from gaia import seal, storage
from gaia.errors import CheckpointError, ConfigError
from gaia.processes.group import Group
from gaia.seal import CHECKSUMS

_TEMPORARY = ".orbax-checkpoint-tmp"
_LOOKS = 20
"""Times that a reader looks for the steps, of which the writer may prune one meanwhile."""
_PAUSES_S = (0.5, 4.0)
"""Seconds between two tries to read where storage does not answer."""


class Restored(NamedTuple):
    """A checkpoint that was read back and verified."""

    step: int
    state: Any
    meta: dict[str, Any]
    digest: str
    """Name of the checkpoint by the content of its files."""


class Checkpointer:
    """Saves and restores (state, meta) pairs by step under one directory, local or gs://.

    Args:
        directory: created when missing.
        keep: newest checkpoints to keep.
        keep_every: also keep every checkpoint whose step is a multiple of this; 0 for none.
        group: the processes, all of which make the same calls.
        read_only: neither write nor delete anything, whoever writes there at the same time.

    Raises:
        ConfigError: the directory is not one that all processes see.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep: int = 2,
        keep_every: int = 0,
        group: Group | None = None,
        read_only: bool = False,
    ) -> None:
        # Orbax wants absolute paths; a gs:// address is one already.
        self.directory = epath.Path(directory if "://" in directory else os.path.abspath(directory))
        self._group, self._read_only = group or Group(), read_only
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check_shared()
        self._keep, self._keep_every = keep, keep_every
        self._saves = 0
        self.last_saved: int | None = None
        """The newest step that this object has put on disk whole."""
        self._open()

    def _open(self) -> None:
        # A reader must not sweep up what the writer has under way, nor make a folder of its own.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if self._read_only else self._keep,
            keep_period=None if self._read_only else self._keep_every or None,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            create=not self._read_only,
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("state", args, ocp.StandardCheckpointHandler())
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add("meta", args, ocp.JsonCheckpointHandler())
        registry.add("state", ocp.args.PyTreeRestore, ocp.PyTreeCheckpointHandler())
        for look in range(1, _LOOKS + 1):
            try:
                self._manager = ocp.CheckpointManager(
                    self.directory, options=options, handler_registry=registry
                )
                break
            except FileNotFoundError:  # Orbax lists the steps, then asks each for its age
                if not self._read_only or look == _LOOKS:
                    raise
        self._sealing: threading.Thread | None = None
        self._failure: tuple[int, str] | None = None
        self._closed = False

    def _check_shared(self) -> None:
        """Checks that the other processes see a file that process 0 makes."""
        if self._group.count == 1:
            return
        token = self._group.broadcast(lambda: f".seen-by-all-{os.getpid()}")
        mark = self.directory / token
        if self._group.first:
            mark.write_text("")
        self._group.all_gather(None)
        seen = self._group.all_gather(mark.exists())
        if self._group.first:
            mark.unlink()
        if not all(seen):
            raise ConfigError(
                f"checkpoint.dir {str(self.directory)!r} is not the same folder on process "
                f"{seen.index(False)}",
                "use a gs:// address, or a folder that all hosts share",
            )

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> str | None:
        """Starts an asynchronous save; `state` may be donated as soon as this returns.

        Returns:
            None, or what went wrong with this save or the one before it (disk full, bucket gone).
            Earlier checkpoints are intact and training may go on.
        """
        before, failed = self.wait(), None
        if (problem := self._group.broadcast(lambda: self._no_room(state))) is not None:
            return f"step {step}: {problem}"
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
                ),
            )
        except Exception as error:  # any storage back-end may raise its own kind
            if self._group.count == 1:
                return self._recover(step, _one_line(error))
            failed = error  # the others are about to ask how it went
        self._saves += 1
        self._sealing = threading.Thread(
            target=self._seal, args=(step, self._saves, failed), name="seal-checkpoint"
        )
        self._sealing.start()
        return before

    def _no_room(self, state: Any) -> str | None:
        """Returns a message where the disk cannot hold the state, else None (always for buckets).

        Orbax meets a full disk with a page of errors from each write under way, and the room of
        the half-written step is gone until it is swept up: better not begin.
        """
        if "://" in str(self.directory):
            return None
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free >= needed:
            return None
        return (
            f"no space left on device: {self.directory} has {free / 1e6:,.1f} MB free, a "
            f"checkpoint takes up to {needed / 1e6:,.1f} MB"
        )

    def wait(self) -> str | None:
        """Blocks until the save under way is on disk; returns what went wrong, or None."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        return self._recover(*self._failure) if self._failure is not None else None

    def _recover(self, step: int, problem: str) -> str:
        """Drops the half-written step of a failed save and starts a fresh manager."""
        try:
            self._manager.close()
        except Exception as again:
            # The failed save's error is raised once more by close(); it is reported already.
            del again
        names = storage.list_names(str(self.directory)) if self._group.first else ()
        for path in [self.directory / name for name in names]:
            unsealed = path.name == str(step) and not (path / CHECKSUMS).exists()
            if unsealed or _TEMPORARY in path.name:
                path.rmtree(missing_ok=True)
        self._group.all_gather(None)
        self._open()
        return f"step {step}: {problem}"

    def close(self) -> str | None:
        """Waits for the last save and stops the background threads; returns its error or None."""
        if self._closed:
            return None
        problem = self.wait()
        self._manager.close()
        self._closed = True
        return problem

    def steps(self) -> list[int]:
        """Steps on disk, oldest first, finished or not."""
        # Not iterdir(): in a bucket an empty folder does not exist, and gcsfs keeps old listings.
        names = storage.list_names(str(self.directory))
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self, report: Callable[[str], None] = print) -> int | None:
        """The newest step whose files all match their checksums; prints what it skipped."""
        return self._group.broadcast(lambda: self._newest_sound(report))

    def _newest_sound(self, report: Callable[[str], None]) -> int | None:
        steps = self.steps()
        while steps:
            step = steps.pop()
            problem = self.damage(step)
            if problem is None:
                return step
            now = self.steps()
            if step not in now:  # a writer pruned it while it was read, and has newer ones
                steps = now
                continue
            report(f"checkpoint {step} is unusable ({problem}); falling back to the one before")
        return None

    def damage(self, step: int) -> str | None:
        """Says what is wrong with a checkpoint's files; None if every one matches its checksum.

        Raises:
            CheckpointError: storage does not answer, which says nothing about the checkpoint.
        """
        for pause_s in _PAUSES_S:
            with contextlib.suppress(OSError):
                return seal.damage(self.directory / str(step))
            time.sleep(pause_s)
        try:
            return seal.damage(self.directory / str(step))
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read now ({_one_line(error)})",
                "try again when storage answers; nothing was changed",
            ) from None

    def read_meta(self, step: int) -> dict[str, Any]:
        """The metadata of a step, without its arrays.

        Raises:
            CheckpointError: it is gone, or its metadata cannot be read.
        """
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with self._readable(step):
            return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """Reads a checkpoint into arrays of the shapes, dtypes and shardings of `abstract_state`.

        Raises:
            CheckpointError: the checkpoint does not hold such a state, or vanished meanwhile.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
        )
        with self._readable(step):
            self._refuse_difference(step, self._difference(step, abstract_state))
            restored = self._manager.restore(step, args=args)
            digest = seal.digest(self.directory / str(step))
        return Restored(step, restored["state"], restored["meta"], digest)

    def restore_part(
        self,
        step: int,
        abstract_part: Mapping[str, Any],
        *,
        within: Mapping[str, Any] | None = None,
    ) -> Restored:
        """Reads some of a checkpoint's arrays, such as `{"params": …}`; the others stay on disk.

        Args:
            step: of the checkpoint.
            abstract_part: a part of the state's tree, with shapes, dtypes and shardings.
            within: the groups that it is of, with all of their arrays: `{"params": …}`. Where it
                is left out, the part is whole groups itself.

        Raises:
            CheckpointError: the checkpoint does not hold such arrays, or holds more of a group
                than its reader knows; or it vanished meanwhile.
        """
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item=abstract_part,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_part),
                partial_restore=True,
            ),
            meta=ocp.args.JsonRestore(),
        )
        with self._readable(step):
            difference = self._difference(step, within or abstract_part, part=True)
            self._refuse_difference(step, difference, "read it with the code that trained it")
            restored = self._manager.restore(step, args=args)
            digest = seal.digest(self.directory / str(step))
        return Restored(step, restored["state"], restored["meta"], digest)

    def _refuse_difference(
        self,
        step: int,
        difference: str | None,
        remedy: str = "resume with the configuration it was made with",
    ) -> None:
        if difference is not None:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} does not fit this run ({difference})",
                remedy,
            )

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Raises CheckpointError for what storage or Orbax raise where a file has changed."""
        try:
            yield
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read ({_one_line(error)})",
                "try again, or resume from an earlier one",
            ) from error

    def _difference(self, step: int, abstract_state: Any, *, part: bool = False) -> str | None:
        """The first array whose shape differs between a checkpoint and a state; None if none does.

        Of a part of a state only its groups are compared: an array of theirs that a reader does
        not know is a part of the model that it would leave out.

        Asked before anything is read: Orbax abandons the reads of the other arrays when one fails.
        """
        stored = self._manager.item_metadata(step)["state"]
        if stored is None:
            raise FileNotFoundError("the metadata of its arrays is missing")
        in_checkpoint = _shapes(stored.tree)
        wanted = _shapes(ocp.tree.serialize_tree(abstract_state, keep_empty_nodes=True))
        groups = {name.partition(".")[0] for name in (wanted if part else in_checkpoint)}
        known = {name for name in in_checkpoint if name.partition(".")[0] in groups}
        for name in sorted(known | wanted.keys()):
            if in_checkpoint.get(name) != wanted.get(name):
                here, there = in_checkpoint.get(name, "missing"), wanted.get(name, "missing")
                return f"{name} is {here} in the checkpoint and {there} in the run"
        return None

    def discard_after(self, step: int) -> None:
        """Deletes the steps above `step`: the run is about to write them again."""
        for later in [s for s in self.steps() if s > step] if self._group.first else []:
            (self.directory / str(later)).rmtree()
        self._group.all_gather(None)
        self._manager.reload()

    def _seal(self, step: int, number: int, failed: Exception | None) -> None:
        """Waits for Orbax to finish a step, then writes the checksums of its files."""
        problem = self._try_to_seal(step, failed)
        # The last word is process 0's: the checksums are written when all the parts are there.
        everyones = self._group.all_gather(problem, f"checkpoint-{number}")
        if problem := next((p for p in everyones if p is not None), None):
            self._failure = (step, problem)  # told to the caller of the next save or wait
        else:
            self.last_saved = step

    def _try_to_seal(self, step: int, failed: Exception | None) -> str | None:
        try:
            if failed is not None:
                raise failed
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if self._group.first:
                seal.write(self.directory / str(step))
        except Exception as error:
            return _one_line(error)
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _shapes(tree: Any) -> dict[str, list[int]]:
    """Shapes by the dotted names of the leaves."""
    return {name: list(leaf.shape) for name, leaf in ocp.tree.to_flat_dict(tree, sep=".").items()}
