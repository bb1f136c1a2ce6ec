"""The length of compared runs: measured once, kept for the same command."""

import subprocess

import pytest

from gaia import runtime
from gaia.errors import ConfigError, GaiaError
from gaia.hardware import chip_of_device_kind
from gaia.runtime import Machine
from gchat.__main__ import main
from gchat.config import load
from gchat.research import length, machine

ARGUMENTS = ["cpu", "--model.depth=2"]


@pytest.fixture
def measured(monkeypatch):
    """Measures another figure each time, as real machines do."""
    calls = []

    def measure(arguments, minutes, runs):
        calls.append((list(arguments), minutes, runs))
        return [f"--training.tokens={1000 + len(calls)}"]

    monkeypatch.setattr(length, "_measured", measure)
    return calls


def test_the_same_command_goes_on_with_the_length_it_began_with(measured, tmp_path):
    kept = tmp_path / "out" / "length.json"
    began = length.chosen(ARGUMENTS, 8, 6, kept)
    assert length.chosen(ARGUMENTS, 8, 6, kept) == began and len(measured) == 1
    for arguments, minutes, runs in (
        ([*ARGUMENTS, "--optim.lr=1"], 8, 6), (ARGUMENTS, 9, 6), (ARGUMENTS, 8, 4),
    ):  # fmt: skip
        assert length.chosen(arguments, minutes, runs, kept) != began
    kept.write_text("{torn")
    length.chosen(ARGUMENTS, 8, 6, kept)
    assert len(measured) == 5


def test_a_dry_run_writes_nothing(measured, tmp_path):
    length.chosen(ARGUMENTS, 8, 6, tmp_path / "out" / "length.json", dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_minutes_that_teach_nothing_are_refused(monkeypatch, tmp_path):
    """The speed is measured in another process, or this one would hold the accelerator."""
    monkeypatch.setattr(runtime, "start", lambda **_: pytest.fail("this process asks for devices"))
    with pytest.raises(ConfigError, match=r"--minutes 0.01 leave 0 s of training for each of 6"):
        length.chosen(ARGUMENTS, 0.01, 6, tmp_path / "length.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("axes", "runs"), [([], 12), (["--axes", "tokens"], 6), (["--axes", "tokens", "time"], 9)]
)
def test_the_budget_has_room_for_what_other_axes_train_again(measured, tmp_path, axes, runs):
    """Two branches, three seeds: on each further axis the idea's three may be trained once more."""
    words = ["HEAD", "+relu2", "--minutes", "10", "--dry-run", "--out", str(tmp_path / "out")]
    assert main(["compare", *words, *axes]) == 0
    assert [(minutes, counted) for _, minutes, counted in measured] == [(10.0, runs)]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def found(monkeypatch):
    """Pretends that trainings will find this machine."""

    def pretend(kind, platform, devices=1):
        here = Machine(platform, kind, devices, 0, 1)
        chip = chip_of_device_kind(kind)
        peak = chip.flops_per_device * devices if chip else 3e11
        monkeypatch.setattr(machine, "ask", lambda *_: (here, peak))

    return pretend


def chosen(tmp_path, minutes, *words):
    options = length.chosen(words, minutes, 12, tmp_path / "length.json", dry_run=True)
    return load([*words, *options])


@pytest.mark.parametrize(
    ("kind", "platform"),
    [("TPU v6 lite", "tpu"), pytest.param("NVIDIA H200", "gpu", marks=pytest.mark.slow)],
)
def test_more_minutes_buy_a_larger_model_on_an_accelerator(found, tmp_path, kind, platform):
    found(kind, platform)
    short, long = (chosen(tmp_path, minutes, "cpu") for minutes in (60, 600))
    assert long.model.depth > short.model.depth > 4
    assert long.training.tokens > short.training.tokens > 1e8
    assert short.training.batch_size == 8  # as the preset says


def test_minutes_that_feed_no_depth_train_the_smallest_for_as_long_as_they_last(found, tmp_path):
    found("TPU v6 lite", "tpu")
    config = chosen(tmp_path, 1, "cpu")
    assert (config.model.depth, config.training.tokens_per_param) == (4, 8)
    assert 20 * 8 * 512 < config.training.tokens < 8 * 3e6


def test_a_depth_that_is_typed_stays(found, tmp_path):
    found("TPU v6 lite", "tpu")
    config, half = (chosen(tmp_path, minutes, "cpu", "--depth=8") for minutes in (60, 30))
    assert config.model.depth == half.model.depth == 8
    assert config.training.tokens == pytest.approx(2 * half.training.tokens, rel=0.01)


@pytest.mark.slow
def test_what_does_not_fit_the_memory_is_trained_in_a_shape_that_does(found, tmp_path):
    found("TPU v6 lite", "tpu")
    config = chosen(tmp_path, 600, "baseline")
    rows, parts = config.training.batch_size, config.training.grad_accum
    assert parts > 1 and rows % parts == 0
    typed = chosen(tmp_path, 600, "baseline", f"--training.grad-accum={2 * parts}")
    assert typed.training.grad_accum == 2 * parts


def test_jax_that_does_not_start_is_one_line(monkeypatch):
    said = "Traceback\n  of a library\ngchat: Unable to initialize backend 'cuda': no memory\n"
    ended = subprocess.CompletedProcess([], 2, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(GaiaError, match=r"measured \(Unable to initialize backend 'cuda': no mem"):
        machine.ask("default", "float32")


def test_jax_that_waits_for_ever_is_one_line(monkeypatch):
    monkeypatch.setattr(machine, "_LONGEST_S", 0.01)
    with pytest.raises(GaiaError, match=r"measured \(JAX did not start in 0.01 s\); name"):
        machine.ask("default", "float32")
