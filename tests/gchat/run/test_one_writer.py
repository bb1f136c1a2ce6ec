"""A run folder has one writer, and any number of readers that never disturb it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time

import pytest

import runs
from gaia import bucket_lock
from gaia.bucket_lock import BucketLock
from gaia.storage import gcs as service
from gaia.writer_lock import FolderInUse
from gchat.__main__ import main

STEPS = 4000  # more than any test waits for


@pytest.fixture(scope="module")
def running(data_dir, tmp_path_factory, user_environment):
    """A run under way in a process of its own, with checkpoints at every 20th step."""
    folder = tmp_path_factory.mktemp("running") / "run"
    args = runs.arguments(data_dir, folder, "--eval.every-steps", 0, steps=STEPS)
    process = runs.Process.train(args, user_environment)
    assert process.step_reached(45), process.text
    reading = threading.Thread(target=process.end)  # nobody else empties its pipe
    reading.start()
    yield folder, process, reading
    process.signal(signal.SIGKILL)
    reading.join()


def test_a_second_writer_is_refused_and_a_reader_is_not(running, capsys):
    folder, process, _ = running
    text = folder.parent / "text"
    text.write_text("the small model")
    assert main(["train", "--resume", "--run-dir", str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"gchat: the run in .* is being written by process \d+ on .*\n", said)
    assert str(process.pid) in said
    for _ in range(2):
        assert main(["eval", "bpb", "--run", str(folder), "--text", str(text)]) == 0
    process.signal(0)  # it lives
    assert not any("no checkpoint of" in line for line in process.lines), process.text


def test_after_kill_9_the_next_takes_over_and_says_so(running, capsys):
    folder, process, reading = running
    before = (folder / "config.yaml").read_bytes()
    process.signal(signal.SIGKILL)
    reading.join()
    # Another seed is refused once the lock is taken, before the run writes anything.
    assert main(["train", "--resume", "--run-dir", str(folder), "--training.seed", "2"]) == 2
    said = capsys.readouterr().err
    assert f"process {process.pid} died before its end" in said
    assert "training.seed was 1337 and is 2" in said
    assert (folder / "config.yaml").read_bytes() == before
    assert not (folder / ".gaia.lock").exists()


def test_two_new_runs_at_once(data_dir, tmp_path, monkeypatch, capsys):
    """The other one begins between this one's first look and its first write."""
    from gchat.run.session import Session

    folder, begin = tmp_path / "run", Session.begin

    def late(self, step):
        other = runs.arguments(data_dir, folder, steps=6)
        monkeypatch.setattr(Session, "begin", begin)
        assert main(["train", *other]) == 0
        begin(self, step)

    monkeypatch.setattr(Session, "begin", late)
    assert main(["train", *runs.arguments(data_dir, folder, steps=8)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert max(runs.losses(folder)) == 6
    assert not (folder / ".gaia.lock").exists()


# ── Buckets ─────────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_has_one_writer(gcs):
    mine = rf"written by process {os.getpid()} on "
    with BucketLock(gcs.uri, "the run in b"), pytest.raises(FolderInUse, match=mine):
        BucketLock(gcs.uri, "the run in b").__enter__()
    with BucketLock(gcs.uri, "the run in b"):
        pass
    assert service.list_objects(gcs.uri) == {}


def leave(uri, **changes):
    """The lock of a process that was killed, with some of its facts changed."""
    facts = {**bucket_lock._this_process(), "token": "theirs", "time": time.time(), **changes}
    service.write(f"{uri}/{bucket_lock.NAME}", json.dumps(facts).encode())


def test_who_ended_and_was_not_asked_for_is_dead(gcs, capsys):
    process = subprocess.Popen(["sleep", "60"])
    leave(gcs.uri, pid=process.pid, began=bucket_lock._began(process.pid))
    with pytest.raises(FolderInUse):
        BucketLock(gcs.uri, "the run in b").__enter__()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    with BucketLock(gcs.uri, "the run in b"):
        assert "taking over the run in b: process" in capsys.readouterr().err
    process.wait()


@pytest.mark.parametrize(
    "changes, free",
    [
        ({}, False),
        ({"began": "1"}, True),  # the process number was given to another process
        ({"pid": 2**22 + 1}, True),
        ({"boot": "before"}, True),
        ({"host": "elsewhere", "boot": "its own"}, False),
        ({"host": "elsewhere", "time": 0}, True),
        ({"namespace": "of a container", "pid": 2**22 + 1}, False),
    ],
)
def test_who_counts_as_dead(gcs, capsys, changes, free):
    leave(gcs.uri, **changes)
    lock = BucketLock(gcs.uri, "the run in b")
    if not free:
        with pytest.raises(FolderInUse):
            lock.__enter__()
        return
    with lock:
        assert "taking over the run in b: process" in capsys.readouterr().err


def test_of_many_at_once_one_gets_the_bucket(gcs, monkeypatch):
    """All of them have looked before any of them writes."""
    locks, entered = [BucketLock(gcs.uri, "b") for _ in range(6)], []
    leave(gcs.uri, host="elsewhere", time=0)
    read, all_looked = bucket_lock._read, threading.Barrier(len(locks), timeout=60)
    waits = threading.local()

    def look(uri):
        holder = read(uri)
        if not hasattr(waits, "over"):  # each thread's first look only
            waits.over = True
            all_looked.wait()
        return holder

    monkeypatch.setattr(bucket_lock, "_read", look)

    def enter(lock):
        with contextlib.suppress(FolderInUse):
            entered.append(lock.__enter__())

    threads = [threading.Thread(target=enter, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1
    entered[0].__exit__()


def test_a_process_taken_for_dead_stops_writing(gcs):
    with BucketLock(gcs.uri, "the run in b", every_s=0.05) as lock:
        leave(gcs.uri, host="elsewhere")
        give_up = time.monotonic() + 60  # only a broken lock gets there
        while lock.is_held and time.monotonic() < give_up:
            time.sleep(0.01)
        with pytest.raises(FolderInUse, match=r"taken over by process .* on elsewhere"):
            lock.check()
    assert list(service.list_objects(gcs.uri)) == [bucket_lock.NAME]  # the other's is kept


def test_a_process_that_slept_asks_before_it_writes(gcs):
    """Its next sign of life, which would tell it, is half a minute away."""
    with BucketLock(gcs.uri, "the run in b") as lock:
        leave(gcs.uri, host="elsewhere")
        lock.check()  # it wrote a moment ago
        lock._seen_at -= 400
        with pytest.raises(FolderInUse, match=r"taken over by process .* on elsewhere"):
            lock.check()


def test_an_answer_that_was_lost_is_no_other_writer(gcs, monkeypatch):
    """The write arrives, its answer does not: the client tries again and meets itself."""
    blob, lost = service.blob, []

    def losing(uri, generation=None):
        handle = blob(uri, generation)
        upload = handle.upload_from_string

        def upload_and_lose(*args, **options):
            upload(*args, **options)
            if not lost:
                lost.append(uri)
                raise ConnectionResetError("the answer is lost")

        handle.upload_from_string = upload_and_lose
        return handle

    monkeypatch.setattr(service, "blob", losing)
    with BucketLock(gcs.uri, "b") as lock:
        assert lock.is_held
    assert service.list_objects(gcs.uri) == {}
