"""The published bundle: its zip over loopback HTTP, whole, torn, damaged, refused, and killed."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

import small_core
from fakes import s3
from gaia.errors import DataError
from gaia.storage import StorageError
from gchat.evals.core import bundle, download
from gchat.evals.core.tasks import TASKS

PATH = "/eval_bundle.zip"


def zipped(files):
    """Makes a zip of nanochat's layout, with what macOS's archiver adds beside it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eval_bundle/", b"")
        archive.writestr("eval_bundle/core.yaml", b"icl_tasks:\n")
        archive.writestr("eval_bundle/eval_meta_data.csv", b"Eval Task,Task Category\n")
        for path, data in files.items():
            archive.writestr(f"eval_bundle/eval_data/{path}", data)
            folder, _, name = path.rpartition("/")
            archive.writestr(f"__MACOSX/eval_bundle/eval_data/{folder}/._{name}", b"\0\5\x16\7")
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The 21 files of 22 tasks (two share HellaSwag's)."""
    folder = small_core.write(tmp_path_factory.mktemp("made")) / "eval_data"
    return {f"{t.file}.jsonl": (folder / f"{t.file}.jsonl").read_bytes() for t in TASKS}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bucket(files, home, monkeypatch):
    """Serves the zip of the files, whose hashes stand for the published ones."""
    known = tuple(t._replace(git_blob=download.git_blob(files[f"{t.file}.jsonl"])) for t in TASKS)
    for module in (bundle, download):
        monkeypatch.setattr(module, "TASKS", known)
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    with s3.serve(s3.Bucket()) as served:
        served.objects[PATH] = zipped(files)
        monkeypatch.setattr(download, "URL", served.url + PATH)
        yield served


def left(home):
    """All files below the home, without the bundle's own."""
    return sorted(p.name for p in home.rglob("*") if p.is_file() and "eval_data" not in p.parts)


def whole(home, files):
    got = {
        str(p.relative_to(home / "core/eval_data")): p.read_bytes()
        for p in (home / "core").rglob("*")
        if p.is_file()
    }
    return got == files and left(home) == []


def test_the_bundle_is_downloaded_once(bucket, home, files, capfd):
    made = bundle.read(None, bundle.TASKS)
    assert len(made.tasks) == 22 and not made.changed and not made.missing
    assert whole(home, files)
    shown = capfd.readouterr()
    assert shown.out == "" and "downloading the CORE bundle" in shown.err  # stdout is --json's
    assert bundle.read(None, bundle.TASKS) == made
    assert bucket.log == [(PATH, None)] and capfd.readouterr().err == ""
    # A file that was damaged later is named, with what brings it back.
    path = home / "core/eval_data" / f"{TASKS[0].file}.jsonl"
    path.write_bytes(files[f"{TASKS[0].file}.jsonl"][:-9])
    with pytest.raises(DataError, match=r"hellaswag.jsonl' is not the .* remove '.*core'"):
        bundle.read(None, bundle.TASKS)


def test_a_torn_answer_goes_on_where_it_broke(bucket, home, files):
    bucket.cuts = 6  # more than TRIES, but each gets further
    bucket.refuse = [(503, "SlowDown")]
    download.published()
    assert whole(home, files)
    size = len(bucket.objects[PATH])
    starts = [0]
    for _ in range(6):
        starts.append(starts[-1] + (size - starts[-1]) // 2)
    asked = [int(r[6:-1]) if r else 0 for _, r in bucket.log]
    assert asked == [0, *starts]


def test_what_came_is_kept_for_the_next_command(bucket, home, files, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        bucket.cuts = 1
        with pytest.raises(DataError, match=r"\(peer closed.*, 1 times\); run it again to go on"):
            download.published()
    assert left(home) == [".core.zip.part"] and not (home / "core").exists()
    bucket.log.clear()
    download.published()
    assert whole(home, files)
    assert bucket.log == [(PATH, f"bytes={len(bucket.objects[PATH]) // 2}-")]


def test_without_ranges_each_answer_is_a_whole_one(bucket, home, files, monkeypatch):
    bucket.ranges, bucket.cuts = False, 2
    content = bucket.objects[PATH]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(download, "TRIES", 1)
            with pytest.raises(DataError, match="peer closed"):
                download.published()
        assert (home / ".core.zip.part").read_bytes() == content[: len(content) // 2]
    download.published()
    assert whole(home, files)


def test_a_server_that_stays_away_is_one_line(bucket, home):
    bucket.refuse = [(503, "SlowDown")] * 9
    with pytest.raises(DataError, match=r"the server answered 503, 5 times\); run it again"):
        download.published()
    assert len(bucket.log) == 5 and left(home) == [] and not (home / "core").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_another_file_is_thrown_away(bucket, home, files, ranges):
    bucket.ranges = ranges
    for stale in (b"x" * 1000, b"x" * len(bucket.objects[PATH])):  # the second lacks nothing
        home.mkdir(exist_ok=True)
        (home / ".core.zip.part").write_bytes(stale)
        download.published()
        assert whole(home, files)
        (home / "core").rename(home.parent / f"core{len(stale)}")


@pytest.mark.parametrize(
    ("status", "line"), [(404, "the server answered 404"), (403, "the server answered 403")]
)
def test_a_refusal_is_one_line_and_leaves_nothing(bucket, home, status, line):
    bucket.refuse = [(status, "NoSuchKey")]
    with pytest.raises(DataError) as error:
        download.published()
    assert line in str(error.value) and "give its folder as --bundle" in str(error.value)
    assert "\n" not in str(error.value) and error.value.exit_status == 2
    assert left(home) == [] and not (home / "core").exists() and len(bucket.log) == 1


@pytest.mark.parametrize("damage", ["checksum", "missing", "torn", "flipped", "page"])
def test_damaged_bytes_are_never_unpacked(bucket, home, files, damage):
    name = next(reversed(files))
    data = bucket.objects[PATH]
    bad, line = {
        "checksum": (zipped(files | {name: files[name] + b" "}), rf"another eval_data/{name} than"),
        "missing": (zipped({k: v for k, v in files.items() if k != name}), rf"no eval_data/{name}"),
        "torn": (data[: len(data) // 2], "no whole zip file"),
        "flipped": (data[:2000] + bytes([data[2000] ^ 0x55]) + data[2001:], "no whole zip file"),
        "page": (b"<html>Sign in to the wireless network</html>", "no whole zip file"),
    }[damage]
    bucket.objects[PATH] = bad
    with pytest.raises(DataError, match=line):
        download.published()
    assert left(home) == [] and not (home / "core").exists() and len(bucket.log) == 1
    bucket.objects[PATH] = data
    download.published()
    assert whole(home, files)


def test_a_full_disk_is_one_line(bucket, home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_attempt", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        download.published()
    assert not (home / "core").exists()


def test_something_else_in_the_place_is_left_alone(bucket, home):
    (home / "core").mkdir(parents=True)
    (home / "core/notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"core' cannot be written \(Directory not empty\)"):
        download.published()
    assert (home / "core/notes.txt").read_text() == "mine"


PROGRAM = """
import sys
from gchat.evals.core import download
from gchat.evals.core.tasks import TASKS
from pathlib import Path
download.URL, made = sys.argv[1], Path(sys.argv[2])
blob = lambda task: download.git_blob((made / f"{task.file}.jsonl").read_bytes())
download.TASKS = tuple(task._replace(git_blob=blob(task)) for task in TASKS)
download.published()
"""


@pytest.mark.slow
def test_kill_9_leaves_a_part_that_two_others_complete(bucket, home, files, tmp_path):
    for path, data in files.items():
        (tmp_path / "made" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / path).write_bytes(data)
    command = [sys.executable, "-c", PROGRAM, bucket.url + PATH, str(tmp_path / "made")]
    part = home / ".core.zip.part"

    def start():
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    bucket.slow_s = 0.3
    killed = start()
    while not part.exists() or not part.stat().st_size:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = part.stat().st_size
    assert 0 < kept < len(bucket.objects[PATH]) and not (home / "core").exists()
    bucket.log.clear()
    both = [start(), start()]  # one downloads, the other waits for it
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert bucket.log == [(PATH, f"bytes={kept}-")]
    assert whole(home, files) and os.listdir(home) == ["core"]
