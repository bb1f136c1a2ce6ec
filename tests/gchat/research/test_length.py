"""The length of compared runs: measured once, kept for the same command."""

import pytest

from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.research import length

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


def test_minutes_that_teach_nothing_are_refused(tmp_path):
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
