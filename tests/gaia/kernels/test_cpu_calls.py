"""Jobs of the CPU loops: each part once, however late a thread comes; compiled code that is new."""

import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numba import carray, cfunc, njit, types

from gaia import kernels
from gaia.kernels import cpu_calls
from gaia.kernels.cpu_calls import _DONE, _LEFT, _LOOP, _PARTS, _WORDS, _add, _load, _swap, pointer


@cfunc(types.void(types.int64, types.int64))
def tally(job, part):
    _add(job + 8 * (_WORDS + part), 1)


@njit(nogil=True)
def hand_over(job, ended, jobs):
    """Offers jobs of 1 to 8 parts, one after another; the number of the first that went wrong."""
    fields = carray(pointer(job), _WORDS + 8, np.int64)
    wrong = 0
    for number in range(1, jobs + 1):
        parts = 1 + number * 5 % 8
        fields[_WORDS:] = 0
        fields[_DONE], fields[_PARTS] = 0, parts
        _swap(job + 8 * _LEFT, parts)
        cpu_calls._take_parts(job)
        looks = 0
        while _load(job + 8 * _DONE) < parts and looks < 1 << 31:
            looks += 1
        for part in range(8):
            if fields[_WORDS + part] != (part < parts):
                wrong = number
        if wrong or _load(job + 8 * _DONE) != parts:
            break
    _swap(ended, 1)
    return wrong


@njit(nogil=True)
def come_late(job, ended):
    while _load(ended) == 0:
        cpu_calls._take_parts(job)


def test_threads_that_come_late_take_each_part_once():
    words = np.zeros(_WORDS + 8 + 1, np.int64)
    words[_LOOP] = tally.address
    job, ended = words.ctypes.data, words[-1:].ctypes.data
    hand_over(job, ended, 0)
    come_late(job, ended)  # both compiled
    words[-1] = 0
    helpers = [Thread(target=come_late, args=(job, ended)) for _ in range(2)]
    for helper in helpers:
        helper.start()
    wrong = hand_over(job, ended, 2_000_000)
    for helper in helpers:
        helper.join()
    assert wrong == 0


def test_a_job_that_a_sleeping_call_owns_is_left_to_it():
    kept = cpu_calls._JOBS.copy()
    try:
        turn = int(cpu_calls._TURN[0])
        next_one = (turn % len(kept)), ((turn + 1) % len(kept))
        cpu_calls._JOBS[next_one[0], cpu_calls._OWNED] = 1
        job = cpu_calls._own_job()
        assert job == cpu_calls._JOBS[next_one[1]].ctypes.data
    finally:
        cpu_calls._JOBS[:] = kept


@pytest.mark.slow
def test_kept_machine_code_is_compiled_anew_where_a_file_it_took_from_changed(tmp_path):
    """numba looks at a loop's own file only; ours also look at the files of what they call."""
    here = Path(kernels.__file__).parent
    package = tmp_path / "gaia" / "kernels"
    shutil.copytree(here.parent, tmp_path / "gaia", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "from gaia.kernels import cpu_loops as m; from gaia.kernels import cpu_calls\n"
        "print(m.__file__, [sum(l.cache_hits.values()) if hasattr(l.cache_hits, 'values')"
        " else l.cache_hits for l in cpu_calls._kept_loops[:3]])"
    )

    def hits():
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True,
                              capture_output=True, check=True)  # fmt: skip
        file, _, counts = done.stdout.partition(" ")
        assert Path(file) == package / "cpu_loops.py"
        return counts.strip()

    assert [hits(), hits()] == ["[0, 0, 0]", "[1, 1, 1]"]
    with (package / "cpu_calls.py").open("a") as text:
        text.write("# another release\n")
    assert hits() == "[0, 0, 0]"
