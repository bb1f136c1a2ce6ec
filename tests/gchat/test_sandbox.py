"""Code that a model wrote, contained: what it may do, and what it tries in vain."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest

from gaia.errors import ConfigError
from gchat.engine import contained, sandbox
from gchat.engine.sandbox import Limits, SandboxError, run

if reason := sandbox.unavailable():
    pytest.skip(reason, allow_module_level=True)

SMALL = Limits(seconds=20, cpu_s=1, memory_mb=256, files_mb=4, processes=8, output_kb=16)


def outcome(code, limits=SMALL):
    return run(textwrap.dedent(code), limits)


def test_code_runs_with_the_standard_library_and_a_disk_of_its_own():
    done = outcome(
        """
        import collections, json, math, sqlite3
        open("x", "w").write("kept")
        print(json.dumps([open("/tmp/x").read(), math.comb(5, 2)]), input and "")
        """
    )
    assert (done.ok, done.ended, done.stdout) == (True, "exit", '["kept", 10] \n')
    assert outcome("import os; print(os.path.exists('/tmp/x'))").stdout == "False\n"


@pytest.mark.parametrize("status", [1, 97, 255])
def test_statuses_are_the_code_s_own(status):
    done = outcome(f"raise SystemExit({status})")
    assert (done.ended, done.status, done.ok) == ("exit", status, False)


def test_an_error_is_reported_as_python_says_it():
    assert outcome("assert 1 + 1 == 3, 'sum'").stderr.endswith("AssertionError: sum\n")


def test_a_fork_bomb_ends_and_leaves_nothing():
    done = outcome(
        """
        import os, time
        while True:
            try:
                os.fork()
            except OSError as error:
                print(error.errno)
                time.sleep(0.05)
                raise SystemExit
        """
    )
    assert "11" in done.stdout  # EAGAIN
    assert not _running_as(contained.__file__)


def _running_as(mark):
    """Processes of this machine whose command line holds a text."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if mark in line]


def test_what_it_started_ends_with_it():
    mark = "sleep 86399.25"
    done = outcome(
        f"""
        import subprocess
        subprocess.Popen({mark.split()!r}, start_new_session=True)
        print("gone")
        """
    )
    assert done.stdout == "gone\n"
    assert not _running_as(mark)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bytearray(100 << 30)", "MemoryError"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "unreachable"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 2)", "OSError"),
        ("open('/etc/x', 'w')", "Read-only file system"),
        ("open('/x', 'w')", "Read-only file system"),
        ("open('/tmp/x', 'wb').write(bytes(5 << 20))", "OSError"),
        ("[open(f'/tmp/{i}', 'wb').write(bytes(1 << 20)) for i in range(9)]", "No space left"),
        ("import os; os.kill(1, 9)", "Operation not permitted"),
        ("import os; os.setuid(0)", "Operation not permitted"),
        ("import os; os.mknod('/tmp/m', 0o060600, os.makedev(254, 0))", "Operation not permitted"),
        ("[open('/dev/null') for _ in range(100)]", "Too many open files"),
        pytest.param(
            "import sys; sys.setrecursionlimit(1 << 30); f = lambda: f(); f()",
            "",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_it_tries_in_vain(code, error):
    held = code.replace(
        "[open('/dev/null') for _", "held = []\n[held.append(open('/dev/null')) for _"
    )
    done = outcome(held)
    assert not done.ok
    assert error in done.stderr


def test_the_home_of_the_caller_is_empty():
    home = str(Path.home())
    done = outcome(f"import os; print(os.listdir({home!r}))")
    assert done.stdout in ("[]\n", "")  # or it cannot even be reached


def test_walls_hold_from_within_a_user_namespace():
    """Root of a namespace of its own making may not write what was read-only outside of it."""
    done = outcome(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(0x10000000 | 0x00020000)
        MS_REMOUNT, MS_BIND = 32, 4096
        print(libc.mount(b"none", b"/", b"", MS_REMOUNT | MS_BIND, b""))
        open("/etc/x", "w")
        """
    )
    assert done.stdout == "-1\n"
    assert "Error" in done.stderr


def test_time_is_limited():
    spinning = outcome("while True: pass")
    assert (spinning.ended, spinning.status) == ("signal", 9)
    sleeping = outcome("import time; time.sleep(86400)", Limits(seconds=1.0))
    assert (sleeping.ended, sleeping.ok) == ("time", False)
    closed = outcome("import os, time; os.close(1); os.close(2); time.sleep(99)", Limits(seconds=1))
    assert closed.ended == "time"


def test_endless_output_is_cut():
    done = outcome("while True: print('x' * 1000)")
    assert done.ended == "output"
    assert len(done.stdout) == SMALL.output_kb << 10


def test_several_at_once_do_not_meet():
    outcomes = {}

    def one(i):
        code = f"open('/tmp/x', 'w').write('{i}'); import time; time.sleep(0.3)"
        outcomes[i] = outcome(code + "; print(open('/tmp/x').read())")

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert {i: o.stdout for i, o in outcomes.items()} == {i: f"{i}\n" for i in range(4)}


def test_bad_limits_and_texts_are_named():
    with pytest.raises(ConfigError, match=r"limits\.seconds is 0"):
        run("pass", Limits(seconds=0))
    with pytest.raises(ConfigError, match="not UTF-8"):
        run("print('\ud800')")


def test_without_walls_nothing_runs(tmp_path, monkeypatch):
    """A kernel that refuses: said, and the code has not run."""
    broken = tmp_path / "contained.py"
    source = Path(contained.__file__).read_text()
    broken.write_text(source.replace("libc.unshare(", "libc.unshare(0x40 | "))
    monkeypatch.setattr(sandbox, "_SCRIPT", broken)
    with pytest.raises(SandboxError, match="unshare: Invalid argument"):
        run(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run without root's rights already")
def test_a_user_without_rights_contains_code_as_well():
    python = Path("/usr/bin/python3")
    if not python.exists() or subprocess.run([python, "-c", "import tomllib"]).returncode:
        pytest.skip("no Python 3.11 that every user may run")
    # Not below pytest's folders, which are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="sandbox", dir="/tmp"))
    folder.chmod(0o755)
    root = Path(contained.__file__).parents[2]
    for name in ("gaia/errors.py", "gchat/engine/contained.py", "gchat/engine/sandbox.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    code = f"""
        import os, sys
        os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
        os.environ["HOME"] = "/var/lib"
        sys.path[:0] = [{str(folder)!r}]
        from gchat.engine.sandbox import run, Limits
        tries = ["print(1)", "open('/etc/x', 'w')", "import os; os.chroot('/tmp')",
                 "import socket; socket.create_connection(('1.1.1.1', 80), 2)",
                 "import os; print(os.listdir('/var/lib'))"]
        for one in tries:
            done = run(one)
            print(done.ok, done.stdout.strip(), done.stderr.strip().rpartition("] ")[2])
    """
    try:
        done = subprocess.run(
            [python, "-I", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
        )
    finally:
        shutil.rmtree(folder)
    assert done.stdout.splitlines() == [
        "True 1 ",
        "False  Read-only file system: '/etc/x'",
        "False  Operation not permitted: '/tmp'",
        "False  Network is unreachable",
        "True [] ",
    ], done.stderr


def test_a_killed_caller_leaves_nothing(tmp_path):
    mark = "86398.75"
    started = tmp_path / "started"
    code = f"import time; time.sleep({mark})"
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from gchat.engine.sandbox import run, Limits; import pathlib\n"
            f"pathlib.Path({str(started)!r}).touch(); run({code!r}, Limits(seconds=600))",
        ]
    )
    while not _running_as(".code.py"):
        assert caller.poll() is None
    caller.kill()
    caller.wait()
    for _ in range(100):
        if not _running_as(".code.py"):
            break
        threading.Event().wait(0.05)
    assert not _running_as(".code.py")
