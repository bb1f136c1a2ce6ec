"""Ends of a run: the save under way is on disk whatever ends it, and targets are taken back."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

import gchat.run.training_data
import runs
import tiny
from gaia.checkpoint import Checkpointer
from gaia.errors import DataError
from gaia.processes.group import Group
from gchat.__main__ import main
from gchat.run.progress import Progress
from gchat.run.session import Session
from gchat.run.training_data import TrainingData
from gchat.train_step import eval_rows

SAVED = 8


@pytest.fixture
def stopping_data(monkeypatch):
    """Data that ends with an error in the step after a save, whose sealing takes a while."""
    make, seal = gchat.run.training_data.make_loader, Checkpointer._try_to_seal

    def make_failing(*args, **kwargs):
        loader = make(*args, **kwargs)
        take, asked = type(loader).__next__, iter(range(10**6))

        class Failing(type(loader)):
            def __next__(self):
                if next(asked) == SAVED:
                    raise DataError("the disk with the data is gone", "plug it in again")
                return take(self)

        loader.__class__ = Failing
        return loader

    def seal_slowly(self, *args):
        time.sleep(1.0)
        return seal(self, *args)

    monkeypatch.setattr(gchat.run.training_data, "make_loader", make_failing)
    monkeypatch.setattr(Checkpointer, "_try_to_seal", seal_slowly)


def test_an_error_right_after_a_save_keeps_that_save(data_dir, tmp_path, stopping_data, capfd):
    run = tmp_path / "run"
    more = ["--checkpoint.every-steps", str(SAVED), "--eval.every-steps", "0"]
    assert main(["train", *runs.arguments(data_dir, run, *more, steps=20)]) == 2
    assert "the disk with the data is gone" in capfd.readouterr().err
    assert Checkpointer(str(run / "checkpoints"), read_only=True).latest() == SAVED


def test_a_target_reached_after_the_checkpoint_is_taken_back_with_it():
    progress = Progress(tiny.train_config(), 1e12, "a peak")
    progress.seconds_to_target, progress.seconds_to_target_core = 5.0, 6.0
    progress.forget_target({"seconds_to_target": 4.0, "seconds_to_target_core": None})
    assert (progress.seconds_to_target, progress.seconds_to_target_core) == (4.0, None)
    progress.forget_target(None)  # back to the start
    assert progress.seconds_to_target is None


def test_each_attempt_is_paid_at_the_price_of_its_machine(monkeypatch):
    config = tiny.train_config()
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "36")
    first = Progress(config, 1e12, "a peak")
    first._since -= 100  # seconds of training, a cent each
    kept = first.state()
    assert kept["cost"] == pytest.approx(1.0, abs=0.1)
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "360")
    second = Progress(config, 1e12, "a peak")
    second.restore(kept)
    second.start()
    second._since -= 10
    assert second.state()["cost"] == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("place", [
    "gs://bucket/run/checkpoints", "gs://bucket/run2/checkpoints", "/disk/checkpoints"
])  # fmt: skip
def test_no_checkpoint_in_a_mirror_is_ahead_of_its_metrics(place):
    """The disk of the machine may be lost, and then the mirror is all there is."""
    saved, session = [], object.__new__(Session)
    session.group, session._lock = Group(), SimpleNamespace(check=lambda: None)
    session.metrics = SimpleNamespace(wait_durable=lambda step: True)
    session.mirror = SimpleNamespace(copy=lambda: True)  # it is behind
    session.config = SimpleNamespace(
        run=SimpleNamespace(mirror="gs://bucket/run"), checkpoints=place
    )
    session._checkpoints = SimpleNamespace(save=lambda step, state, meta: saved.append(step))
    session._meta = lambda guard: {}
    problem = session.save(4, {}, {})
    inside = place.startswith("gs://bucket/run/")
    if inside:
        assert problem == "step 4: its metrics could not be copied to gs://bucket/run"
    assert saved == ([] if inside else [4])


def test_a_mixture_s_epochs_are_those_of_its_weights(data_dir):
    """The rows that hold it once decide at which steps a batch ramp changes."""
    mixture = {"a": str(data_dir), "b": str(data_dir)}
    config = tiny.train_config(training={"batch_ramp": ("2@0", "1@1epoch")})
    given = replace(config.data, mixture=mixture, weights={"a": 0.75, "b": 0.25})
    data = TrainingData(given)
    half = TrainingData(replace(given, weights={"a": 0.5, "b": 0.5}))
    assert data.rows(config) > 0 and half.rows(config) > 0


def test_rows_to_score_are_those_of_a_device_that_holds_whole_rows():
    def rows(seq_len, **axes):
        shape = {"replica": 1, "fsdp": 1, "sequence": 1, "tensor": 1, **axes}
        return eval_rows(SimpleNamespace(shape=shape), seq_len)

    assert rows(512) == rows(2048) == rows(512, tensor=8) == 8
    assert rows(2048, replica=2, fsdp=4) == 64
    assert rows(8192) == 2 and rows(65_536) == 1
    assert rows(8192, sequence=8) == 8  # each holds 1,024 tokens of a row


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.lora-rank", "2"], "adapters need a base"),
        (["--checkpoint.keep", "1"], "checkpoint.keep is 1; use 2 or more"),
        (["--optim.matrix-lr", "0.5"], "optim.matrix_lr is typed but optim.name is adamw"),
        (["--data.weights", "web", "0.5"], "is of data.mixture, which is not given"),
        (["--dpo.beta", "0.5"], "an option of dpo is given; use gchat dpo"),
        (["--rl.kl", "1"], "an option of rl is given; use gchat rl"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_made(
    words, said, data_dir, tmp_path, capfd
):
    run = tmp_path / "run"
    assert main(["train", *runs.arguments(data_dir, run, *words, steps=4)]) == 2
    assert said in capfd.readouterr().err
    assert not run.exists()
