"""Outcomes of an evaluation, one line an item, so that it goes on where it was stopped.

    RUN/evals/core-step000160-1339d258-max100.jsonl      step of the model, data, items a task
    RUN/evals/core-step000160-1339d258-max100.json       the summary, when all is done

The first line says what was evaluated. Lines of a batch are on disk before the next one is read.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gaia.errors import DataError
from gaia.writer_lock import WriterLock

Record = dict[str, Any]
"""An item's outcome, as JSON holds it."""


class Results:
    """The file of one evaluation, held by one process; a context manager.

    Args:
        path: of the .jsonl file.
        facts: JSON values that decide the outcomes; a file of others is refused.
        take: called with each outcome of earlier attempts, on entering; KeyError, TypeError and
            ValueError tell that it is none.

    Raises:
        FolderInUse: on entering, where another process evaluates into this file.
        DataError: on entering, where the file is of another evaluation, or cannot be written.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], take: Callable[[Record], None]
    ) -> None:
        self.path, self._facts, self._take = path, dict(facts), take
        self._lock = WriterLock(path.with_name(f".{path.name}.lock"), f"the evaluation {path}")

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            kept = self._read()
            # Opened for appending only after a line that a kill has torn is cut off.
            with open(self.path, "a+b") as file:
                file.truncate(kept)
            if not kept:
                self._append([self._facts])
        except OSError as error:
            self._lock.__exit__()
            raise self._unwritable(error) from None
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._lock.__exit__()

    def add(self, records: Sequence[Record]) -> None:
        """Appends outcomes; on disk when this returns."""
        if not records:
            return
        try:
            self._append(records)
        except OSError as error:
            raise self._unwritable(error) from None

    def _append(self, lines: Sequence[Record]) -> None:
        with open(self.path, "ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _unwritable(self, error: OSError) -> DataError:
        problem = DataError(
            f"{str(self.path)!r} cannot be written ({error.strerror})",
            "make room; what is done is kept, the same command goes on with it",
        )
        problem.exit_status = 1
        return problem

    def _read(self) -> int:
        """Reads earlier outcomes; returns the bytes that are whole lines."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            return 0
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    self._check(record)
                else:
                    self._take(record)
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path}, line {number}: it is no outcome of an evaluation",
                    "remove the file to evaluate anew",
                ) from None
        return len(whole)

    def _check(self, facts: Mapping[str, Any]) -> None:
        for name, value in self._facts.items():
            if facts[name] != value:
                raise DataError(
                    f"{str(self.path)!r} was made with another {name.replace('_', ' ')} "
                    f"({facts[name]}, now {value})",
                    "remove the file to evaluate anew",
                )
