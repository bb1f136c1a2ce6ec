"""Files of a run's folder on bad days: torn by a kill, on a full disk, on another machine."""

import json

import pytest

from gaia import storage
from gaia.config import differences, to_dict, to_yaml
from gaia.errors import DataError
from gaia.guards import BadStep
from gaia.storage import StorageError
from gaia.storage import gcs as service
from gchat.config import FREE_ON_RESUME, load
from gchat.run import mirror
from gchat.run.folder import RunFolder, _portable
from gchat.run.live import LivePicture
from gchat.run.report import _samples
from gchat.run.series import read_series
from gchat.train import given_config


@pytest.mark.parametrize("torn", [0, 1, 6, 7, 20, 25])
def test_samples_that_a_kill_tore_do_not_stop_a_resume(tmp_path, torn):
    folder, path = RunFolder(tmp_path), tmp_path / "samples.txt"
    folder.append_samples(10, "one\u2028line")
    folder.append_samples(20, "zwei Wörter")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - torn])  # also in the middle of a character
    assert _samples(path).startswith("── step 10\none")  # the report's
    folder.cut_samples(10)
    assert path.read_text() == "── step 10\none\u2028line\n"
    folder.append_samples(20, "again")
    folder.cut_samples(20)
    assert path.read_text() == "── step 10\none\u2028line\n── step 20\nagain\n"


@pytest.fixture
def full(tmp_path):
    """A run whose files lie on a full disk."""
    for name in ("samples.txt", "bad_steps.jsonl", "live.json"):
        (tmp_path / name).symlink_to("/dev/full")
    return tmp_path


def test_a_full_disk_costs_a_sample_and_a_picture_and_not_the_run(full, capsys):
    RunFolder(full).append_samples(10, "text")
    LivePicture(full, 1.0, {}).close()
    sample, picture = capsys.readouterr().out.splitlines()
    assert sample.startswith("no sample of step 10 in ") and "No space left" in sample
    assert picture.startswith("no live picture in ") and "No space left" in picture


def test_a_bad_step_that_cannot_be_noted_ends_in_one_line(full):
    with pytest.raises(StorageError, match=r"step 7 is bad, and bad_steps.jsonl in .*No space"):
        RunFolder(full).note_bad_step(BadStep(7, 7, "the loss is nan"), [1], "rollback")


def test_a_place_that_the_file_of_a_run_makes_whole_may_differ_on_resume():
    """The checkpoint keeps it as it was typed."""
    words = ["--data.dir=d", "--data.tokenizer=t/tokenizer.json", "--eval.core-bundle=c"]
    words += ["--data.mixture", "a", "m", "--eval.files", "notes", "n", "--checkpoint.dir=k"]
    typed = load(["cpu", *words, "--eval.chat-tasks", "json:q.jsonl", "--run.dir=r"])
    changed = differences(to_dict(typed), to_dict(_portable(typed)))
    assert {"data.dir", "data.tokenizer", "eval.core_bundle", "checkpoint.dir"} <= {*changed}
    assert [name for name in changed if not name.startswith(FREE_ON_RESUME)] == []


def test_a_mirror_holds_what_a_stage_was_trained_on(gcs, tmp_path):
    """Below data/ lies the only copy: the base and the files may be gone with the machine."""
    run, back, uri = tmp_path / "run", tmp_path / "back", f"{gcs.uri}/run"
    for name in ("config.yaml", "data/0a1b/manifest.json", "data/0a1b/tokens-00000.arrayrecord"):
        storage.write_bytes(run / name, name.encode())
    storage.write_bytes(run / "data/0a1b/half.partial", b"x")
    with mirror.Mirror(uri, run) as copied:
        copied.copy()
    mirror.fetch(uri, back)
    there = {p.relative_to(back).as_posix(): p.read_text() for p in back.rglob("*") if p.is_file()}
    assert there == {name: name for name in there} and len(there) == 3


@pytest.mark.parametrize("tail", ["", '{"step": 3, "train/lo', '{"step": 3, "train/loss": 1.0}'])
def test_a_torn_last_line_of_the_log_is_passed_over(tmp_path, tail):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 2.0}\n' + tail)
    assert read_series(log) == {"train/loss": [(1, 3.0), (2, 2.0)]}


@pytest.mark.parametrize("where", ["options", "preset"])
def test_a_mirror_is_fetched_wherever_it_is_named(gcs, tmp_path, monkeypatch, where):
    """On another machine, with the options that the run was begun with."""
    monkeypatch.chdir(tmp_path)
    mirror = f"{gcs.uri}/run"
    service.write(f"{mirror}/config.yaml", to_yaml(load(["cpu", "--training.seed=5"])).encode())
    words = ["cpu", "--run.name", "x", "--run.mirror", mirror]
    if where == "preset":
        (tmp_path / "mine.yaml").write_text(f"base: cpu\nrun: {{name: x, mirror: {mirror}}}\n")
        words = ["mine.yaml"]
    config = given_config(words, resume=True, prog="test")
    assert config.training.seed == 5
    assert storage.exists("runs/x/config.yaml")


def test_a_manifest_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_bytes(json.dumps({}).encode() + b"\xff")
    with pytest.raises(DataError, match="is not UTF-8 at byte 2"):
        storage.read_text(tmp_path / "manifest.json")
