"""Reading ahead: whoever waits gets a result or an error, however closing comes in between."""

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from gaia.data import read_ahead
from gaia.data.manifest import TokenizerInfo
from gaia.data.read_ahead import ReadAhead
from gaia.data.rows import TokenRows
from gaia.data.shards import write_shards
from gaia.storage.gcs import Stopped

WAIT_S = 20.0  # for what must happen; only a failing test waits so long


class Gate:
    """A read that stands still until it is let go."""

    def __init__(self):
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, number):
        self.began.set()
        assert self.go.wait(WAIT_S)
        return number * 10


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.go.set()


@pytest.fixture
def waits(monkeypatch):
    """Set when a thread begins to wait for a result."""
    event = threading.Event()

    class Watched(Future):
        def result(self, timeout=None):
            event.set()
            return super().result(timeout)

    monkeypatch.setattr(read_ahead, "Future", Watched)
    return event


def asked_in_a_thread(call):
    """(thread, what it raised): `call` runs in a thread that must end."""
    raised = []

    def ask():
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, raised


def must_be_stopped(thread, raised):
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it still waits after close"
    assert [type(error) for error in raised] == [Stopped]
    assert str(raised[0]).startswith("data was closed")


def test_items_are_read_once_and_the_least_recently_used_goes():
    calls = []
    items = ReadAhead(lambda n: calls.append(n) or n * 10, name="data", capacity=2, threads=1)
    assert [items.get(n) for n in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert calls == [1, 2, 3, 2]
    items.ahead([7])
    assert items.get(7) == 70 and calls[-1] == 7
    items.close()
    items.close()


def test_an_error_ahead_is_raised_where_the_item_is_wanted():
    def read(number):
        raise OSError(f"item {number}")

    items = ReadAhead(read, name="data", capacity=2, threads=1)
    items.ahead([4])
    with pytest.raises(OSError, match="item 4"):
        items.get(4)
    items.close()


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ([1], 1),  # being read
        ([1, 2], 2),  # queued behind another
        ([1, 2, 3, 4], 1),  # being read, and no longer kept
    ],
)
def test_closed_while_somebody_waits(gate, waits, before, wanted):
    items = ReadAhead(gate, name="data", capacity=4, threads=1)
    items.ahead(before[:2])
    assert gate.began.wait(WAIT_S)
    asking = asked_in_a_thread(lambda: items.get(wanted))
    assert waits.wait(WAIT_S)
    items._capacity = 2
    items.ahead(before[2:])
    assert (wanted in items._kept) == (len(before) < 3)
    # The read itself goes on until it looks at `stop`; nobody waits for that.
    closing = asked_in_a_thread(items.close)[0]
    must_be_stopped(*asking)
    gate.go.set()
    closing.join(WAIT_S)
    assert not closing.is_alive() and not items._promised


def test_closed_while_the_asker_itself_reads(gate):
    items = ReadAhead(gate, name="data", capacity=2, threads=1)
    asking = asked_in_a_thread(lambda: items.get(1))
    assert gate.began.wait(WAIT_S)
    items.close()
    gate.go.set()
    must_be_stopped(*asking)


def test_closed_between_the_promise_and_its_reader(gate):
    """`close` begins after an item was claimed and before it is handed to a thread."""
    items = ReadAhead(gate, name="data", capacity=2, threads=1)
    items.ahead([1])
    assert gate.began.wait(WAIT_S)
    put, closing = items._work.put, []

    class Work:
        def put(self, call):
            if not closing:
                closing.append(asked_in_a_thread(items.close)[0])
                closing[0].join(0.05)  # it ends here only where the lock is not held
            put(call)

        get = staticmethod(items._work.get)

    items._work = Work()
    asking = asked_in_a_thread(lambda: (items.ahead([2]), items.get(2)))
    must_be_stopped(*asking)
    gate.go.set()
    closing[0].join(WAIT_S)
    assert not closing[0].is_alive()


def test_nothing_is_promised_after_the_end(gate):
    items = ReadAhead(gate, name="data", capacity=2, threads=1)
    items.close()
    for call in (lambda: items.ahead([1]), lambda: items.get(1)):
        must_be_stopped(*asked_in_a_thread(call))
    assert not gate.began.is_set() and not items._threads


@pytest.mark.parametrize("wins", ["read", "close"])
def test_a_result_and_the_end_at_the_same_moment(gate, waits, wins):
    items = ReadAhead(gate, name="data", capacity=2, threads=1)
    items.ahead([1])
    assert gate.began.wait(WAIT_S)
    future, got = items._kept[1], []
    asking, raised = asked_in_a_thread(lambda: got.append(items.get(1)))
    assert waits.wait(WAIT_S)
    if wins == "read":
        gate.go.set()
        assert future.result(WAIT_S) == 10
        items.close()
    else:
        closing = asked_in_a_thread(items.close)[0]
        assert isinstance(future.exception(WAIT_S), Stopped)
        gate.go.set()
        closing.join(WAIT_S)
    asking.join(WAIT_S)
    assert not asking.is_alive()
    assert (got, [type(e) for e in raised]) == (([10], []) if wins == "read" else ([], [Stopped]))


# ── The rows of a data set ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    info = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=299)
    documents = [np.append(299, np.arange(100)) for _ in range(40)]
    write_shards(folder, documents, documents[:1], info, shard_tokens=500, window=2)
    return folder


def test_rows_asked_for_after_close_are_refused_and_not_waited_for(data):
    """Grain's thread when its loader is closed under it: prefetch, then gather."""
    rows = TokenRows(data, "train", 16)
    rows.gather(np.array([0]))
    rows.close()
    for call in (lambda: rows.prefetch([3]), lambda: rows.gather(np.array([90]))):
        thread, raised = asked_in_a_thread(call)
        thread.join(WAIT_S)
        assert not thread.is_alive() and isinstance(raised[0], Stopped)


LEFT_OPEN = """
import sys
from gaia.data.loader import make_loader
loader = make_loader(sys.argv[1], seq_len=16, batch_size=4, seed=0, prefetch=8)
for _ in range(int(sys.argv[2])):
    next(loader)
if sys.argv[3] == "close":
    loader.close()
print("done")
"""


@pytest.mark.parametrize(
    ("steps", "how"),
    [
        (3, "close"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0, "close"), (3, "leave")]),
    ],
)
def test_a_process_ends_in_the_middle_of_an_epoch(data, steps, how):
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, str(data), str(steps), how],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
