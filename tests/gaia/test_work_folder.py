"""Work folders: one writer, going on after kill -9, and nothing removed that others wrote."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gaia import writer_lock
from gaia.errors import ConfigError, DataError
from gaia.storage import StorageError
from gaia.work_folder import LOCK, WorkFolder, refuse_difference, unfinished
from gaia.writer_lock import FolderInUse, WriterLock

ROOT = Path(__file__).parents[2]


def work(folder, parameters=None, results=("a", "b"), steps=3, fail=None):
    """Writes three parts, then two results; `fail` is raised after so many parts."""
    with WorkFolder(folder, "job", what="a job", markers="part-*.json") as place:
        place.begin(parameters or {"seed": 1}, results)
        for step in range(steps):
            if fail is not None and fail[0] == step:
                raise fail[1]
            (place.scratch / f"part-{step}.json").write_text("{}")
        for name in results:
            (folder / name).write_text(name)
        place.finish()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_finished_work_leaves_its_results_alone(tmp_path):
    work(tmp_path / "out")
    assert names(tmp_path / "out") == ["a", "b"]


def test_a_failure_without_a_finished_part_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError):
        work(tmp_path / "out", fail=(0, ConfigError("x = 1", "no")))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError):
        work(tmp_path / "out", fail=(0, ConfigError("x = 1", "no")))
    assert names(tmp_path / "out") == ["mine.txt"]


@pytest.mark.parametrize("error", [ConfigError("x", "y"), KeyboardInterrupt(), OSError("bug")])
def test_finished_parts_are_kept_and_other_parameters_refused(tmp_path, error):
    with pytest.raises(type(error)):
        work(tmp_path, fail=(2, error))
    assert names(tmp_path) == [".job", *(f".job/{n}" for n in ("part-0.json", "part-1.json")),
                               ".job/work.json"]  # fmt: skip
    assert unfinished(tmp_path, "job") == {"seed": 1}
    with pytest.raises(DataError, match=r"holds a job made with other parameters: seed 1 -> 2;"):
        work(tmp_path, {"seed": 2})
    assert unfinished(tmp_path, "job") == {"seed": 1}
    work(tmp_path)
    assert names(tmp_path) == ["a", "b"]


def test_a_refused_start_removes_nothing_of_the_work_that_is_there(tmp_path):
    """Not even where no part of that work was finished yet."""
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, fail=(0, KeyboardInterrupt()))
    before = names(tmp_path)
    with pytest.raises(DataError, match="seed 1 -> 2"):
        work(tmp_path, {"seed": 2})
    assert names(tmp_path) == before == [".job", ".job/work.json"]


def test_files_of_others_are_neither_replaced_nor_removed(tmp_path):
    (tmp_path / "b").write_text("the user's")
    with pytest.raises(DataError, match=r"holds b, which a job would replace; choose another"):
        work(tmp_path)
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_text() == "the user's"


def test_clearing_removes_what_the_work_wrote_and_torn_files_of_it(tmp_path):
    for name in ("keep.pdf", ".keep.pdf.1.ab.tmp", "c"):
        (tmp_path / name).write_text("the user's")
    with pytest.raises(KeyboardInterrupt), WorkFolder(tmp_path, "job", what="a job") as place:
        place.begin({}, ["a", "b"])
        (tmp_path / "a").write_text("half of the results")
        (tmp_path / ".b.77.abcd.tmp").write_text("torn by kill -9")
        raise KeyboardInterrupt
    with WorkFolder(tmp_path, "job", what="a job") as place:
        assert place.has("a") and not place.has("c")
        place.clear(finished=["c"])
    assert names(tmp_path) == [".keep.pdf.1.ab.tmp", "keep.pdf"]


def test_nested_parameters_are_named_by_their_path(tmp_path):
    old = {"rules": {"min": 1, "max": 2}, "seed": 0, "text": "x" * 99}
    new = {"rules": {"min": 1, "max": 3}, "seed": 0, "text": "y" * 99}
    with pytest.raises(DataError, match=r"parameters: rules\.max 2 -> 3, text; choose another"):
        refuse_difference(tmp_path, old, new, "a job")
    refuse_difference(tmp_path, old, old, "a job")


# ── One writer ────────────────────────────────────────────────────────────────────────────────────

HOLD = """
import sys
from pathlib import Path
from gaia.work_folder import WorkFolder
with WorkFolder(Path(sys.argv[1]), "job", what="a job", markers="part-*.json") as place:
    place.begin({"seed": 1}, ["a", "b"])
    (place.scratch / "part-0.json").write_text("{}")
    (place.folder / "a").write_text("a")
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder):
    """A process that works in a folder until its input ends, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_writer_is_refused_while_the_first_lives_and_takes_over_a_dead_one(
    tmp_path, capsys
):
    with holder(tmp_path) as process:
        before = names(tmp_path)
        with pytest.raises(FolderInUse, match=rf"being written by process {process.pid} on .*wait"):
            work(tmp_path)
        assert names(tmp_path) == before  # the first is untouched
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()  # nobody tidied up
        work(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"taking over a job in {tmp_path}: process {process.pid} died before its end" in said
    assert names(tmp_path) == ["a", "b"]
    work(tmp_path.parent / "other")
    assert capsys.readouterr().err == ""


def test_the_lock_is_free_after_every_end(tmp_path):
    path = tmp_path / "lock"
    for error in (None, KeyError, KeyboardInterrupt):
        with contextlib.suppress(KeyError, KeyboardInterrupt), WriterLock(path, "x"):
            with pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
                WriterLock(path, "x").__enter__()
            if error:
                raise error
        assert not path.exists()


def leave(path, age_s=0.0, **facts):
    """A lock file as a process that is gone, or of another machine, left it."""
    holder = {"pid": os.getpid(), "host": writer_lock.socket.gethostname()} | facts
    path.write_text(json.dumps(holder))
    then = writer_lock.time.time() - age_s
    os.utime(path, (then, then))


def test_another_machine_counts_as_alive_while_its_heart_beats(tmp_path, capsys, monkeypatch):
    path = tmp_path / "lock"
    leave(path, age_s=100, host="elsewhere")
    with pytest.raises(FolderInUse, match=r"on elsewhere \(last sign of life 1\d\d s ago\)"):
        WriterLock(path, "x").__enter__()
    assert json.loads(path.read_text())["host"] == "elsewhere"
    # Under another name after a hard kill, too: what is said is when to come again, and it is true.
    now = writer_lock.time.time()
    monkeypatch.setattr(writer_lock.time, "time", lambda: now)
    leave(path, age_s=100.25, host="elsewhere")
    at = time.strftime("%H:%M:%S", time.localtime(now + 200.75))
    with pytest.raises(FolderInUse, match=rf"try again after {at} \(in 201 s\)"):
        WriterLock(path, "x").__enter__()
    monkeypatch.setattr(writer_lock.time, "time", lambda: now + 200.75)
    with WriterLock(path, "x"):
        assert json.loads(path.read_text())["host"] != "elsewhere"
    assert "on elsewhere died before its end" in capsys.readouterr().err


def test_without_flock_the_process_itself_is_looked_at(tmp_path, monkeypatch, capsys):
    """Some network file systems have none: what flock(2) answers there is ENOLCK."""

    def missing(*_):
        raise OSError(writer_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writer_lock.fcntl, "flock", missing)
    path = tmp_path / "lock"
    leave(path)
    with pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
        WriterLock(path, "x").__enter__()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    for was_asked_for in (False, True):  # a zombie first
        leave(path, pid=gone.pid)
        with WriterLock(path, "x"):
            pass
        assert f"process {gone.pid} died" in capsys.readouterr().err, was_asked_for
        gone.wait()


def test_the_heart_beats_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "BEAT_S", 0.01)
    path = tmp_path / "lock"
    with WriterLock(path, "x"):
        os.utime(path, (0, 0))
        for _ in range(2000):
            if path.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert path.stat().st_mtime > 0


def test_a_damaged_lock_file_of_a_dead_process_is_no_obstacle(tmp_path):
    (tmp_path / "lock").write_text("{torn")
    with WriterLock(tmp_path / "lock", "x"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_a_full_disk_cannot_hold_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_lock.os, "pwrite", full)
    with pytest.raises(StorageError, match=r"a job cannot be written .*No space.*; free some"):
        WriterLock(tmp_path / "lock", "a job").__enter__()
    monkeypatch.undo()
    with WriterLock(tmp_path / "lock", "a job"):
        pass
