"""Checkpoints: what is saved comes back bit for bit, and damage never goes unnoticed."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath.gpath import PosixGPath
from orbax.checkpoint._src.path.step import Metadata

from disks import fill, small_disk
from gaia import checkpoint
from gaia.checkpoint import Checkpointer
from gaia.errors import CheckpointError
from gaia.seal import CHECKSUMS


def state(step, size=1000):
    values = np.random.default_rng(step).standard_normal(size).astype(np.float32)
    return {"w": jnp.asarray(values.reshape(2, -1)), "step": jnp.asarray(np.int32(step))}


def same(a, b):
    return all((np.asarray(a[k]) == np.asarray(b[k])).all() for k in ("w", "step"))


def files_of(folder: Path):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def checkpoints(tmp_path):
    """Steps 1 and 2, both sound."""
    made = Checkpointer(str(tmp_path / "checkpoints"), keep=5)
    for step in (1, 2):
        assert made.save(step, state(step), {"step": step, "text": "ä"}) is None
        assert made.wait() is None
    yield made
    made.close()


def test_round_trip(checkpoints):
    restored = checkpoints.restore(2, state(0))
    assert same(restored.state, state(2))
    assert restored.meta == checkpoints.read_meta(2) == {"step": 2, "text": "ä"}
    assert checkpoints.latest() == 2


def test_a_reader_meets_a_step_that_its_writer_prunes(checkpoints, monkeypatch):
    """Between Orbax's list of the steps and its question for each one's age."""
    folder, age = Path(str(checkpoints.directory)), Metadata.commit_timestamp

    def pruned_first(metadata):
        shutil.rmtree(folder / "1", ignore_errors=True)
        return age.fget(metadata)

    monkeypatch.setattr(Metadata, "commit_timestamp", property(pruned_first))
    reader = Checkpointer(str(folder), read_only=True)
    assert same(reader.restore(reader.latest(), state(0)).state, state(2))
    reader.close()


def test_a_reader_looks_again_where_what_it_read_was_pruned(checkpoints, monkeypatch):
    """Step 2 is newest when it looks; before it has read that, step 3 is there and 2 is not."""
    folder, damage = Path(str(checkpoints.directory)), Checkpointer.damage
    reader, said = Checkpointer(str(folder), read_only=True), []

    def overtaken(self, step):
        if step == 2:
            (folder / "2").rename(folder / "3")
        return damage(self, step)

    monkeypatch.setattr(Checkpointer, "damage", overtaken)
    assert reader.latest(said.append) == 3
    assert not said
    reader.close()


def test_storage_that_does_not_answer_says_nothing_about_a_checkpoint(checkpoints, monkeypatch):
    """The newest one is intact: falling back would have it deleted as the run goes on."""
    read, failing = PosixGPath.read_bytes, [2]

    def flaky(path):
        if path.parent.name == "2" and failing[0]:
            failing[0] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(PosixGPath, "read_bytes", flaky)
    monkeypatch.setattr(checkpoint, "_PAUSES_S", (0.0, 0.0))
    assert checkpoints.latest() == 2  # the third look succeeds
    failing[0] = 3
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be read now"):
        checkpoints.latest()
    assert checkpoints.steps() == [1, 2]


def test_any_damage_to_any_file_falls_back_and_says_so(checkpoints):
    """A bit flipped, the file cut, emptied or deleted: for every file of the newest checkpoint."""
    folder = Path(str(checkpoints.directory / "2"))
    files = files_of(folder)
    assert any(p.name == CHECKSUMS for p in files) and len(files) > 5

    def flip(path, data):
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])

    damages = {
        "flip": flip,
        "cut": lambda path, data: path.write_bytes(data[:-1]),
        "empty": lambda path, data: path.write_bytes(b""),
        "delete": lambda path, data: path.unlink(),
    }
    for path in files:
        data = path.read_bytes()
        for name, damage in damages.items():
            if not data and name != "delete":
                continue
            damage(path, data)
            said = []
            assert checkpoints.latest(report=said.append) == 1, (path, name)
            assert len(said) == 1 and said[0].startswith("checkpoint 2 is unusable"), (path, name)
            # A file is named by its place in the checkpoint, unless it is the list of them itself.
            relative = str(path.relative_to(folder))
            assert relative in said[0] or (relative == CHECKSUMS and "finished" in said[0])
            path.write_bytes(data)
    assert checkpoints.latest() == 2
    assert same(checkpoints.restore(1, state(0)).state, state(1))


def test_nothing_sound_is_none(checkpoints):
    for step in (1, 2):
        (Path(str(checkpoints.directory)) / str(step) / CHECKSUMS).unlink()
    said = []
    assert checkpoints.latest(report=said.append) is None
    assert len(said) == 2


def test_a_step_can_be_written_again_after_a_fall_back(checkpoints):
    checkpoints.discard_after(1)
    assert checkpoints.steps() == [1]
    assert checkpoints.save(2, state(20), {}) is None
    assert checkpoints.wait() is None
    assert same(checkpoints.restore(2, state(0)).state, state(20))


def test_an_unfinished_step_is_never_sealed_later(checkpoints):
    """Killed between Orbax's rename and the checksums: the next save must not bless that step."""
    folder = Path(str(checkpoints.directory / "2"))
    (folder / CHECKSUMS).unlink()
    victim = max(files_of(folder), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert checkpoints.save(3, state(3), {}) is None
    assert checkpoints.wait() is None
    assert checkpoints.damage(3) is None
    assert checkpoints.damage(2) == "it was never finished"


def test_a_part_is_whole_groups_or_says_what_it_is_of(checkpoints):
    """An array that a reader does not know is a part of the model, which it would leave out."""
    params = {"table": jnp.ones((2, 3)), "gate": jnp.zeros(2)}
    assert checkpoints.save(3, {"params": params, "more": jnp.ones(1)}, {}) is None
    assert checkpoints.wait() is None
    known = {"params": {"table": params["table"]}}
    with pytest.raises(CheckpointError, match=r"gate is \[2\] in the checkpoint and missing"):
        checkpoints.restore_part(3, known)
    with pytest.raises(CheckpointError, match=r"params.gate is .*; read it with the code that"):
        checkpoints.restore_part(3, known, within=known)
    got = checkpoints.restore_part(3, known, within={"params": params}).state
    np.testing.assert_array_equal(got["params"]["table"], params["table"])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: state(0, size=10), r"w is \[2, 500\] in the checkpoint and \[2, 5\] in the run"),
        (lambda: {"w": state(0)["w"]}, "in the checkpoint and missing in the run"),
        (lambda: {**state(0), "more": jnp.zeros(3)}, r"more is missing in .* and \[3\] in the run"),
    ],
    ids=["shape", "array too many", "array too few"],
)
def test_another_state_is_refused(checkpoints, other, said):
    with pytest.raises(CheckpointError, match=f"does not fit this run .*{said}"):
        checkpoints.restore(2, other())


@pytest.mark.parametrize("gone", ["state/_METADATA", "state", "meta"])
def test_a_checkpoint_that_vanishes_is_one_error(checkpoints, gone):
    """Another process prunes it between the look for damage and the read."""
    victim = Path(str(checkpoints.directory / "2")) / gone
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be read"):
        checkpoints.read_meta(2)
        checkpoints.restore(2, state(0))


def test_keeps_the_newest_and_the_multiples(tmp_path):
    made = Checkpointer(str(tmp_path / "c"), keep=2, keep_every=4)
    for step in range(1, 8):
        assert made.save(step, state(step), {}) is None
    assert made.close() is None
    assert made.steps() == [4, 6, 7]
    assert [made.damage(step) for step in (4, 6, 7)] == [None] * 3


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        made = Checkpointer(str(disk / "checkpoints"), keep=5)
        assert made.save(1, state(1, size=200_000), {}) is None
        assert made.wait() is None
        filler = fill(disk, leave=100_000)
        problem = made.save(2, state(2, size=200_000), {})
        assert problem is not None and "no space left" in problem and "0.8 MB" in problem
        assert "\n" not in problem
        assert [p.name for p in (disk / "checkpoints").iterdir()] == ["1"]
        assert same(made.restore(1, state(0, size=200_000)).state, state(1, size=200_000))
        filler.unlink()
        assert made.save(3, state(3, size=200_000), {}) is None
        assert made.close() is None
        assert made.latest() == 3


SAVES_ON_A_DISK_THAT_FILLS_UP = """
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gaia.checkpoint import Checkpointer

def state(seed):
    values = np.random.default_rng(seed).standard_normal(200_000).astype(np.float32)
    return {"w": jnp.asarray(values)}

disk = Path(sys.argv[1])
made = Checkpointer(str(disk / "checkpoints"), keep=5)
made.save(1, state(1), {})
assert made.wait() is None
made._no_room = lambda state: None  # as if the room were taken between the look and the write
filler = disk / "filler"
filler.write_bytes(bytes(1_900_000))
print(made.save(2, state(2), {}) or made.wait())
print(made.steps(), made.latest())
print([p.name for p in (disk / "checkpoints").iterdir() if p.name != "1"])
filler.unlink()
print(made.save(3, state(3), {}) or made.close(), made.latest())
"""


def test_a_disk_that_fills_up_in_the_middle_keeps_the_previous_checkpoint(
    tmp_path, user_environment
):
    """In a process of its own: TensorStore's other writes fail too, and nobody waits for them."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        done = subprocess.run(
            [sys.executable, "-c", SAVES_ON_A_DISK_THAT_FILLS_UP, str(disk)],
            env=user_environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        problem, steps, left, later = done.stdout.splitlines()
        assert problem.startswith("step 2: ") and "space" in problem.lower()
        assert steps == "[1] 1"
        assert left == "[]"  # the half-written one gives its room back
        assert later == "None 3"
