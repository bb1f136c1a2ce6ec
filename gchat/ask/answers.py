"""The file of answers: each line written once and whole, gone on with after any kind of end."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gaia.errors import ConfigError, DataError, GaiaError
from gaia.writer_lock import WriterLock


class DiskError(GaiaError):
    """An answer could not be written; those before it are there."""

    exit_status = 1


class Answers:
    """Answers to the lines of one file, in a file of their own; a context manager.

    While a job runs they lie in the order in which they came, and in that of the questions when
    all are there.

    Args:
        path: of the file.
        retry_errors: forget lines that hold an error, so that they are asked again.
        maker: command that writes such files, for messages.

    Raises:
        DataError: on entering, where the file holds something else, or another process writes it.
    """

    def __init__(
        self, path: Path, *, retry_errors: bool = False, maker: str = "gchat generate"
    ) -> None:
        self.path, self._retry_errors, self._maker = path, retry_errors, maker
        self.keys: dict[int, str] = {}
        """Fingerprint of what was asked, by the line of the question."""
        self.errors = 0
        """Lines that hold an error."""
        if path.exists() and not path.is_file():
            raise ConfigError(f"{str(path)!r} is no file", "name a file for the answers")
        if not path.parent.is_dir():
            raise ConfigError(f"the folder {str(path.parent)!r} does not exist", "make it first")
        self._lock = WriterLock(path.with_name(f".{path.name}.lock"), f"answers to {path}")

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            kept, dropped = self._read()
            if dropped:
                self._replace([raw for _, raw in kept])
            self._file = open(self.path, "ab")
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def _read(self) -> tuple[list[tuple[int, bytes]], bool]:
        """(line of the question, whole line) of each answer; tells whether some are to go."""
        kept: list[tuple[int, bytes]] = []
        dropped = False
        if not self.path.exists():
            return kept, False
        with open(self.path, "rb") as file:
            for at, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):  # torn by a kill; its question is asked again
                    dropped = True
                    continue
                try:
                    record = json.loads(raw)
                    line, key = int(record["line"]), str(record["key"])
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{self.path}:{at} is no answer of {self._maker}", "name another file"
                    ) from None
                if "error" in record and self._retry_errors:
                    dropped = True
                    continue
                self.errors += "error" in record
                self.keys[line] = key
                kept.append((line, raw))
        return kept, dropped

    def write(self, record: dict[str, Any]) -> None:
        """Adds one answer; when this returns no end of this process can take it away.

        Raises:
            DiskError: the disk is full, or gone.
        """
        raw = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        try:
            self._file.write(raw)
            self._file.flush()
        except OSError as error:
            raise DiskError(
                f"cannot write {self.path} ({error.strerror})",
                "make room and run the same command: it goes on where it stopped",
            ) from None
        self.keys[record["line"]] = record["key"]
        self.errors += "error" in record

    def in_order(self) -> None:
        """Puts the answers into the order of the questions."""
        kept, _ = self._read_again()
        ordered = sorted(kept, key=lambda pair: pair[0])
        if ordered != kept:
            self._replace([raw for _, raw in ordered])

    def _read_again(self) -> tuple[list[tuple[int, bytes]], bool]:
        errors = self.errors
        try:
            return self._read()
        finally:
            self.errors = errors

    def _replace(self, lines: list[bytes]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with open(partial, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DiskError(f"cannot write {partial} ({error.strerror})", "make room") from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # what could not be written was reported by `write`
        finally:
            self._lock.__exit__(kind, error, trace)
