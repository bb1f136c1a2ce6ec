"""The queue in a file: the protocol against a model, and what only a file can suffer."""

import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from gchat.queue import open_queue
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
