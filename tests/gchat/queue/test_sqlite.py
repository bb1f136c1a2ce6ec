"""The queue in a file: the protocol against a model, and what only a file can suffer."""

import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from gchat.queue import Item, open_queue
from queue_model import Machine


class SqliteMachine(Machine):
    def open(self, attempts):
        self.folder = tempfile.mkdtemp(prefix="gaia-queue-")
        return open_queue(f"{self.folder}/q", create=True, attempts=attempts)

    def teardown(self):
        super().teardown()
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)


@pytest.mark.parametrize(
    ("examples", "steps"), [(12, 30), pytest.param(300, 60, marks=pytest.mark.slow)]
)
def test_any_calls_in_any_order(examples, steps):
    run_state_machine_as_test(
        SqliteMachine, settings=settings(max_examples=examples, stateful_step_count=steps)
    )


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
