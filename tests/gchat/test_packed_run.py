"""A run on packed rows: what it logs and reports, kills and stops, and what it refuses."""

import json
import shutil
import signal

import numpy as np
import pytest

import runs
from gaia import storage
from gaia.data.lengths import write_lengths
from gaia.data.manifest import load_manifest
from gchat.__main__ import main

STEPS = 40
PACKED = ("--packing", "best_fit", "--training.grad-accum", 2, "--model.seq-len", 128)


@pytest.fixture(scope="module")
def data(data_dir, tmp_path_factory):
    folder = shutil.copytree(data_dir, tmp_path_factory.mktemp("packed") / "data")
    write_lengths(folder, load_manifest(folder))
    return folder


def arguments(data, run_dir, *more):
    return runs.arguments(
        data, run_dir, *PACKED, "--checkpoint.every-steps", 10, *more, steps=STEPS
    )


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted run, in this process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *arguments(data, folder)]) == 0
    return folder


def test_fill_and_examples_are_logged_and_reported(whole, data):
    steps = [r for r in runs.logged(whole) if "train/loss" in r]
    assert len(steps) == STEPS
    assert all(0 < r["data/fill"] <= 1 and r["data/examples"] >= 4 for r in steps)
    # Over an epoch they are those of the plan: every token once, every piece once.
    from gaia.data.loader import make_loader

    with make_loader(data, seq_len=128, batch_size=4, seed=1337, packing="best_fit") as loader:
        for record in steps[:5]:
            batch = loader.batch(record["step"] - 1)
            assert record["data/fill"] == pytest.approx((batch.targets_BT >= 0).mean())
            pieces = (batch.positions_BT == 0) & (batch.segments_BT > 0)
            assert record["data/examples"] == pieces.sum()
        assert np.mean([r["data/fill"] for r in steps]) == pytest.approx(
            loader.rows.tokens_per_row / 128, abs=0.03
        )
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["packing"] == "best_fit"
    assert summary["fill"] == pytest.approx(np.mean([r["data/fill"] for r in steps]), abs=1e-4)
    assert summary["examples_per_step"] == pytest.approx(
        np.mean([r["data/examples"] for r in steps]), abs=0.1
    )
    assert "| packing | best_fit" in (whole / "report.md").read_text()
    assert 0 < summary["bigram_bpb"] < summary["unigram_bpb"]
    assert summary["train_loss"] < steps[0]["train/loss"] - 1


@pytest.mark.slow
def test_a_kill_and_a_stop_change_no_bit(whole, data, tmp_path, user_environment):
    folder = tmp_path / "run"
    process = runs.Process.train(arguments(data, folder), user_environment)
    assert process.step_reached(14), process.text
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    resume = ["--resume", "--run-dir", str(folder)]
    # The kill may come before the first checkpoint is on disk.
    process = runs.Process.train([*resume, "--allow-restart"], user_environment)
    assert process.step_reached(23), process.text
    process.signal(signal.SIGTERM)
    assert process.end() == 0, process.text
    assert main(["train", *resume]) == 0
    expected, got = runs.arrays(whole, STEPS), runs.arrays(folder, STEPS)
    assert all((array == got[path]).all() for path, array in expected.items())
    assert runs.losses(folder) == runs.losses(whole)


def test_from_a_bucket_it_is_the_same_run(gcs, whole, data, tmp_path):
    for file in data.iterdir():
        storage.write_bytes(f"{gcs.uri}/{file.name}", file.read_bytes())
    run = arguments(gcs.uri, tmp_path / "run", "--data.cache-dir", tmp_path / "cache")
    assert main(["train", *run, "--max-steps", str(STEPS)]) == 0
    assert runs.losses(tmp_path / "run") == runs.losses(whole)
    assert "data/cache_misses" in runs.logged(tmp_path / "run")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["none", "first_fit"])
def test_the_other_packings_train(data, tmp_path, packing):
    run = arguments(data, tmp_path / "run", "--packing", packing, "--max-steps", "10")
    assert main(["train", *run]) == 0
    losses = runs.losses(tmp_path / "run")
    assert losses[10] < losses[1]


# ── Refusals: one line, exit 2 ────────────────────────────────────────────────────────────────────


def refused(capsys, args, *said):
    capsys.readouterr()
    assert main(["train", *map(str, args)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    for words in said:
        assert words in text


@pytest.mark.parametrize("packing", ["split", "first_fit"])
def test_another_packing_on_resume_is_refused(whole, capsys, packing):
    args = ["--resume", "--run-dir", whole, "--data.packing", packing]
    refused(capsys, args, "data.packing was best_fit", f"and is {packing}")


def test_a_newer_packer_is_refused(whole, capsys, monkeypatch):
    monkeypatch.setattr("gaia.data.packing.VERSION", 2)
    refused(capsys, ["--resume", "--run-dir", whole], "version 1 and is best_fit, version 2")


def test_data_without_lengths_names_the_remedy(data_dir, tmp_path, capsys):
    run = arguments(data_dir, tmp_path / "run")
    refused(capsys, run, "lengths.npz does not exist", "run `gchat data lengths`")
    assert not (tmp_path / "run").exists()
