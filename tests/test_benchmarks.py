"""Benchmarks that no machine of the test run can take in full: the same code, on a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In place of a Python with torch: it finds nanochat, has room for one row, and steps at once.
FAKE_TORCH = """#!/bin/sh
case "$*" in
*"import torch"*) echo 2.9.0 ;;
*'"rows": 2'*) echo 'torch.OutOfMemoryError: CUDA out of memory.' >&2; exit 1 ;;
*) echo 'answer {"step_s": [2.0, 1.0, 4.0], "flops": 6e9, "flops_full_square": 9e9}' ;;
esac
"""


def train_step(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/benchmarks/train_step.py", "--quick", *map(str, args)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_shapes_of_a_device_on_this_cpu(tmp_path):
    """Ours whole and packed; beside it a nanochat that must halve its batch."""
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat/gpt.py").touch()
    python = tmp_path / "python"
    python.write_text(FAKE_TORCH)
    python.chmod(0o755)
    done = train_step("--shapes=tiny", "--packed", f"--nanochat={tmp_path}", f"--python={python}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nanochat_skipped"] is None
    whole, packed, theirs = found["rows"]
    assert [r["what"] for r in found["rows"]] == ["xla", "xla, packed", "nanochat"]
    for row in (whole, packed):
        assert (row["rows"], row["vocab"], row["dtype"]) == (2, 500, "bfloat16")
        assert 0 < row["mfu_min"] <= row["mfu"] < row["mfu_full_square"]
        parts = row["breakdown"]
        together = parts["forward_ms"] + parts["backward_ms"] + parts["optimizer_ms"]
        assert abs(together - parts["step_ms"]) < 1
    blocks = 2 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64 + 2 * 32)  # matrices, norms
    assert whole["params"] == packed["params"] == 2 * 512 * 64 + blocks + 64
    assert theirs["rows"] == 1 and theirs["tokens_per_s"] == 128 / 2.0
    assert found["ratio_to_nanochat"]["tiny"] == round(whole["tokens_per_s"] / 64.0, 3)
    assert found["mfu"] == max(whole["mfu"], packed["mfu"])


def test_what_a_cpu_cannot_measure_is_refused_in_one_line():
    cases = {
        "--attention=cudnn": "--attention cudnn needs an NVIDIA GPU; here is cpu",
        "--shapes=d13": "--shapes has 'd13': use some of tiny, d12, d20, d24",
    }
    for option, line in cases.items():
        done = train_step("--shapes=tiny", option)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)


def test_a_worker_keeps_the_python_that_it_is_given():
    """Nanochat's side runs where torch is, and jax is not: it must not start again in .venv."""
    done = subprocess.run(
        [sys.executable, "-S", "tests/benchmarks/curve_worker.py", "{}"], cwd=ROOT,
        env=os.environ | {"GAIA_BENCHMARK_IN_VENV": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'numpy'"


@pytest.mark.slow
def test_streams_that_are_left_and_streams_that_are_read():
    """16 clients for ten seconds, on a model that is made for it; each answer is its own."""
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/serve.py", "--quick"], cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = ("mixed", "lost", "rows_taken", "waiting", "steps_afterwards", "exit_status")
    assert [found[name] for name in wrong] == [0] * len(wrong), found
    assert found["compared"] == found["answers"] > 16 and found["left"] > 0
    assert found["steps_after_leaving"] < found["steps_wanted"]
    assert 0 < found["ttft_p50_ms"] <= found["ttft_p99_ms"]
    for figure in (found, found["serial"]):
        assert figure["tokens_per_s"] > 0


@pytest.mark.slow
def test_the_work_queue_loses_and_doubles_nothing_at_speed():
    command = [sys.executable, "tests/benchmarks/synth_queue.py", "--quick", "--no-servers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert figures["items_per_s"] > 0 and 0 < figures["busy_share"] <= 1
    assert figures["rows"][0]["sync"].startswith("an fsync after adding, results")


@pytest.mark.slow
def test_the_stages_of_a_speedrun_are_measured_from_text_to_answers():
    command = [sys.executable, "tests/benchmarks/chat_stages.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["stage"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert list(rows) == [
        "base", "identity", "functions", "mid", "ChatCORE of mid", "sft", "ChatCORE of sft",
        "answers",
    ]  # fmt: skip
    for stage in ("base", "mid", "sft"):
        assert rows[stage]["tokens"] > 0 and rows[stage]["metric"] == "val_bpb"
        assert 0 < rows[stage]["step_share"] < 1 and rows[stage]["mfu"] > 0
    assert rows["base"]["tokens"] == 16 * 4096 and 1 < rows["base"]["value"] < 8
    assert set(rows["ChatCORE of sft"]["tasks"]) == {"sums", "spelling"}


def test_half_an_option_is_refused():
    command = [sys.executable, "tests/benchmarks/chat_stages.py", "--dept", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "unrecognized arguments: --dept 3" in done.stderr
