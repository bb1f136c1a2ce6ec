"""Exports that are killed: nothing half-written stands in their place, and the next one works."""

import json
import os
import subprocess
import sys

import pytest

import exported
from gchat.__main__ import main
from gchat.exporting import comparison
from gchat.exporting.source import Run
from gchat.importing import gguf_file, hub_folder

READERS = {"hf": hub_folder, "gguf": gguf_file}
DEFAULT = [
    ("hf", True, ("move", 2)),  # the old one is out of the way, the new one not yet there
    ("gguf", False, ("move", 2)),  # the card is in its place
]
MOMENTS = {
    "hf": (("tensor", 5), ("move", 1), ("move", 2)),
    "gguf": (("tensor", 5), ("move", 1), ("move", 2), ("move", 3)),
}
OTHERS = [
    (kind, replacing, moment)
    for kind, moments in MOMENTS.items()
    for replacing in (False, True)
    for moment in moments
    if kind == "gguf" or replacing or moment != ("move", 2)  # a new folder is one move
]
SCRIPT = """
import json, os, signal, sys, traceback
from gchat.__main__ import main
from gchat.exporting.source import Run

jobs = json.load(sys.stdin)
for command, folder, (what, at) in jobs:
    child = os.fork()  # before JAX has made a device, and with it threads
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, command
        continue
    count = 0

    def come(kind):
        global count
        count += kind == what
        if kind == what and count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def moving(real):
        def move(source, target):
            if str(source).startswith(folder):
                come("move")
            return real(source, target)
        return move

    def telling(real):
        def tensors(self):
            for one in real(self):
                come("tensor")
                yield one
        return tensors

    os.rename, os.replace = moving(os.rename), moving(os.replace)
    Run.tensors = telling(Run.tensors)
    try:
        main(command)
    except BaseException:
        traceback.print_exc()
    os._exit(1)
"""


def command(kind, run, out, replacing):
    return ["export", kind, "--run", str(run), "--out", str(out), *["--overwrite"] * replacing]


def same(kind, out, path):
    """The file at `out` is whole, and the run's."""
    with Run(str(path)) as run:
        found = comparison.arrays(run, READERS[kind].read(out))
        return found["equal"] == found["tensors"] == len(run.parameters())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models of one size: the first is replaced by the second."""
    folder, made = tmp_path_factory.mktemp("runs"), exported.tokenizer()
    return [
        exported.make_run(folder / f"seed{seed}", made, qk_norm=False, depth=depth)
        for seed, depth in enumerate((1, 2))
    ]


def kill(cases, runs, tmp_path_factory):
    """(case, folder, place) of exports, each killed at its moment."""
    folders, jobs = [], []
    for case in cases:
        kind, replacing, moment = case
        folder = tmp_path_factory.mktemp("export")
        out = folder / ("m" if kind == "hf" else "m.gguf")
        if replacing:
            assert main(command(kind, runs[0], out, False)) == 0
        folders.append((case, folder, out))
        jobs.append((command(kind, runs[1], out, replacing), str(folder), moment))
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(jobs), text=True,
                          stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


def check_rest(case, folder, out, runs):
    """Nothing half-written is there, and the same command works."""
    kind, replacing, moment = case
    if out.exists():  # the one before, untouched
        assert replacing and same(kind, out, runs[0]), case
    else:
        assert not replacing or (kind, moment) == ("hf", ("move", 2)), case
    assert main(command(kind, runs[1], out, replacing)) == 0, case
    assert same(kind, out, runs[1]), case
    beside = ["m.Modelfile", "m.md"] if kind == "gguf" else []
    assert sorted(os.listdir(folder)) == sorted([out.name, *beside]), case


@pytest.mark.parametrize(
    "cases", [DEFAULT, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_what_a_killed_export_leaves(cases, runs, tmp_path_factory):
    for killed in kill(cases, runs, tmp_path_factory):
        check_rest(*killed, runs)


def test_files_of_other_people_stay(runs, tmp_path, capsys):
    """A card that no killed export has put there is somebody's."""
    (tmp_path / "m.md").write_text("my thesis")
    partial = tmp_path / ".m.gguf.exporting"
    partial.mkdir()
    (partial / "plain.gguf").write_text("half")
    assert main(command("gguf", runs[1], tmp_path / "m.gguf", False)) == 2
    assert "m.md' holds something else" in capsys.readouterr().err
    assert (tmp_path / "m.md").read_text() == "my thesis"
