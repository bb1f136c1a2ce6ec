"""A run lies where its files lie: moved, copied, read by others while it is written."""

import hashlib
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import runs
from gaia.checkpoint import Checkpointer
from gaia.errors import CheckpointError
from gchat.__main__ import main
from gchat.run.loading import load_run

STEPS = 24


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A finished run, its checkpoints at 20 and 24."""
    folder = tmp_path_factory.mktemp("whole") / "runs/a"
    assert main(["train", *runs.arguments(data_dir, folder, steps=STEPS)]) == 0
    return folder


@pytest.fixture
def stopped(whole, tmp_path, monkeypatch):
    """A copy that ends at step 20, by the relative path that it was made with."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "runs/a")
    shutil.rmtree(f"runs/a/checkpoints/{STEPS}")
    return Path("runs/a")


def contents(folder):
    """Hash of every file by its path."""
    files = (p for p in sorted(Path(folder).rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same_end(folder, whole):
    expected, final = runs.arrays(whole, STEPS), runs.arrays(folder, STEPS)
    assert all((expected[path] == array).all() for path, array in final.items())
    assert runs.losses(folder) == runs.losses(whole)


def as_older_versions_wrote(folder):
    """config.yaml with the folder, and the checkpoints in it, relative to the working directory."""
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["run"]["dir"] = str(folder)
    tree["checkpoint"]["dir"] = f"{folder}/checkpoints"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("older", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_moved_run_goes_on_where_it_lies(stopped, whole, tmp_path, monkeypatch, capsys, older):
    if older:
        as_older_versions_wrote(stopped)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(stopped, "elsewhere/b")
    monkeypatch.chdir("elsewhere")
    assert main(["train", "--resume", "--run-dir", "b"]) == 0
    assert "resumed from step 20 of 24" in capsys.readouterr().out
    same_end(Path("b"), whole)
    assert not (tmp_path / "runs/a").exists() and not Path("runs").exists()


@pytest.mark.slow
def test_a_copied_run_leaves_the_original_alone(stopped, whole):
    as_older_versions_wrote(stopped)
    before = contents(stopped)
    shutil.copytree(stopped, "copy")
    assert main(["train", "--resume", "--run-dir", "copy"]) == 0
    same_end(Path("copy"), whole)
    assert contents(stopped) == before


@pytest.mark.slow
def test_a_run_is_never_read_as_the_one_that_took_its_place(stopped, whole, data_dir, capsys):
    as_older_versions_wrote(stopped)
    shutil.move(stopped, "runs/old")
    other = runs.arguments(data_dir, "runs/a", "--training.seed", "7", steps=6)
    assert main(["train", *other]) == 0
    loaded = load_run("runs/old")
    table = np.asarray(loaded.params["embed"]["table"])
    (expected,) = (a for path, a in runs.arrays(whole, 20).items() if "params['embed']" in path)
    assert loaded.step == 20 and (table == expected).all()


@pytest.mark.slow
def test_its_configuration_makes_a_new_run_with_folders_of_its_own(stopped, data_dir):
    as_older_versions_wrote(stopped)
    before = contents(stopped)
    config = str(stopped / "config.yaml")
    assert main(["train", config, "--run-dir", "new", "--max-steps", "20"]) == 0
    assert {p.name for p in Path("new/checkpoints").iterdir()} == {"20"}
    assert contents(stopped) == before


def test_resuming_without_a_checkpoint_is_refused(stopped, whole, capsys):
    shutil.rmtree(stopped / "checkpoints")
    before = contents(stopped)
    assert main(["train", "--resume", "--run-dir", str(stopped)]) == 2
    said = capsys.readouterr().err
    assert "holds no checkpoint to resume from; add --allow-restart" in said
    assert contents(stopped) == before
    assert main(["train", "--resume", "--allow-restart", "--run-dir", str(stopped)]) == 0
    same_end(stopped, whole)


def test_a_reader_creates_nothing(stopped):
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_run(str(stopped))
    assert not (stopped / "checkpoints").exists()


def test_reading_changes_no_file(whole, capsys):
    before = contents(whole)
    assert main(["sample", "--run", str(whole), "--prompt", "the", "--max-tokens", "2"]) == 0
    assert contents(whole) == before


def test_a_reader_beside_a_save_under_way_sees_the_one_before(tmp_path):
    """The reader opens, reads and closes while arrays are being written: they arrive whole."""
    writer = Checkpointer(str(tmp_path))
    writer.save(1, {"w": jnp.arange(8.0)}, {"k": 1})
    assert writer.wait() is None
    large = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(4_000_000, np.float32))}
    assert writer.save(2, large, {"k": 2}) is None
    reader = Checkpointer(str(tmp_path), read_only=True)
    newest = reader.latest(report=lambda _: None)
    assert reader.read_meta(newest or 0)["k"] == newest
    reader.close()
    assert writer.close() is None and writer.last_saved == 2
    assert writer.damage(2) is None


def test_a_checkpoint_pruned_while_it_is_read_gives_way_to_the_next(stopped, whole, monkeypatch):
    """A trainer beside it saves step 24 and drops step 20, which the reader had chosen."""
    restore = Checkpointer.restore_part

    def overtaken(self, step, state):
        if step == 20 and (stopped / "checkpoints/20").exists():
            shutil.copytree(whole / "checkpoints/24", stopped / "checkpoints/24")
            shutil.rmtree(stopped / "checkpoints/20")
        return restore(self, step, state)

    monkeypatch.setattr(Checkpointer, "restore_part", overtaken)
    assert load_run(str(stopped)).step == 24
