"""Three steps of RL on the real GSM8K with SmolLM2, in its own chat template."""

from pathlib import Path

import pytest

import runs
import smollm2
from gchat.__main__ import main

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
REWARD = """
def a_number(text, item):
    return float(any(c.isdigit() for c in text[-4:])) + text.count(item["answer"].split()[-1])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(smollm2.path() is None, reason=smollm2.MISSING),
    pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k"),
]


def test_three_steps_on_the_real_file(tmp_path):
    base, run = tmp_path / "smol", tmp_path / "rl"
    assert main(["import", "gguf", str(smollm2.path()), "--out", str(base)]) == 0
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    options = {
        "--base": base, "--task": f"gsm8k={GSM8K}", "--run-dir": run, "--max-steps": 3,
        "--reward": f"{tmp_path}/rewards.py:a_number", "--rl.prompts": 2, "--rl.samples": 4,
        "--rl.max-new-tokens": 48, "--rl.held-out": 0, "--rl.slots": 8, "--lora-rank": 8,
        "--lr": "1e-3", "--training.grad-accum": 4, "--training.loss-chunk": 256,
    }  # fmt: skip
    assert main(["rl", *(str(x) for pair in options.items() for x in pair)]) == 0
    log = [r for r in runs.logged(run) if "rl/reward" in r]
    assert [r["step"] for r in log] == [1, 2, 3]
    assert all(r["rl/logprob_gap"] < 1e-4 for r in log)
    assert all(r["rl/ungraded"] == 0 and r["rl/answer_tokens"] > 10 for r in log)
    assert any(r["rl/groups_kept"] and r["train/grad_norm"] > 0 for r in log)
