"""Local state under `~/.gml`: one 0600 JSON file per node, written before the cloud is asked.

The cloud's labels are the truth; these files are intent records, a cache and a cost history. A
damaged one is set aside and rebuilt from the labels.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from gml.clock import service_clock
from gml.errors import Busy
from gml.model import Node, check_id


def _write_all(handle: int, data: bytes) -> None:
    """Writes every byte; a disk with too little room takes a part first and refuses then."""
    while data:
        data = data[os.write(handle, data) :]


def write_private(path: Path, text: str) -> None:
    """Writes atomically and durably with mode 0600; a crash leaves the old file or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of this call alone: threads of one process write the same file, such as ssh_config.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # not even made, or on a disk that is gone
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _grab(handle: int) -> bool:
    """Takes the lock; a list that only looks whether it is taken holds it for a moment itself."""
    for pause in (0.02, 0.05, 0.1, None):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
    return False


class Store:
    """Node records, locks and the cost history under one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nodes = home / "nodes"

    def _path(self, node_id: str) -> Path:
        return self.nodes / f"{check_id(node_id)}.json"

    def put(self, node: Node) -> Node:
        """Writes the record durably and returns the node."""
        write_private(self._path(node.id), node.to_json() + "\n")
        return node

    def get(self, node_id: str) -> Node | None:
        """The record, or None where there is none or it is damaged (then it is set aside)."""
        return self._read(self._path(node_id))

    def all(self) -> list[Node]:
        """All readable records, oldest first."""
        records = [self._read(p) for p in sorted(self.nodes.glob("*.json"))]
        return sorted((n for n in records if n), key=lambda n: (n.created, n.id))

    def _read(self, path: Path) -> Node | None:
        try:
            return Node.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError:
            return None  # absent, or unreadable for now: looking at it must not change it
        except Exception:
            # Anything at all may stand in a damaged file. The labels in the cloud rebuild it.
            with contextlib.suppress(OSError):
                path.replace(path.with_suffix(".corrupt"))
            return None

    def damaged(self, older_s: float = 0.0) -> list[str]:
        """Ids of records that were set aside as unreadable and are at least `older_s` old."""
        until = time.time() - older_s
        paths = self.nodes.glob("*.corrupt")
        return sorted(p.stem for p in paths if p.stat().st_mtime <= until)

    def clear_damaged(self, node_id: str) -> None:
        """Forgets a set-aside record, once it has been rebuilt."""
        (self.nodes / f"{node_id}.corrupt").unlink(missing_ok=True)

    def remove(self, node: Node, deleted: int | None = None) -> None:
        """Drops the record; what was really up goes into the cost history first."""
        if node.phase != "intent":
            ended = node.replace(deleted=deleted or round(service_clock.now()))
            self._append_history(ended.to_json() + "\n")
        self._path(node.id).unlink(missing_ok=True)
        self.clear_damaged(node.id)

    def _append_history(self, line: str) -> None:
        """Adds the whole line, or nothing where the disk refuses it: a part spoils the next one."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(self.home / "history.jsonl", flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # nobody else's line is cut off below
            size = os.fstat(handle).st_size
            try:
                _write_all(handle, line.encode())
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def history(self) -> list[Node]:
        """Deleted nodes, oldest first; torn lines are skipped."""
        nodes = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.home / "history.jsonl").read_bytes().splitlines():
                with contextlib.suppress(Exception):
                    nodes.append(Node.from_dict(json.loads(line)))
        return nodes

    @contextlib.contextmanager
    def lock(self, node_id: str, *, needs_disk: bool = True) -> Iterator[None]:
        """Holds the node against other gml processes; the kernel drops it if we die.

        Args:
            node_id: the node.
            needs_disk: raise OSError where no lock file can be made; else go on without one.

        Raises:
            Busy: another process holds it.
        """
        folder = self.home / "locks"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(folder / check_id(node_id), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            if needs_disk:
                raise
            yield
            return
        try:
            if not _grab(handle):
                holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
                raise Busy(
                    f"another gml (process {holder}) is working on {node_id}", "wait for it"
                ) from None
            with contextlib.suppress(OSError):  # the lock holds without our number in it
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def locked(self, node_id: str) -> bool:
        """Tells whether some process is working on the node at this moment."""
        try:
            with self.lock(node_id, needs_disk=False):
                return False
        except Busy:
            return True

    def read_json(self, name: str) -> dict:
        """A small JSON file of the store, {} where absent or damaged."""
        try:
            value = json.loads((self.home / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write_json(self, name: str, value: dict) -> None:
        """Writes a small JSON file of the store, 0600."""
        write_private(self.home / name, json.dumps(value, sort_keys=True) + "\n")
