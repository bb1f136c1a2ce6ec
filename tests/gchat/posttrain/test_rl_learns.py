"""RL learns what generalises: held-out pairs in both orders, from chance to 0.9."""

import pytest

import runs
import toy_rl
from gchat.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_rl.make(tmp_path_factory.mktemp("toy"))


def held_out_rewards(toy, name, *more):
    """Mean greedy reward on held-out pairs, by step."""
    assert main(toy_rl.command(toy, toy / name, *more)) == 0
    return {r["step"]: r["eval/reward"] for r in runs.logged(toy / name) if "eval/reward" in r}


def test_from_chance_to_nine_in_ten_on_held_out_pairs(toy):
    rewards = held_out_rewards(toy, "rl")
    assert rewards[0] < 0.7 and rewards[60] > 0.9


def test_shuffled_rewards_teach_nothing(toy):
    """The reward of an answer is drawn once and has nothing to do with what can be eaten; graded
    by the task, the policy stays at chance."""
    held_out_rewards(toy, "shuffled", "--reward", f"{toy}/shuffled.py:reward")
    assert toy_rl.graded(toy, toy / "shuffled") < 0.7
