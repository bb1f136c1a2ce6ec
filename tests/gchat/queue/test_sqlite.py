"""The queue in a file: the protocol against a model, and what only a file can suffer."""

import errno
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from gchat.queue import Item, QueueError, open_queue
from queue_model import Machine


class SqliteMachine(Machine):
    sync = "full"

    def open(self, attempts):
        self.folder = tempfile.mkdtemp(prefix="gaia-queue-")
        return open_queue(f"{self.folder}/q?sync={self.sync}", create=True, attempts=attempts)

    def teardown(self):
        super().teardown()
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)


class UnsyncedMachine(SqliteMachine):
    sync = "normal"


@pytest.mark.parametrize(
    ("machine", "examples", "steps"),
    [(UnsyncedMachine, 12, 30), pytest.param(SqliteMachine, 300, 60, marks=pytest.mark.slow)],
)
def test_any_calls_in_any_order(machine, examples, steps):
    given = settings(max_examples=examples, stateful_step_count=steps)
    run_state_machine_as_test(machine, settings=given)


def test_results_as_objects_are_written_once(tmp_path):
    """A worker died between the object and the end of its item: nobody does the work again."""
    with open_queue(tmp_path / "q", create=True, results=f"{tmp_path}/objects") as queue:
        queue.add([Item("a/ü", {}), Item("b" * 300, {})])
        first = queue.lease(2, 0, "dies")
        assert queue.store.put("results", "a/ü", {"by": "the dead", "cost": 0.5})
        assert not queue.store.put("results", "a/ü", {"by": "another"})
    with open_queue(tmp_path / "q") as queue:  # the queue itself says where its results are
        [second] = queue.lease(2, 60, "w")
        assert second.item.id == "b" * 300 and queue.complete(second, {"by": "w"})
        assert not queue.complete(first[1], {"by": "too late"})
        assert [(one.id, one.result["by"]) for one in queue.results()] == [
            ("a/ü", "the dead"), ("b" * 300, "w"),
        ]  # fmt: skip
        assert set(queue.store.ids("results")) == {"a/ü", "b" * 300}
        assert queue.facts().cost == 0.5
        queue.store.delete("results", "a/ü")
        with pytest.raises(QueueError, match=r"the result of 'a/ü' is not in .*objects"):
            list(queue.results())


def test_an_old_receipt_does_nothing(tmp_path):
    with open_queue(tmp_path / "q", create=True) as queue:
        queue.add([Item("a", {})])
        [old] = queue.lease(1, 0, "slow")
        [new] = queue.lease(1, 60, "quick")
        assert old.receipt != new.receipt
        assert not queue.extend(old, 0) and not queue.release(old)
        assert not queue.fail(old, "schema: x", final=True) and not queue.complete(old, {"by": 1})
        counts = queue.counts()
        assert (counts.leased, counts.waiting, counts.dead, counts.done) == (1, 0, 0, 0)
        assert queue.complete(new, {"by": 2}) and queue.complete(new, {"by": 3})
        assert [one.result for one in queue.results()] == [{"by": 2}]


def test_what_returns_is_on_the_disk_though_threads_share_a_sync(tmp_path, monkeypatch):
    """A sync covers the bytes of the files when it began: each copy is the disk of a power cut."""
    path, real, copies = tmp_path / "q", os.fsync, []

    def copied_first(handle):
        folder = tmp_path / f"disk-{len(copies)}"
        folder.mkdir()
        for name in ("q", "q-wal"):
            shutil.copy(tmp_path / name, folder)
        time.sleep(0.002)
        real(handle)
        copies.append(folder)

    with open_queue(path, create=True) as queue:
        queue.add(Item(f"i{n}", {}) for n in range(64))
        monkeypatch.setattr("gchat.queue.group_sync.os.fsync", copied_first)
        returned = []

        def finish(lease):
            assert queue.complete(lease, {})
            returned.append((lease.item.id, len(copies)))

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(finish, queue.lease(64, 60, "w")))
        monkeypatch.undo()
    assert len(returned) == 64 > 2 * len(copies)
    for count, folder in enumerate(copies, 1):
        with open_queue(folder / "q") as queue:
            on_disk = {one.id for one in queue.results()}
        assert {id for id, copied in returned if copied <= count} <= on_disk


def test_a_failed_sync_is_never_forgotten(tmp_path, monkeypatch):
    """Linux drops the bytes that it could not write, and then says yes (lwn.net/752063)."""
    with open_queue(tmp_path / "q", create=True) as queue:
        queue.add([Item("a", {}), Item("b", {})])
        one, two = queue.lease(2, 60, "w")

        def fails(handle):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("gchat.queue.group_sync.os.fsync", fails)
            with pytest.raises(QueueError, match=r"cannot be synced \(Input/output error\)"):
                queue.complete(one, {})
        for lease in (one, two):
            with pytest.raises(QueueError, match="cannot be synced"):
                queue.complete(lease, {})
    with open_queue(tmp_path / "q") as queue:
        assert queue.counts().open == 0
