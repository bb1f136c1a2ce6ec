"""A folder that one long piece of work fills: locked, resumable, and without a trace of failures.

    FOLDER/.gaia.lock          held by the process that works there
    FOLDER/.NAME/              scratch: markers and parts of the work, gone when it is done
    FOLDER/.NAME/work.json     parameters, and the names of the results written so far
    FOLDER/RESULT …            results; the last one says that the work is complete

Run again with the same parameters, the work goes on; with others it is refused. Removed is only
what the work itself wrote: each result is noted before it gets its name, and a file of that name
that somebody else put there is refused instead of replaced.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gaia import storage
from gaia.errors import DataError, GaiaError
from gaia.writer_lock import WriterLock

LOCK = ".gaia.lock"
_STATE = "work.json"
_LONG = 60  # characters of a parameter's value that an error still quotes


class WorkFolder:
    """One piece of work in one folder; a context manager that holds the folder's lock.

    When the context ends with a GaiaError and no marker was left, nothing is: neither results nor
    scratch nor a folder that was not there before. Other exceptions (Ctrl-C, a bug) leave what is
    there, and the next run goes on.

    Args:
        folder: where the results go.
        name: of the work, for its scratch folder: "prepare".
        what: is made, for messages: "a data set".
        markers: pattern of the files in scratch that are worth keeping after an error.
        option: the command-line option that named the folder.

    Attributes:
        scratch: folder for parts of the work.

    Raises:
        FolderInUse: on entering, where another process works in this folder.
    """

    def __init__(
        self, folder: Path, name: str, *, what: str, markers: str = "*.json", option: str = "out"
    ) -> None:
        self.folder = folder
        self.scratch = folder / f".{name}"
        self._what, self._markers, self._option = what, markers, option
        self._lock = WriterLock(folder / LOCK, f"{what} in {folder}")
        self._was_there, self._begun = True, False
        self._parameters: dict[str, Any] | None = None
        self._results: list[str] = []

    def __enter__(self) -> Self:
        self._was_there = self.folder.exists()
        self._lock.__enter__()
        state = _read(self.scratch / _STATE) or {}
        self._parameters, self._results = state.get("parameters"), state.get("results", [])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._begun and isinstance(error, GaiaError) and not self.has_progress:
                self.clear()
        finally:
            self._lock.__exit__()
            if kind is not None and not self._was_there:
                with contextlib.suppress(OSError):  # something is in it
                    self.folder.rmdir()

    @property
    def has_progress(self) -> bool:
        """True where a part of the work is finished and kept for the next run."""
        return any(path.name != _STATE for path in self.scratch.glob(self._markers))

    def has(self, name: str) -> bool:
        """True for a result of this work, also of the run that it goes on with."""
        return name in self._results

    def begin(
        self,
        parameters: dict[str, Any],
        results: Iterable[str] = (),
        later: re.Pattern[str] | None = None,
    ) -> None:
        """Starts the work, or goes on with what an interrupted run left.

        Args:
            parameters: JSON values that decide the results.
            results: names that will be written, as far as they are known; see `claim`.
            later: matches the names that will be claimed later on, so that a file in their way is
                refused now and not at the end of the work.

        Raises:
            DataError: the folder holds unfinished work with other parameters, or files of these
                names that are not this work's.
        """
        if self._parameters is not None:
            refuse_difference(
                self.folder, self._parameters, parameters, self._what, option=self._option
            )
        if later is not None:
            names = storage.list_names(self.folder)
            self._refuse_foreign(name for name in names if later.fullmatch(name))
        self.claim(*results, parameters=parameters)
        self._begun = True
        self._remove_torn()

    def claim(self, *names: str, parameters: dict[str, Any] | None = None) -> None:
        """Notes results before they get their names, so that they are known to be this work's.

        Args:
            names: of the results.
            parameters: of the work, where it begins with this.

        Raises:
            DataError: a file of that name is there already, and is not this work's.
        """
        new = [name for name in names if name not in self._results]
        self._refuse_foreign(new)
        self._results += new
        self._parameters = self._parameters if parameters is None else parameters
        storage.make_folder(self.scratch)
        state = {"parameters": self._parameters, "results": self._results}
        storage.write_text(self.scratch / _STATE, json.dumps(state))

    def _refuse_foreign(self, names: Iterable[str]) -> None:
        there = [n for n in names if n not in self._results and (self.folder / n).exists()]
        if there:
            raise DataError(
                f"{self._option} = {str(self.folder)!r} holds {', '.join(there[:3])}, which "
                f"{self._what} would replace",
                f"choose another --{self._option}, or move it away",
            )

    def finish(self) -> None:
        """Removes the scratch folder: the results are complete."""
        self._parameters, self._results = None, []
        shutil.rmtree(self.scratch, ignore_errors=True)

    def clear(self, finished: Iterable[str] = ()) -> None:
        """Removes the work: its scratch folder and its results, and nothing else.

        Args:
            finished: names of the results of finished work that is to be replaced.
        """
        for name in (*finished, *self._results):
            (self.folder / name).unlink(missing_ok=True)
        self._remove_torn()
        self.finish()

    def _remove_torn(self) -> None:
        """Removes temporary files of results, which a killed process left."""
        for name in self._results:
            for torn in self.folder.glob(f".{name}.*.tmp"):
                torn.unlink(missing_ok=True)
        for torn in self.scratch.glob(".*.tmp"):
            torn.unlink(missing_ok=True)


def unfinished(folder: Path, name: str) -> dict[str, Any]:
    """Parameters of interrupted work in a folder; empty where there is none."""
    return (_read(folder / f".{name}" / _STATE) or {}).get("parameters") or {}


def refuse_difference(
    folder: Path, old: dict[str, Any], new: dict[str, Any], what: str, *, option: str = "out"
) -> None:
    """Raises DataError naming the parameters that differ from those of the work in a folder."""
    differing = sorted(key for key in old | new if old.get(key) != new.get(key))
    if differing:
        shown = ", ".join(_change(key, old.get(key), new.get(key)) for key in differing)
        raise DataError(
            f"{option} = {str(folder)!r} holds {what} made with other parameters: {shown}",
            f"choose another --{option}, or replace it with --overwrite",
        )


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = sorted(k for k in old | new if old.get(k) != new.get(k))
        return ", ".join(_change(f"{key}.{k}", old.get(k), new.get(k)) for k in inner)
    values = f"{old!r} -> {new!r}"
    return f"{key} {values}" if len(values) <= _LONG else key


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
