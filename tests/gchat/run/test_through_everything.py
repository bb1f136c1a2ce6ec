"""The speedrun on a text of one's own through everything at once: read by another process all the
time, killed with -9, moved, resumed from elsewhere; it ends where an undisturbed one ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import runs

ROOT = Path(__file__).resolve().parents[3]
STEPS, SAVE_EVERY = 200, 10
SIZES = [
    "--depth=2", "--model.aspect-ratio=64", "--model.seq-len=128", "--data.vocab-size=512",
    "--batch-size=8", f"--max-steps={STEPS}", "--eval.tokens=4000", "--eval.every-steps=40",
    f"--checkpoint.every-steps={SAVE_EVERY}", "--checkpoint.every-minutes=0",
]  # fmt: skip
# One process that samples again and again, by the command's own function: most of the time of a
# command is its start. A line for each: exit status, seconds since 1970, then the JSON.
READER = """
import sys, time
from gchat.__main__ import main
while True:
    began = time.time()
    words = ["--prompt", "The", "--max-tokens", "4", "--json"]
    status = main(["sample", "--run", sys.argv[1], *words])
    print("STATUS", status, began, flush=True)
    if status:
        time.sleep(0.3)
"""


class Reader:
    """Samples a run, wherever it lies, until it is stopped."""

    def __init__(self, folder, environment):
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.read, self.refused = [], []
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self):
        last = ""
        for line in self._process.stdout:
            if line.startswith("STATUS 0"):
                self.read.append(json.loads(last)["step"])
            elif line.startswith("STATUS"):
                self.refused.append(last.strip())
            last = line

    def wait_for(self, count):
        give_up = time.monotonic() + 240  # hangs are found by what is asserted after this
        while len(self.read) < count and time.monotonic() < give_up:
            time.sleep(0.1)

    def stop(self):
        self._process.kill()
        self._thread.join()
        self._process.wait()
        self._process.stdout.close()


@pytest.mark.slow
def test_read_killed_moved_and_resumed_it_ends_where_an_undisturbed_run_ends(
    tmp_path, user_environment, capsys
):
    texts = tmp_path / "my texts"
    texts.mkdir()
    for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "ARCHITECTURE.md"]:
        shutil.copy(path, texts)
    environment = user_environment | {"GAIA_HOME": str(tmp_path / "home")}

    def speedrun(name):
        words = [
            "-m",
            "gchat",
            "speedrun",
            "--stages=base",
            "--data.source=text",
            f"--data.input={texts}",
        ]
        words += [*SIZES, f"--run.name={name}", f"--run.dir=runs/{name}"]
        return runs.Process([sys.executable, *words], environment)

    here = os.getcwd()
    os.chdir(tmp_path)  # a speedrun's folders are relative to where it is started
    try:
        calm = speedrun("calm")
        assert calm.end() == 0, calm.text
        hint = next(line for line in calm.lines if line.startswith("try it: "))
        rough = speedrun("rough")
        old, new = tmp_path / "runs/rough", tmp_path / "elsewhere/moved run"
        reader = Reader(old, environment)  # from before there is a run
        assert rough.step_reached(SAVE_EVERY + 2), rough.text
        reader.wait_for(3)
        assert len(reader.read) >= 3, reader.refused
        rough.signal(signal.SIGKILL)
        assert rough.end() == -signal.SIGKILL
        killed = int(runs.newest(old).name)
        new.parent.mkdir()
        shutil.move(old, new)
        reader.stop()
        second = Reader(new, environment)
        os.chdir(new.parent)
        command = [sys.executable, "-m", "gchat", "train", "--resume", "--run-dir", new.name]
        resumed = runs.Process(command, environment)
        status = resumed.end()
        second.wait_for(1)
        second.stop()
    finally:
        os.chdir(here)
    assert status == 0 and f"of {STEPS}" in resumed.text, resumed.text
    assert 0 < killed < STEPS and not old.exists()
    assert not any("no checkpoint of" in line for line in rough.lines + resumed.lines)
    assert all("unusable" not in line for line in resumed.lines), resumed.text
    # Readers saw whole checkpoints only, and no traceback: refused is what lies nowhere yet.
    assert all("holds no" in line for line in reader.refused + second.refused)
    expected, final = (runs.arrays(path, STEPS) for path in (tmp_path / "runs/calm", new))
    assert expected.keys() == final.keys() and len(final) > 20
    assert all((expected[path] == array).all() for path, array in final.items())
    assert runs.losses(new) == runs.losses(tmp_path / "runs/calm")
    # The closing hint runs as it is printed.
    words = hint.removeprefix("try it: .venv/bin/gchat")
    command = f"{sys.executable} -m gchat{words} --max-tokens 2"
    tried = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=False,
                           capture_output=True, text=True)  # fmt: skip
    assert tried.returncode == 0 and tried.stderr == "", tried.stderr
    with capsys.disabled():
        print(
            f"\n{len(final)} arrays equal after {STEPS} steps; killed with checkpoint {killed} "
            f"newest; sampled {len(reader.read)} times before (steps {sorted(set(reader.read))}) "
            f"and {len(second.read)} after (steps {sorted(set(second.read))}); {hint}"
        )
